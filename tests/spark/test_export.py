"""Exports: exactly the images that passed, byte for byte, with a manifest."""

from __future__ import annotations

import hashlib
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import DataFrame, SparkSession

from nsfw_spark.errors import InputError, TableError
from nsfw_spark.options import job_options
from nsfw_spark.shards import ShardFormat
from nsfw_spark.spark import read_images
from nsfw_spark.spark.export import Exported, ExportOptions, ShardSize, export_job
from tests import java
from tests.conftest import jpeg, png
from tests.spark.conftest import GOOD, THRESHOLD, Run, Tables, image_id, write_files
from tests.spark.test_command import nsfw_spark
from tests.spark.test_content import write_tar

FEW = {"a.png": png(seed=21), "b.jpg": jpeg(seed=22), "c.png": png(seed=23)}
CAPTIONS = {"a.png": "a cat", "b.jpg": "größe", "c.png": ""}


def export(output: Path, directory: Path, *, content_from: Path | None = None, **options: Any) -> Exported:  # noqa: ANN401
    where = {"output": str(output), "content_from": None if content_from is None else str(content_from)}
    return export_job(job_options(where), ExportOptions(str(directory), **options))


def contents(images: DataFrame) -> list[bytes]:
    """Return all images; none may be missing."""
    return sorted(bytes(row.content) for row in images.select("content").collect())


def manifest(directory: Path) -> dict[str, Any]:
    return dict(json.loads((directory / "manifest.json").read_text(encoding="utf-8")))


def files(directory: Path) -> dict[str, bytes]:
    """Return the shards of an export."""
    names = [file["name"] for file in manifest(directory)["files"]]
    return {name: (directory / name).read_bytes() for name in names}


def safe_contents(tables: Tables, images: Path) -> list[bytes]:
    by_id = {image_id(images / name): content for name, content in GOOD.items()}
    return sorted(by_id[key] for key in tables.rows("safe_images"))


def write_source(folder: Path, kind: str) -> Path:
    """Write FEW with captions as a source of a kind."""
    if kind == "webdataset":
        entries = {}
        for name, content in FEW.items():
            key = name.partition(".")[0]
            entries |= {name: content, f"{key}.txt": CAPTIONS[name].encode(), f"{key}.json": b'{"n": 1}'}
        write_tar(folder / "x.tar", entries)
    else:
        folder.mkdir()
        image = [{"bytes": content, "path": name} for name, content in FEW.items()]
        pq.write_table(pa.table({"image": image, "caption": list(CAPTIONS.values())}), folder / "x.parquet")
    return folder


@pytest.mark.parametrize("format_", ["webdataset", "parquet"])
def test_what_passed_among_files_is_exported_and_can_be_read_back(
    spark: SparkSession, images: Path, output: Path, tables: Tables, tmp_path: Path, format_: ShardFormat
) -> None:
    directory = tmp_path / "export"
    exported = export(output, directory, format=format_, size=ShardSize(images=2))
    expected = safe_contents(tables, images)
    back = read_images(spark, str(directory), format=format_, content_column=None)
    assert contents(back) == expected
    assert 2 < len(expected) < len(GOOD)
    assert exported.as_dict()["images"] == len(expected)
    assert exported.as_dict()["missing"] == 0
    assert [shard.images for shard in exported.shards[:-1]] == [2] * (len(exported.shards) - 1)


@pytest.mark.parametrize("kind", ["webdataset", "parquet"])
@pytest.mark.parametrize("format_", ["webdataset", "parquet"])
def test_captions_come_along_from_tars_and_tables(
    spark: SparkSession, run: Run, tmp_path: Path, kind: str, format_: ShardFormat
) -> None:
    source = write_source(tmp_path / "in", kind)
    run(source, tmp_path / "out", threshold=1.0)
    export(tmp_path / "out", tmp_path / "export", format=format_)
    back = read_images(spark, str(tmp_path / "export"), format=format_).collect()
    assert {bytes(row.content): row.caption for row in back} == {
        content: CAPTIONS[name] for name, content in FEW.items()
    }
    if (kind, format_) == ("webdataset", "webdataset"):
        said = json.loads(back[0].json)
        assert said["json"] == {"n": 1}
        assert said["image_id"].startswith(f"{image_id(source / 'x.tar')}!/")
        assert 0 <= said["nsfw_score"] < 1


