"""Images are joined to their own rows, and to no others."""

from __future__ import annotations

import io
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from nsfw_spark.errors import InputError
from nsfw_spark.options import job_options
from nsfw_spark.spark.pipeline import filter_job
from tests.conftest import grey, jpeg, png
from tests.spark.conftest import BAD, GOOD, THRESHOLD, Run, Tables, image_id, write_files

FILTERED = ("safe_images", "flagged_images", "quarantined_images")
FEW = {"one.png": png(seed=21), "two.jpg": jpeg(seed=22), "three.png": png(seed=23)}


def join(output: Path, content_from: Path | str, threshold: float = THRESHOLD, **options: str) -> None:
    given = {"output": str(output), "threshold": threshold, "content_from": str(content_from), **options}
    filter_job(job_options(given))


def contents(tables: Tables) -> dict[str, bytes | None]:
    """Return the rows of the three tables; no table has an image twice."""
    return {
        key: None if row.content is None else bytes(row.content)
        for name in FILTERED
        for key, row in tables.rows(name).items()
    }


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


def write_parquet(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"key": list(files), "image": list(files.values())}), path)
    return path


def test_files_are_read_by_their_names(images: Path, output: Path, tables: Tables) -> None:
    join(output, images)
    bad = {name: content or None for name, (content, _, _) in BAD.items()}
    expected = {image_id(images / name): content for name, content in {**GOOD, **bad}.items()}
    found = contents(tables)
    assert set(found) == set(expected)
    # An empty file is not an image: zero bytes and null are both right.
    assert {key: content or None for key, content in found.items()} == expected
    assert set(tables.rows("safe_images")) != set()
    assert "content" not in tables.frame("image_scores").columns


@pytest.mark.parametrize("write", [write_tar, write_parquet], ids=["tar", "parquet"])
def test_tables_and_tars_are_joined(
    spark: SparkSession, run: Run, tmp_path: Path, write: Callable[[Path, dict[str, bytes]], Path]
) -> None:
    suffix = "tar" if write is write_tar else "parquet"
    for number, name in enumerate(FEW):
        write(tmp_path / "in!" / f"{number}.{suffix}", {name: FEW[name]})
    run(tmp_path / "in!", tmp_path / "out", content_from=str(tmp_path / "in!"))
    tables = Tables(spark, tmp_path / "out")
    assert sorted(contents(tables).values()) == sorted(FEW.values())
    by_file = {row.source_file: bytes(row.content) for t in FILTERED for row in tables.rows(t).values()}
    files = {image_id(tmp_path / "in!" / f"{n}.{suffix}"): FEW[name] for n, name in enumerate(FEW)}
    assert by_file == files


def test_what_was_added_since_is_joined_too(spark: SparkSession, run: Run, tmp_path: Path) -> None:
    images, out = tmp_path / "in", tmp_path / "out"
    write_files(images, FEW)
    run(images, out, content_from=str(images))
    write_files(images, {"later.png": png(seed=24)})
    run(images, out, content_from=str(images))
    tables = Tables(spark, out)
    expected = {image_id(images / name): content for name, content in FEW.items()}
    assert contents(tables) == {**expected, image_id(images / "later.png"): png(seed=24)}
    assert "CREATE OR REPLACE TABLE AS SELECT" in tables.operations("safe_images")[:1]
    assert {*tables.operations("safe_images")[1:], *tables.operations("flagged_images")[1:]} == {"WRITE"}


def test_another_source_replaces_the_tables_and_none_takes_the_images_away(
    images: Path, output: Path, tables: Tables, tmp_path: Path, filter_: Run
) -> None:
    copy = shutil.copytree(images, tmp_path / "copy")
    join(output, images)
    join(output, copy)  # whose files have other names
    assert set(contents(tables).values()) == {None}
    filter_(output, THRESHOLD)
    assert "content" not in tables.frame("safe_images").columns


def test_an_image_that_is_gone_or_changed_keeps_its_row_without_content(
    run: Run, spark: SparkSession, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    images = write_files(tmp_path / "in", FEW)
    run(images, tmp_path / "out")
    (images / "one.png").unlink()
    (images / "two.jpg").write_bytes(grey(7))  # was never scored
    capfd.readouterr()
    join(tmp_path / "out", images)
    found = contents(Tables(spark, tmp_path / "out"))
    expected = {"one.png": None, "two.jpg": None, "three.png": FEW["three.png"]}
    assert found == {image_id(images / name): content for name, content in expected.items()}
    lines = [line for line in capfd.readouterr().err.splitlines() if "no content" in line]
    assert len(lines) == 1
    assert lines[0].startswith("nsfw-spark: 2 images have no content (")


def test_a_source_that_has_an_image_twice_adds_no_row(spark: SparkSession, run: Run, tmp_path: Path) -> None:
    images = write_files(tmp_path / "in", FEW)
    run(images, tmp_path / "out")
    ids = [image_id(images / name) for name in FEW]
    # The first row of each id has other bytes, or none: the right one is found.
    rows = {"image_id": [*ids, *ids, *ids], "image": [None] * 3 + [b"other"] * 3 + [*FEW.values()]}
    table = tmp_path / "copy.parquet"
    pq.write_table(pa.table(rows), table)
    join(tmp_path / "out", table)
    assert contents(Tables(spark, tmp_path / "out")) == dict(zip(ids, FEW.values(), strict=True))


def test_ids_are_taken_from_a_column_that_is_named(spark: SparkSession, run: Run, tmp_path: Path) -> None:
    source = write_parquet(tmp_path / "in.parquet", FEW)
    run(source, tmp_path / "out", id_column="key")
    join(tmp_path / "out", source, id_column="key", content_column="image")
    assert contents(Tables(spark, tmp_path / "out")) == FEW


def test_no_file_outside_the_source_is_read(spark: SparkSession, run: Run, tmp_path: Path) -> None:
    images = write_files(tmp_path / "in", FEW)
    run(images, tmp_path / "out")
    (tmp_path / "in-other").mkdir()
    write_files(tmp_path / "in-other", {"x.png": png()})
    join(tmp_path / "out", tmp_path / "in-other")
    assert set(contents(Tables(spark, tmp_path / "out")).values()) == {None}


def test_a_source_that_is_not_there_is_refused_before_anything_changes(output: Path, tables: Tables) -> None:
    before = [tables.operations(name) for name in FILTERED]
    with pytest.raises(InputError, match="absent"):
        join(output, output / "absent")
    assert [tables.operations(name) for name in FILTERED] == before
