"""`nsfw-spark` as it is typed, in a process group that can be stopped and killed, and what it leaves.

The group holds Python and Java; Python workers and model hosts have groups of their own and see by themselves
that they are alone. What is read of the tables is read by deltalake, in the test's process: another reader.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import deltalake

from tests import java
from tests.cluster.conftest import ROOT, within

FILTERED: Final = ("safe_images", "flagged_images", "quarantined_images")
TABLES: Final = ("image_scores", *FILTERED)
WAIT_SECONDS: Final = 600
"""However busy the machine is, no command takes so long."""
CODE: Final = "from nsfw_spark.cli import main; main()"
SEVERAL: Final = """
import json, sys
from nsfw_spark.cli import main

for arguments in json.loads(sys.argv[1]):
    try:
        main(arguments)
    except SystemExit as end:
        if end.code:
            raise
"""
STEPS: Final = """
import json, subprocess, sys
from nsfw_spark.cli import main

for step in json.loads(sys.argv[1]):
    if step[0] not in ("run", "filter"):
        subprocess.run(step, check=True)
        continue
    try:
        main(step)
    except SystemExit as end:
        print(json.dumps({"status": end.code}), flush=True)
        print("== end of step ==", file=sys.stderr, flush=True)
"""
"""Runs commands of `nsfw-spark` in one process, and others between them, whatever becomes of each."""
Row = dict[str, Any]


class Command:
    """A started `nsfw-spark`."""

    def __init__(self, folder: Path, code: str, *arguments: object, under: Sequence[str] = ()) -> None:
        """Start it in a folder, which becomes its own: what it says and leaves is there.

        Args:
            folder: Made if it is not there.
            code: Of a program.
            arguments: Of the program.
            under: A command that starts it, such as one that takes rights away.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._said, self._told = folder / "stdout", folder / "stderr"
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)]),
            **java.quick(),
        }
        with self._said.open("w") as said, self._told.open("w") as told:
            self.process = subprocess.Popen(
                [*under, sys.executable, "-c", code, *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=told,
                cwd=folder,
                env=environment,
                start_new_session=True,
            )

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return self.process.poll() is not None

    def said(self) -> str:
        """Return what it wrote to standard output."""
        return self._said.read_text(encoding="utf-8")

    def told(self) -> str:
        """Return what it wrote to standard error."""
        return self._told.read_text(encoding="utf-8")

    def end(self, status: int = 0) -> Row:
        """Wait for its end; return the JSON of its last line."""
        assert self.process.wait(WAIT_SECONDS) == status, self.told()[-5_000:]
        lines = self.said().splitlines()
        return dict(json.loads(lines[-1])) if lines else {}

    def until(self, is_so: Callable[[], object]) -> None:
        """Wait until something is so, or the command has ended."""
        assert within(WAIT_SECONDS, lambda: self.is_over or is_so()), self.told()[-5_000:]

    def signal(self, number: signal.Signals) -> None:
        """Send all of its group a signal."""
        os.killpg(self.process.pid, number)

    def kill(self, after_seconds: float = 0.0) -> bool:
        """Kill all of its group; return whether it still ran then."""
        try:
            self.process.wait(after_seconds)
        except subprocess.TimeoutExpired:
            self.signal(signal.SIGKILL)
        return self.process.wait() == -signal.SIGKILL


@contextmanager
def running(
    folder: Path, *arguments: object, code: str = CODE, under: Sequence[str] = ()
) -> Iterator[Command]:
    """Run a command; nothing of it is left behind, whatever becomes of the test."""
    command = Command(folder, code, *arguments, under=under)
    try:
        yield command
    finally:
        if not command.is_over:
            command.kill()


class Step(NamedTuple):
    """What became of a command of `nsfw-spark`."""

    status: int
    told: str
    """On standard error."""


def steps(folder: Path, *commands: Sequence[object], under: Sequence[str] = ()) -> list[Step]:
    """Run commands one after the other, those of `nsfw-spark` in one process; return what became of these."""
    said = json.dumps([list(map(str, command)) for command in commands])
    with running(folder, said, code=STEPS, under=under) as command:
        command.end()
        told = command.told().split("== end of step ==")
        found = [json.loads(line) for line in command.said().splitlines()]
    statuses = [line["status"] for line in found if list(line) == ["status"]]
    return [Step(status, text) for status, text in zip(statuses, told, strict=False)]


class Trace(NamedTuple):
    """How far a run is, by what is in its output; each only grows."""

    begun: int
    """Micro-batches, as those below."""
    ended: int
    commits: int
    """To image_scores."""
    filtered: int
    """Files of the filtered tables."""
    runs: int
    """Commits to `runs`."""


def trace(output: Path) -> Trace:
    """Look how far a run is."""
    checkpoints = output / "_checkpoints"
    return Trace(
        _numbered(checkpoints.glob("image_scores-*/offsets/*")),
        _numbered(checkpoints.glob("image_scores-*/commits/*")),
        num_commits(output / "image_scores"),
        sum(1 for table in FILTERED for path in (output / table).rglob("*") if path.is_file()),
        num_commits(output / "runs"),
    )


def num_commits(table: Path) -> int:
    """Return how many commits a table's log holds."""
    return _numbered(path.with_suffix("") for path in table.glob("_delta_log/*.json"))


def num_written(output: Path) -> int:
    """Return how many micro-batches are in image_scores, by what the stream says in its commits."""
    return sum('"txn":' in path.read_text() for path in output.glob("image_scores/_delta_log/0*.json"))


def _numbered(paths: Iterator[Path]) -> int:
    return sum(path.name.isdecimal() for path in paths)


def stage(output: Path, before: Trace) -> str:
    """Say what a run was doing when it was killed, given how far the run before it had come."""
    after = trace(output)
    new = Trace(*(now - then for then, now in zip(before, after, strict=True)))
    if new.filtered:
        return "filtering, or after its row in runs"
    if new.begun or new.ended:
        if after.begun == after.ended:
            return f"after {new.ended} micro-batches"
        is_written = num_written(output) > after.ended
        return f"in micro-batch {new.begun}, {'written and not noted' if is_written else 'not written'}"
    if new.runs:
        return "after a commit to runs, before a micro-batch"
    return (
        "after a commit to image_scores, without a micro-batch" if new.commits else "before it wrote a table"
    )


def rows(table: Path, version: int | None = None) -> dict[str, Row]:
    """Return a table's rows by image_id, of which none may be there twice."""
    found = deltalake.DeltaTable(table, version=version).to_pyarrow_table().to_pylist()
    by_id = {row["image_id"]: row for row in found}
    assert len(by_id) == len(found), f"{table.name} has an image twice"
    return by_id


def ids(table: Path) -> frozenset[str]:
    """Return the images of a table as a reader finds them now."""
    return frozenset(rows(table))


def runs(output: Path) -> list[Row]:
    """Return the table `runs`."""
    return list(deltalake.DeltaTable(output / "runs").to_pyarrow_table().to_pylist())


def num_rows(table: Path) -> int:
    """Return how many rows a table has; 0 where there is none yet."""
    if not num_commits(table):
        return 0
    return int(deltalake.DeltaTable(table).count())


@dataclass(frozen=True)
class Moment:
    """When a run is killed: something is seen of it, and then some time passes."""

    name: str
    is_seen: Callable[[Path, Trace], object]
    """Given the output, and how far it was when the run started."""
    seconds: float
    """So long at most."""


def kill_at(
    command: Command,
    moment: Moment,
    output: Path,
    chance: random.Random,
    meanwhile: Callable[[], object] = lambda: None,
) -> str | None:
    """Kill a command at a moment; return what it was doing, None if it had ended.

    Args:
        command: Just started.
        moment: When.
        output: Of the command.
        chance: How long after what is seen is drawn from here.
        meanwhile: Done again and again until then.
    """
    before = trace(output)

    def is_seen() -> object:
        meanwhile()
        return moment.is_seen(output, before)

    command.until(is_seen)
    delay = chance.uniform(0, moment.seconds)
    if not command.kill(delay):
        return None
    return f"{stage(output, before)} ({moment.name} + {delay:.2f} s)"
