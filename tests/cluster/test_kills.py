"""The whole driver is killed, again and again: the tables in the end are those of an undisturbed run."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import secrets
import shutil
import signal
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tests.cluster.commands import (
    FILTERED,
    SEVERAL,
    TABLES,
    Moment,
    Row,
    ids,
    kill_at,
    num_commits,
    num_rows,
    rows,
    running,
    runs,
    trace,
)
from tests.conftest import jpeg, png
from tests.fakes import card_content

THRESHOLD: Final = 0.002
"""About half of the images score less."""
BAD: Final = (b"", b"Only its name says so.", jpeg()[:400], b"%PDF-1.7 ...", b"")
SEED: Final = int(os.environ.get("KILL_SEED", "0")) or secrets.randbits(32)
"""Of what is drawn by chance; KILL_SEED repeats it."""


@dataclass(frozen=True)
class Source:
    """Images to be scored."""

    folder: Path
    files_per_batch: int
    num_images: int
    """Rows that image_scores is to have."""
    num_streamed: int
    """Of these, rows from micro-batches; the rest are files that Spark passes over."""


def image(number: int) -> bytes:
    """One in six is bad."""
    return BAD[number // 6 % len(BAD)] if number % 6 == 5 else png(seed=number)


def write_files(folder: Path) -> Source:
    num = 48
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
"""Rows of the tar that is cut: two images, and one that says where it ends."""


def cut_tar() -> bytes:
    return tar(200, 5)[:15_000]


def write_tars(folder: Path) -> Source:
    tars = {f"{i}.tar": tar(10 * i, 5) for i in range(5)}
    tars |= {"cut.tar": cut_tar(), "empty.tar": b"", "packed.tar.gz": gzip.compress(tar(300, 4))}
    folder.mkdir()
    for name, content in tars.items():
        (folder / name).write_bytes(content)
    num_streamed = 5 * 5 + NUM_IN_CUT + 4
    return Source(folder, 1, num_streamed + 1, num_streamed)


def write_parquet(folder: Path) -> Source:
    folder.mkdir()
    for i in range(6):
        contents = [image(j) or None for j in range(10 * i, 10 * i + 8)]
        images = [{"bytes": content, "path": f"{i}.png"} for content in contents]
        table = pa.table({"image": images, "text": [f"number {j}" for j in range(8)]})
        pq.write_table(table, folder / f"{i}.parquet", row_group_size=3)
    damaged = folder / "4.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-20])
    return Source(folder, 1, 5 * 8 + 1, 5 * 8 + 1)


@dataclass(frozen=True)
class Place:
    """Where the tests of this file work."""

    folder: Path
    card: Path
    sources: dict[str, Source]

    def arguments(self, source: Source, output: Path, *more: object, card: Path | None = None) -> list[str]:
        """Return the command line of a run."""
        model = ["--model", card or self.card, "--allow-random-weights", "--device", "cpu"]
        limits = ["--max-error-rate", 1, "--threshold", THRESHOLD]
        return [*map(str, ["run", source.folder, "--output", output, *model, *limits, *more])]

    def in_small_batches(self, source: Source, output: Path, *more: object) -> list[str]:
        """Return the command line of a run with many micro-batches."""
        return self.arguments(source, output, "--files-per-batch", source.files_per_batch, *more)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("kills")
    for name, seed in (("sampled", 1), ("other", 2)):
        content = card_content(name=name, encoder={"weights": {"random": seed}})
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    writers = {"files": write_files, "tars": write_tars, "parquet": write_parquet}
    sources = {name: write(folder / name) for name, write in writers.items()}
    # The hosts' sockets lie there, whose names must be short.
    short = tempfile.TemporaryDirectory(prefix="k", dir="/tmp", ignore_cleanup_errors=True)
    with short as directory, pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", directory)
        yield Place(folder, folder / "sampled.yaml", sources)


@pytest.fixture(scope="module")
def undisturbed(place: Place) -> dict[str, Path]:
    """Outputs of runs that nobody disturbed, in one process and in other batches."""
    outputs = {name: place.folder / "undisturbed" / name for name in [*place.sources, "other"]}
    commands = [place.arguments(source, outputs[name]) for name, source in place.sources.items()]
    other = place.card.with_name("other.yaml")
    commands.append(place.arguments(place.sources["files"], outputs["other"], card=other))
    with running(place.folder / "cwd", json.dumps(commands), code=SEVERAL) as command:
        command.end()
    return outputs


def assert_same(output: Path, expected: Path) -> None:
    """Row for row the same in all tables, but for what says when and by which run."""
    for table in TABLES:
        found, wanted = rows(output / table), rows(expected / table)
        assert found.keys() == wanted.keys(), table
        for key, row in wanted.items():
            assert exact(found[key]) == exact(row)
            for column in SUMS:
                assert found[key][column] == pytest.approx(row[column], abs=1e-5)


SUMS: Final = ("nsfw_score", "embedding")
"""Columns whose last bits come out differently where a batch has another size."""


def exact(row: Row) -> Row:
    return {key: value for key, value in row.items() if key not in ("run_id", "scored_at", *SUMS)}


def assert_accounted(output: Path, num_images: int) -> None:
    """The counts of `runs`, of the tables and of the source are one."""
    scores = rows(output / "image_scores")
    assert len(scores) == num_images
    assert sum(len(rows(output / table)) for table in FILTERED) == num_images
    counted: dict[str, int] = {}
    for row in runs(output):
        counted[row["run_id"]] = counted.get(row["run_id"], 0) + row["images"]
    assert len(counted) == len(runs(output)), "a run has two rows"
    there = [row["run_id"] for row in scores.values()]
    assert {run: there.count(run) for run in set(there)} == {run: n for run, n in counted.items() if n}


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
    # The row of the killed run is completed, this run's is written, and completed.
    "the last commit to runs",
    lambda output, before: trace(output).runs >= before.runs + 3,
    0.3,
)


def reconciles(source: Source) -> Moment:
    """All but what Spark passed over has been written."""
    return Moment(
        "all is scored", lambda output, _: num_rows(output / "image_scores") >= source.num_streamed, 2.0
    )


def killed_again_and_again(
    place: Place, source: Source, output: Path, moments: Sequence[Moment]
) -> list[str]:
    """Run with a kill at each moment; return what the kills hit."""
    hit: list[str] = []
    chance = random.Random(SEED)  # noqa: S311 - to be repeated, not to be secret
    print(f"\nKILL_SEED={SEED}")  # noqa: T201 - shown where a test fails, and with -s
    for moment in moments:
        with running(place.folder / "cwd", *place.in_small_batches(source, output)) as command:
            where = kill_at(command, moment, output, chance)
        print(f"kill {len(hit) + 1}: {where or f'none: it ended before {moment.name}'}")  # noqa: T201
        hit += [] if where is None else [where]
    return hit


def moments(source: Source) -> list[Moment]:
    """Return when runs over a source are killed, from Spark's start to the end of the row in `runs`."""
    middle = [SCORES, GOES_ON, reconciles(source), FILTERS]
    if source.folder.name != "files":
        return middle
    return [STARTS, MAKES_TABLE, SCORES, RECORDS, GOES_ON, SCORES, *middle[1:], ENDS]


