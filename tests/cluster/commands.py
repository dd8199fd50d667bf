"""`nsfw-spark` started as a user starts it, in a process group that a test can stop and kill.

The group holds the Python driver and Java. Python workers and model hosts have groups of their own; they see
that the driver is gone. The tests read tables with deltalake, another reader than Spark.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import deltalake

from tests import java
from tests.cluster.conftest import ROOT, within

FILTERED: Final = ("safe_images", "flagged_images", "quarantined_images")
TABLES: Final = ("image_scores", *FILTERED)
WAIT_SECONDS: Final = 600
"""No command takes so long, however busy the machine is."""
CODE: Final = "from nsfw_spark.cli import main; main()"
END_OF_STEP: Final = "== end of step =="
STEPS: Final = f"""
import json, subprocess, sys
from nsfw_spark.cli import main

for step in json.loads(sys.argv[1]):
    if step[0] not in ("run", "filter"):
        subprocess.run(step, check=True)
        continue
    try:
        main(step)
    except SystemExit as end:
        print(json.dumps({{"status": end.code}}), flush=True)
        print({END_OF_STEP!r}, file=sys.stderr, flush=True)
"""
"""A program that runs commands of `nsfw-spark`, and other commands between them, in one process."""
NO_SETTINGS: Final[Mapping[str, object]] = MappingProxyType({})
Row = dict[str, Any]


class Command:
    """A started `nsfw-spark`, or another program."""

    def __init__(
        self,
        folder: Path,
        *words: object,
        environment: Mapping[str, str] | None = None,
        settings: Mapping[str, object] = NO_SETTINGS,
    ) -> None:
        """Start a program.

        Args:
            folder: Working directory, made if it is not there; its output goes there too.
            words: The program and its arguments.
            environment: Its environment; default: that of a Python with these sources.
            settings: Of its Spark, in the default environment.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._stdout, self._stderr = folder / "stdout", folder / "stderr"
        path = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
        with self._stdout.open("w") as stdout, self._stderr.open("w") as stderr:
            self.process = subprocess.Popen(
                [*map(str, words)],
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                cwd=folder,
                env=environment or {**os.environ, "PYTHONPATH": path, **java.quick(**settings)},
                start_new_session=True,
            )

    @property
    def is_over(self) -> bool:
        """Whether the command has ended."""
        return self.process.poll() is not None

    def stdout(self) -> str:
        """Return its standard output so far."""
        return self._stdout.read_text(encoding="utf-8")

    def stderr(self) -> str:
        """Return its standard error so far."""
        return self._stderr.read_text(encoding="utf-8")

    def end(self, status: int = 0) -> Row:
        """Wait for the command's end; return the JSON document in its last line."""
        assert self.process.wait(WAIT_SECONDS) == status, self.stderr()[-5_000:]
        lines = self.stdout().splitlines()
        return dict(json.loads(lines[-1])) if lines else {}

    def until(self, is_so: Callable[[], object]) -> None:
        """Wait until a condition is true, or the command has ended."""
        assert within(WAIT_SECONDS, lambda: self.is_over or is_so()), self.stderr()[-5_000:]

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the whole process group."""
        os.killpg(self.process.pid, number)

    def kill(self, after_seconds: float = 0.0) -> bool:
        """Kill the whole process group; return whether the command still ran at that time."""
        try:
            self.process.wait(after_seconds)
        except subprocess.TimeoutExpired:
            self.signal(signal.SIGKILL)
        return self.process.wait() == -signal.SIGKILL


@contextmanager
def running(
    folder: Path,
    *arguments: object,
    code: str = CODE,
    under: Sequence[str] = (),
    settings: Mapping[str, object] = NO_SETTINGS,
) -> Iterator[Command]:
    """Run a command; kill it if the test leaves before its end.

    Args:
        folder: See `Command`.
        arguments: The arguments of the code.
        code: Python code; default: `nsfw-spark`.
        under: A command that starts the program, such as one that drops privileges.
        settings: Of its Spark.
    """
    words = (*under, sys.executable, "-c", code, *arguments)
    with killed_at_the_end(Command(folder, *words, settings=settings)) as command:
        yield command


@contextmanager
def killed_at_the_end(command: Command) -> Iterator[Command]:
    """Kill a command if the test leaves before its end."""
    try:
        yield command
    finally:
        if not command.is_over:
            command.kill()


class Step(NamedTuple):
    """How a command of `nsfw-spark` ended."""

    status: int
    result: Row
    """The JSON document in its last line; empty where there is none."""
    stderr: str


def steps(folder: Path, *commands: Sequence[object], under: Sequence[str] = ()) -> list[Step]:
    """Run commands one after the other; those of `nsfw-spark` share a process, and each returns a step."""
    arguments = json.dumps([list(map(str, command)) for command in commands])
    with running(folder, arguments, code=STEPS, under=under) as command:
        command.end()
        errors = command.stderr().split(END_OF_STEP)
        found = [json.loads(line) for line in command.stdout().splitlines()]
    ends: list[Step] = []
    result: Row = {}
    for line in found:
        if list(line) == ["status"]:
            ends.append(Step(line["status"], result, errors[len(ends)]))
        result = {} if list(line) == ["status"] else line
    return ends


def num_commits(table: Path) -> int:
    """Return the number of commits in a table's log."""
    return num_numbered(path.with_suffix("") for path in table.glob("_delta_log/*.json"))


def num_numbered(paths: Iterator[Path]) -> int:
    """Return the number of files with a number as their name."""
    return sum(path.name.isdecimal() for path in paths)


def rows(table: Path, version: int | None = None) -> dict[str, Row]:
    """Return a table's rows by image_id; fail if an image has two rows."""
    found = deltalake.DeltaTable(table, version=version).to_pyarrow_table().to_pylist()
    by_id = {row["image_id"]: row for row in found}
    assert len(by_id) == len(found), f"{table.name} has an image twice"
    return by_id


def ids(table: Path) -> frozenset[str]:
    """Return the image_ids of a table."""
    return frozenset(rows(table))


def runs(output: Path) -> list[Row]:
    """Return the rows of the table `runs`."""
    return list(deltalake.DeltaTable(output / "runs").to_pyarrow_table().to_pylist())


def num_rows(table: Path) -> int:
    """Return the number of rows in a table; 0 before it exists."""
    if not num_commits(table):
        return 0
    return int(deltalake.DeltaTable(table).count())
