"""Commands are killed while somebody reads the tables, or runs at the same time: nobody sees half a table."""

from __future__ import annotations

import gzip
import os
import random
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest

from tests.cluster.commands import FILTERED, TABLES, ids, num_commits, rows, running, runs, steps
from tests.cluster.kills import (
    FILTERS,
    GOES_ON,
    NUM_IN_CUT,
    REPLACES,
    SCORES,
    SEED,
    THRESHOLD,
    Moment,
    Source,
    Undisturbed,
    assert_accounted,
    assert_same,
    cut_tar,
    image,
    kill_at,
    tar,
    trace,
    write_files,
)

pytestmark = pytest.mark.usefixtures("own_tmpdir")


def test_of_two_runs_at_once_the_second_is_refused_and_the_first_ends_well(
    undisturbed: Undisturbed, tmp_path: Path
) -> None:
    source, output = undisturbed.sources["files"], tmp_path / "out"
    arguments = undisturbed.in_small_batches(source, output)
    with running(tmp_path / "first", *arguments) as first:
        first.until(lambda: trace(output).begun)
        first.signal(signal.SIGSTOP)  # so that it is still there when the second looks
        before = sorted(output.rglob("*"))
        with running(tmp_path / "second", *arguments) as second:
            assert second.end(2) == {}
            refusal = second.stderr().splitlines()[-1]
            assert "another run writes to this output: since 2" in refusal
            assert f"process {first.process.pid};" in refusal
            assert "Traceback" not in second.stderr()
        assert sorted(output.rglob("*")) == before
        first.signal(signal.SIGCONT)
        first.end()
    assert_same(output, undisturbed.output("files"))
    assert_accounted(output, source.num_images)


@pytest.mark.long
@pytest.mark.parametrize("moment", [SCORES, GOES_ON, FILTERS], ids=lambda moment: moment.name)
def test_a_run_that_was_suspended_until_another_took_over_stops_and_leaves_nothing_twice(
    undisturbed: Undisturbed, tmp_path: Path, moment: Moment
) -> None:
    source, output = undisturbed.sources["files"], tmp_path / "out"
    # A file system without locks: the run holds a lease, as on an object store.
    settings = {"spark.hadoop.fs.viewfs.mounttable.remote.link./data": tmp_path.as_uri()}
    arguments = undisturbed.in_small_batches(source, Path("OUT"))
    arguments[arguments.index("OUT")] = "viewfs://remote/data/out"
    lease, before = output / "_checkpoints" / "run.lock", trace(output)
    with running(tmp_path / "first", *arguments, settings=settings) as first:
        first.until(lambda: moment.is_seen(output, before))
        first.signal(signal.SIGSTOP)
        assert not first.is_over
        os.utime(lease, (time.time() - 1000,) * 2)  # as after a quarter of an hour
        with running(tmp_path / "second", *arguments, settings=settings) as second:
            second.end()
        first.signal(signal.SIGCONT)
        assert first.end(2) == {}
        said = first.stderr().splitlines()[-1]
        assert "another run took over this output" in said
        assert said.endswith("run the same command again")
        assert "Traceback" not in first.stderr()
    assert_same(output, undisturbed.output("files"))
    assert_accounted(output, source.num_images)


Content = frozenset[tuple[str, str, float | None]]


def content(table: Path) -> Content:
    return frozenset((key, row["status"], row["nsfw_score"]) for key, row in rows(table).items())


class Reader:
    """Reads all tables again and again, as a training job might, for a third of the time at most."""

    def __init__(self, output: Path) -> None:
        self._output = output
        self._next = 0.0
        self.seen: dict[str, set[Content]] = {table: set() for table in TABLES}

    def __call__(self) -> bool:
        """Read; return False, so that a command can be waited for."""
        begun = time.monotonic()
        if begun >= self._next:
            for table, seen in self.seen.items():
                seen.add(content(self._output / table))
            now = time.monotonic()
            self._next = now + 2 * (now - begun)
        return False


def killed_under_a_reader(
    folder: Path, output: Path, arguments: Sequence[str], moments: list[Moment], changed: set[str]
) -> None:
    """Kill a command at each moment, then let it end: readers see all of before, or all of after."""
    chance, before = random.Random(SEED), {table: content(output / table) for table in TABLES}  # noqa: S311
    reader = Reader(output)
    for moment in moments:
        with running(folder / "cwd", *arguments) as command:
            where = kill_at(command, moment, output, chance, meanwhile=reader)
            assert where is not None, moment.name
            print(f"\nKILL_SEED={SEED} kill: {where}")  # noqa: T201
    with running(folder / "cwd", *arguments) as command:
        command.until(reader)
        command.end()
    for table, seen in reader.seen.items():
        after = content(output / table)
        assert seen <= {before[table], after}, table
        assert after != before[table] or table not in changed, table