@pytest.mark.parametrize("name", ["files", "tars", "parquet"])
def test_a_run_that_is_killed_again_and_again_ends_as_an_undisturbed_one(
    place: Place, undisturbed: dict[str, Path], name: str
) -> None:
    source, output = place.sources[name], place.folder / "killed" / name
    hit = killed_again_and_again(place, source, output, moments(source))
    # Whoever ends before it can be killed is killed at its start, where nothing can be missed.
    hit += killed_again_and_again(place, source, output, [STARTS] * (len(moments(source)) - len(hit)))
    assert len(hit) == len(moments(source))
    begun = [where for where in hit if where.startswith(("in micro-batch", "after ", "filtering"))]
    assert len(begun) >= len(hit) / 2
    with running(place.folder / "cwd", *place.in_small_batches(source, output)) as command:
        command.end()
    assert_same(output, undisturbed[name])
    assert_accounted(output, source.num_images)
    assert_accounted(undisturbed[name], source.num_images)


def test_of_two_runs_at_once_the_second_is_refused_and_the_first_ends_well(
    place: Place, undisturbed: dict[str, Path]
) -> None:
    source, output = place.sources["files"], place.folder / "at once"
    arguments = place.in_small_batches(source, output)
    with running(place.folder / "first", *arguments) as first:
        first.until(lambda: trace(output).begun)
        first.signal(signal.SIGSTOP)  # so that it is there for as long as the second needs
        before = sorted(output.rglob("*"))
        with running(place.folder / "second", *arguments) as second:
            assert second.end(2) == {}
            refusal = second.told().splitlines()[-1]
            assert "another run writes to this output: since 2" in refusal
            assert f"process {first.process.pid};" in refusal
            assert "Traceback" not in second.told()
        assert sorted(output.rglob("*")) == before
        first.signal(signal.SIGCONT)
        first.end()
    assert_same(output, undisturbed["files"])
    assert_accounted(output, source.num_images)


Content = frozenset[tuple[str, str, float | None]]


def content(table: Path) -> Content:
    return frozenset((key, row["status"], row["nsfw_score"]) for key, row in rows(table).items())


class Reader:
    """Reads all tables again and again, as somebody would who trains on them at this moment."""

    def __init__(self, output: Path) -> None:
        self._output = output
        self.seen: dict[str, set[Content]] = {table: set() for table in TABLES}

    def __call__(self) -> bool:
        """Read; False, so that one can wait for it for as long as a command runs."""
        for table, seen in self.seen.items():
            seen.add(content(self._output / table))
        return False


def killed_under_a_reader(
    place: Place, output: Path, arguments: Sequence[str], moments: list[Moment], changed: set[str]
) -> None:
    """Kill a command at each moment, then let it end: readers see all of before, or all of after."""
    chance, before = random.Random(SEED), {table: content(output / table) for table in TABLES}  # noqa: S311
    reader = Reader(output)
    for moment in moments:
        with running(place.folder / "cwd", *arguments) as command:
            where = kill_at(command, moment, output, chance, meanwhile=reader)
            assert where is not None, moment.name
            print(f"\nkill: {where}")  # noqa: T201
    with running(place.folder / "cwd", *arguments) as command:
        command.until(reader)
        command.end()
    for table, seen in reader.seen.items():
        after = content(output / table)
        assert seen <= {before[table], after}, table
        assert after != before[table] or table not in changed, table


