"""Runs that are killed at chosen moments, and runs that nobody disturbs to compare them with.

The sources and the undisturbed outputs are read-only: all test processes share them, as each costs a minute.
Each test writes to a directory of its own.
"""

from __future__ import annotations

import fcntl
import gzip
import io
import os
import random
import secrets
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tests.cluster.commands import (
    FILTERED,
    TABLES,
    Command,
    Row,
    num_commits,
    num_numbered,
    num_rows,
    rows,
    running,
    runs,
)
from tests.conftest import jpeg, png
from tests.fakes import card_content

THRESHOLD: Final = 0.002
"""About half of the images score less."""
BAD: Final = (b"", b"Only its name says so.", jpeg()[:400], b"%PDF-1.7 ...", b"")
SEED: Final = int(os.environ.get("KILL_SEED", "0")) or secrets.randbits(32)
"""Seed of the random delays; a test that fails prints it, and KILL_SEED repeats it."""


@dataclass(frozen=True)
class Source:
    """Images to score."""

    folder: Path
    files_per_batch: int
    num_images: int
    """Expected rows of image_scores."""
    num_streamed: int
    """Expected rows from micro-batches; the others are files that Spark skips."""


def image(number: int) -> bytes:
    """Return an image; one in six is bad."""
    return BAD[number // 6 % len(BAD)] if number % 6 == 5 else png(seed=number)


def write_files(folder: Path) -> Source:
    num = 32
    for i in range(num):
        path = folder / f"{i % 4}" / f"{i:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image(i))
        os.utime(path, (1e9 + i, 1e9 + i))  # micro-batches take the oldest first: good and bad are mixed
    return Source(folder, 4, num, num - sum(not image(i) for i in range(num)))


def tar(first: int, num: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for i in range(first, first + num):
            for name, content in ((f"{i:04}.png", image(i)), (f"{i:04}.txt", b"number %d" % i)):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


NUM_IN_CUT: Final = 3
"""Rows of the truncated tar: two images, and one row that says where the tar ends."""


def cut_tar() -> bytes:
    return tar(200, 5)[:15_000]


def write_tars(folder: Path) -> Source:
    tars = {f"{i}.tar": tar(10 * i, 5) for i in range(5)}
    tars |= {"cut.tar": cut_tar(), "empty.tar": b"", "packed.tar.gz": gzip.compress(tar(300, 4))}
    folder.mkdir(parents=True)
    for name, content in tars.items():
        (folder / name).write_bytes(content)
    num_streamed = 5 * 5 + NUM_IN_CUT + 4
    return Source(folder, 1, num_streamed + 1, num_streamed)


def write_parquet(folder: Path) -> Source:
    folder.mkdir(parents=True)
    for i in range(6):
        contents = [image(j) or None for j in range(10 * i, 10 * i + 8)]
        images = [{"bytes": content, "path": f"{i}.png"} for content in contents]
        table = pa.table({"image": images, "text": [f"number {j}" for j in range(8)]})
        pq.write_table(table, folder / f"{i}.parquet", row_group_size=3)
    damaged = folder / "4.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-20])
    return Source(folder, 1, 5 * 8 + 1, 5 * 8 + 1)


class Undisturbed:
    """Sources, two models, and the outputs of runs over them that nobody disturbed."""

    def __init__(self, folder: Path) -> None:
        """Write the sources and the models into a new folder."""
        self._folder = folder
        writers = {"files": write_files, "tars": write_tars, "parquet": write_parquet}
        self.sources = {name: write(folder / name) for name, write in writers.items()}
        self.card, self.other_card = folder / "sampled.yaml", folder / "other.yaml"
        for card, seed in ((self.card, 1), (self.other_card, 2)):
            content = card_content(name=card.stem, encoder={"weights": {"random": seed}})
            card.write_text(yaml.safe_dump(content), encoding="utf-8")

    def output(self, name: str, card: Path | None = None) -> Path:
        """Return the output of a run over a source, in one or two micro-batches.

        The first process that asks for it makes it, and the others wait.
        """
        output = self._folder / "undisturbed" / f"{name}-{(card or self.card).stem}"
        output.parent.mkdir(exist_ok=True)
        with output.with_suffix(".lock").open("a+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not lock.tell():  # else the output is complete
                arguments = self.arguments(self.sources[name], output, card=card)
                with running(output.with_suffix(".cwd"), *arguments) as command:
                    command.end()
                lock.write("complete")
        return output

    def arguments(self, source: Source, output: Path, *more: object, card: Path | None = None) -> list[str]:
        """Return the command line of a run."""
        model = ["--model", card or self.card, "--allow-random-weights", "--device", "cpu"]
        limits = ["--max-error-rate", 1, "--threshold", THRESHOLD]
        return [*map(str, ["run", source.folder, "--output", output, *model, *limits, *more])]

    def in_small_batches(self, source: Source, output: Path, *more: object) -> list[str]:
        """Return the command line of a run with many micro-batches."""
        return self.arguments(source, output, "--files-per-batch", source.files_per_batch, *more)


class Trace(NamedTuple):
    """The progress of a run, counted in the files of its output; no number ever falls."""

    begun: int
    """Micro-batches that began."""
    ended: int
    """Micro-batches that ended."""
    commits: int
    """Commits to image_scores."""
    filtered: int
    """Files of the filtered tables."""
    runs: int
    """Commits to `runs`."""


def trace(output: Path) -> Trace:
    """Return the progress of a run."""
    checkpoints = output / "_checkpoints"
    return Trace(
        num_numbered(checkpoints.glob("image_scores-*/offsets/*")),
        num_numbered(checkpoints.glob("image_scores-*/commits/*")),
        num_commits(output / "image_scores"),
        sum(1 for table in FILTERED for path in (output / table).rglob("*") if path.is_file()),
        num_commits(output / "runs"),
    )


def num_written(output: Path) -> int:
    """Return the number of micro-batches in image_scores, as the stream notes them in its commits."""
    return sum('"txn":' in path.read_text() for path in output.glob("image_scores/_delta_log/0*.json"))


def stage(output: Path, before: Trace) -> str:
    """Return the step that a killed run was at, given the progress before it."""
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


@dataclass(frozen=True)
class Moment:
    """The time of a kill: the test sees a sign of progress, and then a random delay passes."""

    name: str
    is_seen: Callable[[Path, Trace], object]
    """Called with the output, and the progress when the run started."""
    seconds: float
    """The longest delay."""


STARTS: Final = Moment("start", lambda _output, _before: True, 6.0)
MAKES_TABLE: Final = Moment(
    "image_scores is made", lambda output, before: trace(output).commits > before.commits, 1.0
)
RECORDS: Final = Moment("a commit to runs", lambda output, before: trace(output).runs > before.runs, 0.3)
SCORES: Final = Moment("a micro-batch begins", lambda output, before: trace(output).begun > before.begun, 2.5)
GOES_ON: Final = Moment("a micro-batch ends", lambda output, before: trace(output).ended > before.ended, 2.5)
FILTERS: Final = Moment(
    "a file of a filtered table", lambda output, before: trace(output).filtered > before.filtered, 1.0
)
ENDS: Final = Moment(
    # A run completes the row of the killed run, writes its own, and completes it.
    "the last commit to runs",
    lambda output, before: trace(output).runs >= before.runs + 3,
    0.3,
)
REPLACES: Final = Moment(
    "a commit to image_scores", lambda output, before: trace(output).commits > before.commits, 0.1
)


def reconciles(source: Source) -> Moment:
    """Return the moment after the last micro-batch, when a run looks for files that Spark skipped."""
    return Moment(
        "all is scored", lambda output, _: num_rows(output / "image_scores") >= source.num_streamed, 2.0
    )


def kill_at(
    command: Command,
    moment: Moment,
    output: Path,
    chance: random.Random,
    meanwhile: Callable[[], object] = lambda: None,
) -> str | None:
    """Kill a command at a moment; return the step it was at, or None if it had ended.

    Args:
        command: Just started.
        moment: The time of the kill.
        output: The command's output.
        chance: Source of the random delay.
        meanwhile: Called at the start, again and again while the command runs, and once it is killed.
    """
    meanwhile()
    before = trace(output)

    def is_seen() -> object:
        meanwhile()
        return moment.is_seen(output, before)

    command.until(is_seen)
    delay = chance.uniform(0, moment.seconds)
    if not command.kill(delay):
        return None
    meanwhile()
    return f"{stage(output, before)} ({moment.name} + {delay:.2f} s)"


SUMS: Final = ("nsfw_score", "embedding")
"""Columns whose last bits differ where a batch has another size."""


def exact(row: Row) -> Row:
    return {key: value for key, value in row.items() if key not in ("run_id", "scored_at", *SUMS)}


def assert_same(output: Path, expected: Path) -> None:
    """All tables have the same rows; only times and run_ids may differ."""
    for table in TABLES:
        found, wanted = rows(output / table), rows(expected / table)
        assert found.keys() == wanted.keys(), table
        for key, row in wanted.items():
            assert exact(found[key]) == exact(row)
            for column in SUMS:
                assert found[key][column] == pytest.approx(row[column], abs=1e-5)


def assert_accounted(output: Path, num_images: int) -> None:
    """The source, the tables and `runs` have the same number of images."""
    scores = rows(output / "image_scores")
    assert len(scores) == num_images
    assert sum(len(rows(output / table)) for table in FILTERED) == num_images
    counted: dict[str, int] = {}
    for row in runs(output):
        counted[row["run_id"]] = counted.get(row["run_id"], 0) + row["images"]
    assert len(counted) == len(runs(output)), "a run has two rows"
    there = [row["run_id"] for row in scores.values()]
    assert {run: there.count(run) for run in set(there)} == {run: n for run, n in counted.items() if n}