@pytest.mark.long
def test_a_filter_that_is_killed_never_shows_half_a_table(undisturbed: Undisturbed, tmp_path: Path) -> None:
    output = shutil.copytree(undisturbed.output("files"), tmp_path / "out")
    scores = [row["nsfw_score"] for row in rows(output / "image_scores").values() if row["status"] == "ok"]
    threshold = sorted(scores)[len(scores) // 4]
    assert threshold < THRESHOLD
    arguments = ["filter", str(output), "--threshold", str(threshold)]
    changed = {"safe_images", "flagged_images"}
    killed_under_a_reader(tmp_path, output, arguments, [FILTERS, FILTERS], changed)
    safe = {key for key, row in rows(output / "image_scores").items() if (row["nsfw_score"] or 1) < threshold}
    assert ids(output / "safe_images") == safe
    assert len(safe) == len(scores) // 4


@pytest.mark.long
def test_rescoring_all_survives_kills_before_and_after_its_rows_take_their_place(
    undisturbed: Undisturbed, tmp_path: Path
) -> None:
    source, output = (
        undisturbed.sources["files"],
        shutil.copytree(undisturbed.output("files"), tmp_path / "out"),
    )
    # A quarter of the micro-batches: a later run replaces the rows of a killed one all the same.
    more = ("--rescore", "all", "--files-per-batch", 4 * source.files_per_batch)
    arguments = undisturbed.arguments(source, output, *more, card=undisturbed.other_card)
    changed = {"image_scores", *FILTERED[:2]}
    killed_under_a_reader(tmp_path, output, arguments, [GOES_ON, REPLACES], changed)
    assert_same(output, undisturbed.output("files", undisturbed.other_card))
    counted = {row["run_id"]: row["images"] for row in runs(output)}
    there = [row["run_id"] for row in rows(output / "image_scores").values()]
    assert {run: there.count(run) for run in set(there)}.items() <= counted.items()
    assert len(counted) == len(runs(output))


@pytest.mark.long
def test_rescoring_changed_files_survives_kills(undisturbed: Undisturbed, tmp_path: Path) -> None:
    source, output, fresh = write_files(tmp_path / "images"), tmp_path / "out", tmp_path / "fresh"
    changed = range(0, source.num_images, 5)
    for i in changed:  # some become bad, some good, none empty: Spark lists no empty files
        path = tmp_path / "changed" / f"{i % 4}" / f"{i:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image(i + 2))
        os.utime(path, (2e9 + i, 2e9 + i))
    first, undisturbed_run = steps(
        tmp_path / "cwd",
        undisturbed.arguments(source, output),
        ("cp", "-r", "--preserve=timestamps", f"{tmp_path / 'changed'}/.", source.folder),
        undisturbed.arguments(source, fresh),
    )
    assert (first.status, undisturbed_run.status) == (0, 0), first.stderr + undisturbed_run.stderr
    before, num_at_first = rows(output / "image_scores"), num_files(output)
    writes = Moment("a file of image_scores", lambda out, _: num_files(out) > num_at_first, 0.5)
    arguments = undisturbed.arguments(source, output, "--rescore", "changed")
    killed_under_a_reader(tmp_path, output, arguments, [writes, REPLACES], {"image_scores"})
    assert_same(output, fresh)
    after = rows(output / "image_scores")
    assert sum(after[key] != row for key, row in before.items()) == len(changed)


def num_files(output: Path) -> int:
    return sum(1 for path in (output / "image_scores").rglob("*.parquet"))


NIGHTS: Final[list[tuple[int, dict[str, bytes]]]] = [
    (5 + 4, {"1/a.tar": tar(0, 5), "1/b.tar": tar(10, 4)}),
    (NUM_IN_CUT + 6, {"2/bad.tar": cut_tar(), "2/c.tar.gz": gzip.compress(tar(20, 6))}),
    (3 + 1 + 2, {"3/d.tar": tar(30, 3), "3/empty.tar": b"", "e.tar": tar(40, 2)}),
    (0, {}),
]
"""Expected new rows, and the tars that arrive before each run."""


@pytest.mark.long
def test_a_run_each_night_takes_up_what_arrived_and_a_bad_tar_stops_nothing(
    undisturbed: Undisturbed, tmp_path: Path
) -> None:
    folder, output = tmp_path / "tars", tmp_path / "out"
    folder.mkdir()
    commands: list[Sequence[object]] = []
    for night, (_, arrivals) in enumerate(NIGHTS):
        for name, content in arrivals.items():
            path = tmp_path / f"{night}" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        (tmp_path / f"{night}").mkdir(exist_ok=True)
        commands += [
            ("cp", "-r", f"{tmp_path / str(night)}/.", folder),
            undisturbed.arguments(Source(folder, 1, 0, 0), output),
            ("cp", "-r", output, tmp_path / f"out{night}"),
        ]
    ends = steps(tmp_path / "cwd", *commands)
    num_images, commits = 0, []
    for night, ((num_new, _), step) in enumerate(zip(NIGHTS, ends, strict=True)):
        assert step.status == 0, step.stderr
        assert step.result["images"] == num_new
        num_images += num_new
        assert_accounted(tmp_path / f"out{night}", num_images)
        commits.append([num_commits(tmp_path / f"out{night}" / table) for table in TABLES])
    assert commits[-1] == commits[-2]
    assert len(runs(output)) == len(NIGHTS)
    bad = rows(output / "quarantined_images")[f"file:{folder}/2/bad.tar"]
    assert (bad["status"], bad["nsfw_score"]) == ("undecodable", None)
    assert "the tar is readable up to byte" in bad["error"]