def test_a_filter_that_is_killed_never_shows_half_a_table(
    place: Place, undisturbed: dict[str, Path], tmp_path: Path
) -> None:
    output = shutil.copytree(undisturbed["files"], tmp_path / "out")
    scores = [row["nsfw_score"] for row in rows(output / "image_scores").values() if row["status"] == "ok"]
    threshold = sorted(scores)[len(scores) // 4]
    assert threshold < THRESHOLD
    arguments = ["filter", str(output), "--threshold", str(threshold)]
    killed_under_a_reader(place, output, arguments, [FILTERS, FILTERS], {"safe_images", "flagged_images"})
    safe = {key for key, row in rows(output / "image_scores").items() if (row["nsfw_score"] or 1) < threshold}
    assert ids(output / "safe_images") == safe
    assert len(safe) == len(scores) // 4


REPLACES: Final = Moment(
    "a commit to image_scores", lambda output, before: trace(output).commits > before.commits, 0.1
)


def test_rescoring_all_survives_kills_before_and_after_its_rows_take_their_place(
    place: Place, undisturbed: dict[str, Path], tmp_path: Path
) -> None:
    source, output = place.sources["files"], shutil.copytree(undisturbed["files"], tmp_path / "out")
    # A quarter of the micro-batches: what is killed is put in place by a later run all the same.
    more = ("--rescore", "all", "--files-per-batch", 4 * source.files_per_batch)
    arguments = place.arguments(source, output, *more, card=place.card.with_name("other.yaml"))
    killed_under_a_reader(place, output, arguments, [GOES_ON, REPLACES], {"image_scores", *FILTERED[:2]})
    assert_same(output, undisturbed["other"])
    counted = {row["run_id"]: row["images"] for row in runs(output)}
    there = [row["run_id"] for row in rows(output / "image_scores").values()]
    assert {run: there.count(run) for run in set(there)}.items() <= counted.items()
    assert len(counted) == len(runs(output))


def test_rescoring_changed_files_survives_kills(place: Place, tmp_path: Path) -> None:
    source, output = write_files(tmp_path / "images"), tmp_path / "out"
    arguments = place.arguments(source, output, "--rescore", "changed")
    with running(place.folder / "cwd", *arguments) as command:
        command.end()
    before = rows(output / "image_scores")
    changed = range(0, source.num_images, 5)
    for i in changed:  # some become bad, some good, none empty: Spark lists no such files
        path = source.folder / f"{i % 4}" / f"{i:03}.png"
        path.write_bytes(image(i + 2))
        os.utime(path, (2e9 + i, 2e9 + i))
    writes = Moment("a file of image_scores", lambda out, _: num_files(out) > num_at_first, 0.5)
    num_at_first = num_files(output)
    killed_under_a_reader(place, output, arguments, [writes, REPLACES], {"image_scores"})
    fresh = place.arguments(source, tmp_path / "fresh")
    with running(place.folder / "cwd", *fresh) as command:
        command.end()
    assert_same(output, tmp_path / "fresh")
    after = rows(output / "image_scores")
    assert sum(after[key] != row for key, row in before.items()) == len(changed)


def num_files(output: Path) -> int:
    return sum(1 for path in (output / "image_scores").rglob("*.parquet"))


NIGHTS: Final[list[dict[str, bytes]]] = [
    {"1/a.tar": tar(0, 5), "1/b.tar": tar(10, 4)},
    {"2/bad.tar": cut_tar(), "2/c.tar.gz": gzip.compress(tar(20, 6))},
    {"3/d.tar": tar(30, 3), "3/empty.tar": b"", "e.tar": tar(40, 2)},
    {},
]


def test_a_run_each_night_takes_up_what_arrived_and_a_bad_tar_stops_nothing(
    place: Place, tmp_path: Path
) -> None:
    folder, output = tmp_path / "tars", tmp_path / "out"
    arguments = place.arguments(Source(folder, 1, 0, 0), output)
    commits: list[list[int]] = []
    for night, arrivals in enumerate(NIGHTS):
        for name, content in arrivals.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        with running(tmp_path / "cwd", *arguments) as command:
            result = command.end()
        expected = [9, NUM_IN_CUT + 6, 3 + 1 + 2, 0]
        assert result["images"] == expected[night]
        assert_accounted(output, sum(expected[: night + 1]))
        commits.append([num_commits(output / table) for table in TABLES])
    assert commits[-1] == commits[-2]
    assert len(runs(output)) == len(NIGHTS)
    bad = rows(output / "quarantined_images")[f"file:{folder}/2/bad.tar"]
    assert (bad["status"], bad["nsfw_score"]) == ("undecodable", None)
    assert "the tar is readable up to byte" in bad["error"]