def test_keys_are_in_the_order_of_the_ids_and_no_other_than_they_were(
    output: Path, tables: Tables, tmp_path: Path
) -> None:
    export(output, tmp_path / "export", size=ShardSize(images=2))
    found = []
    for name in sorted(files(tmp_path / "export")):
        with tarfile.open(tmp_path / "export" / name) as tar:
            entries = {entry.name: tar.extractfile(entry).read() for entry in tar}  # type: ignore[union-attr]
        found += [
            (key, json.loads(text)["image_id"]) for key, text in entries.items() if key.endswith("json")
        ]
    ids = sorted(tables.rows("safe_images"), key=str.encode)
    assert found == [(f"{number:09d}.json", each) for number, each in enumerate(ids)]


@pytest.mark.parametrize("format_", ["webdataset", "parquet"])
def test_the_same_table_gives_the_same_bytes(
    spark: SparkSession, output: Path, tables: Tables, tmp_path: Path, format_: ShardFormat
) -> None:
    size = ShardSize(images=3)
    export(output, tmp_path / "one", format=format_, size=size)
    tables.delta("safe_images").optimize().executeCompaction()
    before = spark.conf.get("spark.sql.shuffle.partitions")
    spark.conf.set("spark.sql.shuffle.partitions", "5")
    try:
        export(output, tmp_path / "other", format=format_, size=size)
    finally:
        spark.conf.set("spark.sql.shuffle.partitions", before)
    assert len(files(tmp_path / "one")) > 1
    assert files(tmp_path / "one") == files(tmp_path / "other")


def test_a_shard_ends_where_it_is_large_enough(output: Path, tables: Tables, tmp_path: Path) -> None:
    lengths = [row.length for _, row in sorted(tables.rows("safe_images").items())]
    exported = export(output, tmp_path / "export", size=ShardSize(bytes=min(lengths)))
    assert [shard.images for shard in exported.shards] == [1] * len(lengths)
    assert [shard.number for shard in exported.shards] == list(range(len(lengths)))


