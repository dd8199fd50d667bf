"""Damaged tables and checkpoints: nothing is lost without a message, and the advice repairs them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
from pyspark.sql import SparkSession

from nsfw_spark.errors import StorageError, TableError
from nsfw_spark.spark.checkpoints import checkpoint_id, last_accounted_batch
from nsfw_spark.spark.tables import Output
from tests.cluster.conftest import within
from tests.spark.conftest import BAD, GOOD, Run, Tables, image_id, meanwhile, write_files

FILTERED: Final = ("safe_images", "flagged_images", "quarantined_images")
FIRST: Final = 0
LAST: Final = -1
DEADLINE_SECONDS: Final = 300


def entries(output: Path, table: str) -> list[Path]:
    return sorted((output / table / "_delta_log").glob("*.json"))


def damage(output: Path, table: str, which: int, how: Callable[[Path], object]) -> Path:
    """Damage an entry of a table's log, as a store without checksums would return it; return its path.

    Delta has checksums of later entries, and a local disk has checksums of all files. Both are deleted.
    """
    for pattern in ("*.crc", ".*.crc"):
        for path in (output / table / "_delta_log").glob(pattern):
            path.unlink()
    entry = entries(output, table)[which]
    how(entry)
    return entry


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def garble(path: Path) -> None:
    path.write_bytes(b"\x00\xff no JSON at all\n" * 3)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def snapshot(output: Path) -> dict[str, int]:
    """Return the files of an output with their sizes, except the lock."""
    return {
        str(path.relative_to(output)): path.stat().st_size
        for path in output.rglob("*")
        if path.is_file() and path.name != "run.lock"
    }


def assert_complete(spark: SparkSession, images: Path, output: Path, *more: str) -> None:
    """Each file has its row, and each row is in one filtered table."""
    tables, names = Tables(spark, output), [*GOOD, *BAD, *more]
    assert set(tables.rows("image_scores")) == {image_id(images / name) for name in names}
    parts = [tables.rows(table) for table in FILTERED]
    assert sum(map(len, parts)) == len(names)
    assert len(parts[2]) == len(BAD)


def refusal(run: Run, images: Path, output: Path) -> str:
    """Return the message of a run that is refused and writes nothing."""
    before = snapshot(output)
    with pytest.raises(TableError) as refused:
        run(images, output)
    assert snapshot(output) == before
    assert "\n" not in str(refused.value)
    return str(refused.value)


DAMAGED: Final[dict[str, tuple[str, int, Callable[[Path], object]]]] = {
    "cut": ("image_scores", LAST, cut),
    "garbled": ("image_scores", LAST, garble),
    "the first is gone": ("image_scores", FIRST, Path.unlink),
    "one in the middle is gone": ("image_scores", 1, Path.unlink),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_log_of_image_scores_stops_a_run_before_it_writes(
    run: Run, images: Path, output: Path, name: str
) -> None:
    damage(output, *DAMAGED[name])
    said = refusal(run, images, output)
    assert f"{output}/image_scores` cannot be read, its log is damaged" in said
    assert "from a backup; else score all again into another --output" in said


def test_damaged_tables_that_can_be_made_again_are_all_named_and_are_made_again(
    spark: SparkSession, run: Run, images: Path, output: Path
) -> None:
    derived = {"safe_images": cut, "quarantined_images": garble, "runs": cut}
    for table, how in derived.items():
        damage(output, table, LAST, how)
    said = refusal(run, images, output)
    assert all(f"{output}/{table}` cannot be read, its log is damaged" in said for table in derived)
    assert said.count("delete the table") == len(derived)
    for table in derived:
        shutil.rmtree(output / table)
    assert run(images, output).counts.images == 0
    assert_complete(spark, images, output)


@pytest.mark.parametrize(
    ("num_lost", "how"),
    [
        pytest.param(1, Path.unlink, id="of skipped files, gone"),
        pytest.param(1, empty, id="of skipped files, empty", marks=pytest.mark.long),
        pytest.param(2, Path.unlink, id="of the stream too, gone", marks=pytest.mark.long),
        pytest.param(2, empty, id="of the stream too, empty"),
    ],
)
def test_commits_that_a_disk_lost_are_noticed_and_their_images_scored_again(
    spark: SparkSession, run: Run, images: Path, output: Path, num_lost: int, how: Callable[[Path], object]
) -> None:
    """The last commit has the files that Spark skips, the one before it is the stream's."""
    for _ in range(num_lost):
        damage(output, "image_scores", LAST if how is Path.unlink else -num_lost, how)
    options: dict[str, str] = {}
    if (num_lost, how) != (1, Path.unlink):
        said = refusal(run, images, output)
        assert "--rescore all" in said
        assert (
            "ends with micro-batch -1" if how is Path.unlink else "is empty: the rows that version"
        ) in said
        options = {"rescore": "all"}
    shutil.copy(images / "plain.png", images / "arrives.png")
    try:
        run(images, output, **options)
        assert_complete(spark, images, output, "arrives.png")
    finally:
        (images / "arrives.png").unlink()


