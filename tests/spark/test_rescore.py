"""Changed and deleted files: only the options score them again, or delete their rows."""

from __future__ import annotations

import math
import os
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from pyspark.sql import DataFrame, Row, SparkSession
from pyspark.sql import functions as F

from nsfw_spark.errors import ConfigError, InputError, TableError
from nsfw_spark.options import job_options
from nsfw_spark.spark.rescore import Files, follow_changes, in_commits
from nsfw_spark.spark.sources import Limit, ListedFiles, SourceOptions, files, is_below, open_source
from nsfw_spark.spark.tables import Output
from tests.conftest import png
from tests.spark.conftest import Run, Tables, image_id, write_files
from tests.spark.test_sources import image_table, samples, tar

FILTERED = ("safe_images", "flagged_images", "quarantined_images")
IMAGES = {f"{i}.png": png(seed=i) for i in range(4)} | {"empty.png": b"", "text.png": b"text"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_files(tmp_path / "images", IMAGES)


@pytest.fixture
def tables(spark: SparkSession, tmp_path: Path) -> Tables:
    return Tables(spark, tmp_path / "out")


def change(path: Path, content: bytes) -> None:
    """Write other bytes, a minute later."""
    before = path.stat().st_mtime
    path.write_bytes(content)
    os.utime(path, (before + 60, before + 60))


def is_consistent(tables: Tables) -> bool:
    parts = [set(tables.rows(name)) for name in FILTERED]
    return set().union(*parts) == set(tables.rows("image_scores")) and sum(map(len, parts)) == len(
        set().union(*parts)
    )


def test_a_changed_file_keeps_its_score_until_it_is_asked_for(
    run: Run, folder: Path, tables: Tables, tmp_path: Path
) -> None:
    run(folder, tmp_path / "out")
    before = tables.rows("image_scores")
    change(folder / "1.png", png(seed=50))
    change(folder / "text.png", png(seed=51))
    change(folder / "empty.png", png(seed=52))
    run(folder, tmp_path / "out")
    assert tables.rows("image_scores") == before

    summary = run(folder, tmp_path / "out", rescore="changed")
    after = tables.rows("image_scores")
    assert summary.counts.images == summary.counts.ok == 3
    assert after.keys() == before.keys()
    changed = {image_id(folder / name) for name in ("1.png", "text.png", "empty.png")}
    assert {key for key in before if after[key] != before[key]} == changed
    assert all(after[key].status == "ok" for key in changed)
    assert is_consistent(tables)

    versions = tables.operations("image_scores")
    assert run(folder, tmp_path / "out", rescore="changed").counts.images == 0
    assert tables.operations("image_scores") == versions


def test_a_driver_that_lives_for_many_runs_keeps_nothing_of_one(
    spark: SparkSession, score: Run, folder: Path, tmp_path: Path
) -> None:
    """A job that Spark's scheduler keeps holds whole tables in the driver's memory."""
    kept = spark._jsc.sc().dagScheduler().activeQueryToJobs()
    before = kept.size()
    score(folder, tmp_path / "out")  # of which empty.png is passed over
    change(folder / "1.png", png(seed=50))
    (folder / "2.png").unlink()
    assert score(folder, tmp_path / "out", rescore="changed", prune=True, prune_limit=1).counts.images == 1
    assert kept.size() == before


def test_a_file_that_came_again_after_it_was_missed_is_scored(
    run: Run, folder: Path, tables: Tables, tmp_path: Path
) -> None:
    run(folder, tmp_path / "out")
    (folder / "2.png").unlink()
    run(folder, tmp_path / "out", prune=True, prune_limit=1)
    write_files(folder, {"2.png": png(seed=2)})
    run(folder, tmp_path / "out")
    assert image_id(folder / "2.png") not in tables.rows("image_scores")
    run(folder, tmp_path / "out", rescore="changed")
    assert tables.rows("image_scores")[image_id(folder / "2.png")].status == "ok"


def test_large_files_are_replaced_by_several_commits() -> None:
    files = [Row(length=length) for length in (4, 5, 20, 1, 0, 9, 1)]
    commits = [[file.length for file in chunk] for chunk in in_commits(files, 10)]
    assert commits == [[4, 5], [20], [1, 0, 9], [1]]
    assert list(in_commits(files, math.inf)) == [files]
    assert list(in_commits([], 10)) == []


def test_all_images_of_a_changed_tar_are_replaced(run: Run, tables: Tables, tmp_path: Path) -> None:
    folder = write_files(tmp_path / "tars", {"a.tar": tar(samples(0, 3)), "b.tar": tar(samples(5, 2))})
    run(folder, tmp_path / "out")
    before = tables.rows("image_scores")
    change(folder / "a.tar", tar(samples(1, 1) + samples(8, 1)))
    run(folder, tmp_path / "out", rescore="changed")
    after = tables.rows("image_scores")
    names = {key.rpartition("/")[2] for key in after}
    assert names == {"0001.png", "0008.png", "0005.png", "0006.png"}
    assert all(after[key] == row for key, row in before.items() if "b.tar" in key)
    assert is_consistent(tables)


def test_rows_of_deleted_files_go_only_when_they_are_pruned(
    run: Run, folder: Path, tables: Tables, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    other = write_files(tmp_path / "other", {"kept.png": png(seed=9)})
    run(folder, tmp_path / "out")
    run(other, tmp_path / "out")
    (folder / "0.png").unlink()
    (folder / "text.png").unlink()
    run(folder, tmp_path / "out")
    assert len(tables.rows("image_scores")) == len(IMAGES) + 1
    run(folder, tmp_path / "out", prune=True, prune_limit=1)
    left = {image_id(folder / name) for name in IMAGES if name not in ("0.png", "text.png")}
    assert set(tables.rows("image_scores")) == left | {image_id(other / "kept.png")}
    assert "deleted 2 rows" in capfd.readouterr().err
    assert is_consistent(tables)


def test_a_directory_that_is_empty_today_is_no_error_and_its_last_rows_can_be_pruned(
    score: Run, tables: Tables, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, output = tmp_path / "tables", tmp_path / "out"
    folder.mkdir()
    options = {"format": "parquet", "carry": "caption"}
    pq.write_table(image_table(0, 2), folder / "a.parquet")
    score(folder, output, **options)
    (folder / "a.parquet").unlink()
    assert score(folder, output, **options).counts.images == 0
    with pytest.raises(InputError, match="holds no file"):
        score(folder, output, **options, rescore="all")
    folder.rmdir()
    with pytest.raises(InputError, match="cannot be read"):
        score(folder, output, **options)
    monkeypatch.setattr(files, "_WITHOUT_DIRECTORIES", ("/",))  # as if they were in a store
    with pytest.raises(TableError, match="--prune-limit"):
        score(folder, output, **options, prune=True)
    assert len(tables.rows("image_scores")) == 2
    score(folder, output, **options, prune=True, prune_limit=1)
    assert not tables.rows("image_scores")


def test_pruning_touches_only_what_this_source_could_have_made(
    run: Run, folder: Path, tables: Tables, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    write_files(folder, {"shard.tar": tar(samples(0, 3))})
    run(folder, output, format="webdataset")
    run(folder, output, format="files", glob="*.png")
    before = tables.rows("image_scores")
    for format_, glob in (("webdataset", None), ("files", "*.png"), ("files", "1.*"), ("files", "[12].p?g")):
        run(folder, output, format=format_, glob=glob, prune=True)
        assert tables.rows("image_scores").keys() == before.keys()
    for i in range(2):
        (folder / f"{i}.png").unlink()
    with pytest.raises(TableError, match=r"would delete 2 of 6 rows.* --prune-limit 0.1"):
        run(folder, output, format="files", glob="*.png", prune=True)
    assert tables.rows("image_scores").keys() == before.keys()
    run(folder, output, format="files", glob="*.png", prune=True, prune_limit=0.5)
    assert len(tables.rows("image_scores")) == len(before) - 2


@pytest.mark.parametrize("root", ["s3a://bucket/", "abfss://box@account/"])
def test_what_lies_below_the_root_of_a_bucket_is_known(spark: SparkSession, root: str) -> None:
    files = [f"{root}a.png", f"{root}b/c.png", f"{root[:-1]}-2/a.png"]
    frame = spark.createDataFrame([(file,) for file in files], "file string")
    below = frame.filter(is_below(frame["file"], root)).collect()
    assert [row.file for row in below] == files[:2]


def test_what_storage_failed_to_give_is_tried_again_by_three_runs(
    spark: SparkSession, run: Run, folder: Path, tables: Tables, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    run(folder, output)
    lose(spark, output, "storage failed: no answer")
    assert run(folder, output).counts.images == 1
    assert tables.rows("image_scores")[image_id(folder / "1.png")].status == "ok"
    assert run(folder, output).counts.images == 0
    lose(spark, output, "storage failed three times: no answer")
    assert run(folder, output).counts.images == 0
    assert is_consistent(tables)


def test_images_of_a_tar_that_storage_fails_to_give_again_keep_their_rows(
    spark: SparkSession, score: Run, tables: Tables, tmp_path: Path
) -> None:
    folder = write_files(tmp_path / "tars", {"a.tar": tar(samples(0, 3)), "b.tar": tar(samples(5, 1))})
    score(folder, tmp_path / "out")
    before = tables.rows("image_scores")
    output = Output(spark, str(tmp_path / "out"), None)

    def half_read(listed: DataFrame) -> DataFrame:
        """Return a row of an image that could be read again, and the row of its tar."""
        rows = output.table("image_scores").join(listed, F.col("source_file") == listed["path"], "left_semi")
        tar_row = {
            "image_id": F.col("source_file"),
            "status": F.lit("missing"),
            "error": F.lit("storage failed: no answer"),
            "nsfw_score": F.lit(None).cast("float"),
            "embedding": F.lit(None).cast("array<float>"),
        }
        first = rows.filter(F.col("image_id").endswith("0000.png")).withColumn("run_id", F.lit("night 2"))
        return first.unionByName(first.withColumns(tar_row))

    change(folder / "a.tar", tar(samples(0, 3)))
    options = job_options({"output": output.location, "rescore": "changed"})
    source = open_source(spark, SourceOptions(str(folder), format="webdataset"))
    assert isinstance(source, ListedFiles)
    follow_changes(output, Files(source, Limit(100), half_read), options, "night 2")
    after = tables.rows("image_scores")
    lost = f"file:{folder}/a.tar"
    assert after.keys() == {*before, lost}
    assert after[lost].status == "missing"
    again = f"{lost}!/0000.png"
    assert after[again].run_id == "night 2"
    assert all(after[key] == row for key, row in before.items() if key != again)


def lose(spark: SparkSession, output: Path, error: str) -> None:
    """Change the row of 1.png to that of a file that storage failed to give to the last run."""
    values = f"status = 'missing', error = '{error}', nsfw_score = NULL, embedding = NULL"
    scores, runs = (f"delta.`{output}/{table}`" for table in ("image_scores", "runs"))
    spark.sql(f"UPDATE {scores} SET {values} WHERE image_id LIKE '%/1.png'")  # noqa: S608 - our own names
    spark.sql(f"UPDATE {runs} SET files_lost = 1")  # noqa: S608


def generation(spark: SparkSession, output: Path) -> str:
    detail = spark.sql(f"DESCRIBE DETAIL delta.`{output}/image_scores`").collect()[0]
    return str(detail.properties["nsfw_spark.generation"])


def test_rescoring_all_begins_a_new_version(
    spark: SparkSession, run: Run, folder: Path, tables: Tables, tmp_path: Path, other_card_file: str
) -> None:
    output = tmp_path / "out"
    run(folder, output)
    before = tables.rows("image_scores")
    version = len(tables.operations("image_scores")) - 1
    with pytest.raises(TableError, match="do not compare"):
        run(folder, output, model=other_card_file)

    summary = run(folder, output, model=other_card_file, rescore="all")
    after = tables.rows("image_scores")
    assert summary.counts.images == len(after) == len(before)
    assert after.keys() == before.keys()
    assert {row.model for row in after.values()} == {"other"}
    assert tables.rows("image_scores", version) == before
    assert is_consistent(tables)
    assert not list((output / "_checkpoints").glob("rescored-*"))

    # A run that was killed before it deleted the staging table must not hide later changes of mind.
    write_files(output / "_checkpoints" / f"rescored-{generation(spark, output)}", {"half": b""})
    write_files(folder, {"new.png": png(seed=70)})
    assert run(folder, output, model=other_card_file).counts.images == 1
    assert run(folder, output, model=other_card_file, rescore="all").counts.images == len(IMAGES) + 1


def test_rescoring_all_keeps_what_somebody_added_to_the_table(
    spark: SparkSession, score: Run, folder: Path, tables: Tables, tmp_path: Path, other_card_file: str
) -> None:
    score(folder, tmp_path / "out")
    name = f"delta.`{tmp_path}/out/image_scores`"
    spark.sql(f"ALTER TABLE {name} ADD COLUMNS (reviewed_by STRING COMMENT 'who looked at it')")
    spark.sql(f"ALTER TABLE {name} SET TBLPROPERTIES ('delta.autoOptimize.autoCompact' = 'false')")
    spark.sql(f"ALTER TABLE {name} CLUSTER BY (image_id)")
    score(folder, tmp_path / "out", model=other_card_file, rescore="all")
    column = tables.frame("image_scores").schema["reviewed_by"]
    assert (column.dataType.simpleString(), column.metadata["comment"]) == ("string", "who looked at it")
    detail = spark.sql(f"DESCRIBE DETAIL {name}").collect()[0]
    assert detail.properties["delta.autoOptimize.autoCompact"] == "false"
    assert detail.properties["nsfw_spark.model"] == "other"
    assert detail.clusteringColumns == ["image_id"]
    assert score(folder, tmp_path / "out", model=other_card_file).counts.images == 0


def test_an_input_that_lists_files_of_another_is_refused_and_rescoring_all_takes_it_over(
    score: Run, tables: Tables, tmp_path: Path
) -> None:
    images, output = tmp_path / "images", tmp_path / "out"
    write_files(images, {"2024/a.png": png(seed=1), "tars/a.tar": tar(samples(0, 2))})
    (tmp_path / "link").symlink_to(images / "2024")
    pngs = {"format": "files", "glob": "*.png"}
    score(images / "2024", output)
    with pytest.raises(TableError, match=r"images contains .*2024, .*would have two rows.*--rescore all"):
        score(images, output, **pngs)
    with pytest.raises(TableError, match=r"link is the same place as .*2024, .*Name it so"):
        score(tmp_path / "link", output)
    score(images, output, format="webdataset")  # it lists other files
    assert len(tables.rows("image_scores")) == 3

    score(images, output, **pngs, rescore="all")
    assert set(tables.rows("image_scores")) == {image_id(images / "2024/a.png")}
    write_files(images / "2025", {"a.png": png(seed=3)})  # has no row yet
    with pytest.raises(TableError, match=r"2025 lies in .*images, .*Run that one"):
        score(images / "2025", output)


def test_a_lost_checkpoint_is_refused_and_rescoring_all_repairs_it(
    run: Run, folder: Path, tables: Tables, tmp_path: Path
) -> None:
    run(folder, tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "_checkpoints")
    with pytest.raises(TableError, match="--rescore all"):
        run(folder, tmp_path / "out")
    assert run(folder, tmp_path / "out", rescore="all").counts.images == len(IMAGES)
    assert run(folder, tmp_path / "out").counts.images == 0
    assert len(tables.rows("image_scores")) == len(IMAGES)


@pytest.fixture
def delta_source(spark: SparkSession, tmp_path: Path) -> Path:
    frame = spark.createDataFrame([("a", png()), ("b", png(seed=1))], "id string, image binary")
    frame.write.format("delta").save(str(tmp_path / "delta"))
    return tmp_path / "delta"


@pytest.mark.parametrize("options", [{"rescore": "changed"}, {"prune": True}])
def test_rows_of_a_delta_table_cannot_be_compared_with_files(
    run: Run, delta_source: Path, tmp_path: Path, options: dict[str, str]
) -> None:
    with pytest.raises(ConfigError, match="no directory of files"):
        run(delta_source, tmp_path / "out", id_column="id", **options)
    assert not (tmp_path / "out" / "image_scores").exists()