def test_the_manifest_says_what_the_files_are(output: Path, tables: Tables, tmp_path: Path) -> None:
    exported = export(output, tmp_path / "export", size=ShardSize(images=2))
    said, row = manifest(tmp_path / "export"), next(iter(tables.rows("safe_images").values()))
    for file in said["files"]:
        content = (tmp_path / "export" / file["name"]).read_bytes()
        assert (file["bytes"], file["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    assert sum(file["images"] for file in said["files"]) == len(tables.rows("safe_images"))
    assert said["totals"] == {
        key: exported.as_dict()[key] for key in ("images", "shards", "bytes", "missing")
    }
    assert (said["threshold"], said["policy"]) == (THRESHOLD, f"nsfw_score < {THRESHOLD}f")
    assert (said["model"], said["model_fingerprint"]) == (row.model, row.model_fingerprint)
    assert said["tables"] == {
        "safe_images": len(tables.operations("safe_images")) - 1,
        "image_scores": len(tables.operations("image_scores")) - 1,
    }
    names = {path.name for path in (tmp_path / "export").iterdir()}
    assert names == {"manifest.json", *(file["name"] for file in said["files"])}


def test_an_image_that_is_gone_is_left_out_and_named(
    run: Run, spark: SparkSession, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = write_files(tmp_path / "in", FEW)
    run(source, tmp_path / "out", threshold=1.0)
    (source / "b.jpg").unlink()
    exported = export(tmp_path / "out", tmp_path / "export")
    gone = image_id(source / "b.jpg")
    assert (exported.missing, exported.missing_rate) == (1, pytest.approx(1 / 3))
    assert manifest(tmp_path / "export")["first_missing"] == [gone]
    assert (
        f"1 images are left out, because their bytes were not found as they were scored: {gone}"
        in capfd.readouterr().err
    )
    back = read_images(spark, str(tmp_path / "export"))
    assert contents(back) == sorted([FEW["a.png"], FEW["c.png"]])


def test_images_that_the_table_holds_need_no_source(spark: SparkSession, run: Run, tmp_path: Path) -> None:
    source = write_files(tmp_path / "in", FEW)
    run(source, tmp_path / "out", threshold=1.0, keep_content=True)
    source.rename(tmp_path / "elsewhere")
    export(tmp_path / "out", tmp_path / "export")
    assert contents(read_images(spark, str(tmp_path / "export"))) == sorted(FEW.values())


def test_images_that_are_nowhere_are_asked_for(run: Run, spark: SparkSession, tmp_path: Path) -> None:
    source = write_source(tmp_path / "in", "webdataset")
    run(source, tmp_path / "out", threshold=1.0)
    ids = list(Tables(spark, tmp_path / "out").rows("safe_images"))
    source.rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="--content-from SOURCE"):
        export(tmp_path / "out", tmp_path / "export")
    assert not (tmp_path / "export").exists()
    names = [each.rpartition("/")[2] for each in ids]
    copy = pa.table({"image_id": ids, "image": [FEW[name] for name in names]})
    pq.write_table(copy, tmp_path / "copy.parquet")
    export(tmp_path / "out", tmp_path / "export", content_from=tmp_path / "copy.parquet")
    assert contents(read_images(spark, str(tmp_path / "export"))) == sorted(FEW.values())


def test_flagged_images_are_exported_only_if_they_are_named(
    spark: SparkSession, images: Path, output: Path, tables: Tables, tmp_path: Path
) -> None:
    export(output, tmp_path / "export", table="flagged_images")
    safe = safe_contents(tables, images)
    flagged = contents(read_images(spark, str(tmp_path / "export")))
    assert sorted([*safe, *flagged]) == sorted(GOOD.values())
    assert manifest(tmp_path / "export")["tables"].keys() == {"flagged_images", "image_scores"}


def test_a_table_without_rows_is_exported_as_such(filter_: Run, output: Path, tmp_path: Path) -> None:
    filter_(output, 0.0)
    exported = export(output, tmp_path / "export")
    assert exported.as_dict()["images"] == exported.missing_rate == 0
    assert manifest(tmp_path / "export")["files"] == []


def test_a_directory_that_holds_anything_is_left_alone(output: Path, tmp_path: Path) -> None:
    directory = write_files(tmp_path / "mine", {"thesis.txt": b"years", "00000.tar": b"mine too"})
    with pytest.raises(InputError, match=r"not empty \(it holds"):
        export(output, directory)
    (directory / "thesis.txt").unlink()
    with pytest.raises(InputError, match=r"not empty \(it holds 00000.tar"):
        export(output, directory)
    assert (directory / "00000.tar").read_bytes() == b"mine too"


def test_a_complete_export_is_not_replaced_and_an_unfinished_one_begins_anew(
    output: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "export"
    export(output, directory)
    before = files(directory)
    with pytest.raises(InputError, match="complete export"):
        export(output, directory)
    # The traces of a killed export.
    (directory / "manifest.json").unlink()
    write_files(directory, {"_unfinished": b"", "_temporary/x-00001.tar": b"half", "00099.tar": b"old"})
    export(output, directory)
    assert files(directory) == before
    assert {path.name for path in directory.iterdir()} == {"manifest.json", *before}


def test_a_table_that_is_not_there_or_not_ours_is_refused(
    output: Path, tables: Tables, tmp_path: Path
) -> None:
    with pytest.raises(TableError, match=r"there is no table .*nsfw-spark filter"):
        export(tmp_path / "absent", tmp_path / "export")
    tables.frame("flagged_images").write.format("delta").mode("append").save(f"{output}/safe_images")
    with pytest.raises(TableError, match="nsfw-spark filter"):
        export(output, tmp_path / "export")
    assert not (tmp_path / "export").exists()


def test_the_command_prints_one_json_object_and_its_exit_status_says_what_is_missing(
    run: Run, tmp_path: Path
) -> None:
    source = write_files(tmp_path / "in", FEW)
    run(source, tmp_path / "out", threshold=1.0)
    (source / "a.png").write_bytes(b"another")
    given = (
        "export",
        tmp_path / "out",
        tmp_path / "export",
        "--format",
        "parquet",
        "--images-per-shard",
        "1",
    )
    done = nsfw_spark(*given, folder=tmp_path / "cwd", environment=java.quick())
    assert done.returncode == 3, done.stderr
    assert len(done.stdout.splitlines()) == 1
    said = json.loads(done.stdout)
    assert list(said) == ["images", "shards", "bytes", "missing", "seconds"]
    assert (said["images"], said["shards"], said["missing"]) == (2, 2, 1)
    assert "Traceback" not in done.stderr
    again = nsfw_spark(*given, folder=tmp_path / "cwd2", environment=java.quick())
    assert (again.returncode, again.stdout) == (2, "")
    assert again.stderr.strip().splitlines()[-1].startswith("nsfw-spark: ")