def test_no_clock_but_the_stores_tells_whether_the_table_is_the_one_that_a_run_left(
    spark: SparkSession, output: Path
) -> None:
    (checkpoint,) = (path for path in (output / "_checkpoints").iterdir() if path.is_dir())
    runs = f"delta.`{output}/runs`"
    spark.sql(f"UPDATE {runs} SET started_at = started_at - INTERVAL 1 DAY")  # noqa: S608 - our own name
    of = Output(spark, str(output), str(output / "_checkpoints"))
    name = f"{checkpoint.name} {checkpoint_id(spark, str(checkpoint))}"
    assert last_accounted_batch(of, name) == 0


def test_a_table_that_was_deleted_without_its_checkpoint_is_told_of(
    spark: SparkSession, run: Run, images: Path, output: Path
) -> None:
    shutil.rmtree(output / "image_scores")
    assert "delete the checkpoint too" in refusal(run, images, output)
    shutil.rmtree(output / "_checkpoints")
    assert run(images, output).counts.images == len({**GOOD, **BAD})
    assert_complete(spark, images, output)


@pytest.mark.parametrize("part", ["", "metadata", "offsets", "sources"])
def test_a_checkpoint_that_was_deleted_between_two_runs_stops_the_second(
    run: Run, images: Path, output: Path, part: str
) -> None:
    (path,) = (output / "_checkpoints").glob(f"image_scores-*/{part}")
    path.unlink() if path.is_file() else shutil.rmtree(path)
    said = refusal(run, images, output)
    assert "all would be scored twice" in said
    assert "--rescore all" in said
    assert part in said


def test_a_checkpoint_that_is_deleted_during_a_run_stops_it_and_scoring_all_again_repairs(
    spark: SparkSession, run: Run, images: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"

    def delete() -> None:
        commits = "_checkpoints/image_scores-*/commits/1"
        assert within(DEADLINE_SECONDS, lambda: list(output.glob(commits)))
        for path in output.glob("_checkpoints/image_scores-*"):
            shutil.rmtree(path, ignore_errors=True)  # Spark may write into it at this moment

    with meanwhile(delete), pytest.raises(StorageError, match=r"somebody deleted it while.*--rescore all"):
        run(images, output, files_per_batch=3)
    (failed,) = Tables(spark, output).frame("runs").collect()
    assert failed.outcome == "interrupted"
    assert failed.images == Tables(spark, output).frame("image_scores").count()
    with pytest.raises(TableError, match="all would be scored twice"):
        run(images, output)
    run(images, output, rescore="all")
    assert_complete(spark, images, output)
    assert run(images, output).counts.images == 0


def test_a_micro_batch_that_adds_no_row_is_no_loss(score: Run, tmp_path: Path) -> None:
    images, output = write_files(tmp_path / "images", {"good.png": GOOD["plain.png"]}), tmp_path / "out"
    score(images, output)
    write_files(images, {"empty.png": b""})
    assert score(images, output).counts.images == 1
    assert score(images, output).counts.images == 0


def test_images_that_a_restore_took_away_are_missed_and_scored_again(
    spark: SparkSession, score: Run, tmp_path: Path
) -> None:
    images, output = write_files(tmp_path / "images", {"a.png": GOOD["plain.png"]}), tmp_path / "out"
    score(images, output)
    table = f"delta.`{output}/image_scores`"
    before = spark.sql(f"DESCRIBE HISTORY {table} LIMIT 1").collect()[0]
    write_files(images, {"b.png": GOOD["one+one.png"], "c.png": GOOD["100%.png"]})
    assert score(images, output).counts.images == 2
    last = len(Tables(spark, output).operations("image_scores")) - 1
    spark.sql(f"RESTORE TABLE {table} TO VERSION AS OF {before.version}")
    said = refusal(score, images, output)
    assert f"its version {last + 1} is a RESTORE" in said
    assert f"RESTORE it to version {last}, score files again with --rescore changed, or" in said
    spark.sql(f"RESTORE TABLE {table} TO VERSION AS OF {last}")
    assert score(images, output).counts.images == 0
    spark.sql(f"RESTORE TABLE {table} TO TIMESTAMP AS OF '{before.timestamp}'")
    assert f"its version {last + 3} is a RESTORE" in refusal(score, images, output)
    assert score(images, output, rescore="changed").counts.images == 2
    write_files(images, {"d.png": GOOD["it's.png"]})
    assert [score(images, output).counts.images for _ in range(2)] == [1, 0]
    assert set(Tables(spark, output).rows("image_scores")) == {image_id(path) for path in images.iterdir()}
