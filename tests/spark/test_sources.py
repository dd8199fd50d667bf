"""Sources: each image in each format is one row, and so is each damaged file."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from delta import DeltaTable
from pyspark.sql import DataFrame, Row, SparkSession
from pyspark.sql.types import StructType

from nsfw_spark.cards import load_card
from nsfw_spark.embeddings import load_embeddings_scorer
from nsfw_spark.errors import ConfigError, InputError, TableError
from nsfw_spark.readers import chunk as readers
from nsfw_spark.spark import read_images, score_images
from nsfw_spark.spark.schema import arrow_schema
from nsfw_spark.spark.sources import Limit, SourceOptions, open_source
from nsfw_spark.spark.sources.delta import is_table_name
from nsfw_spark.spark.sources.source import FILE_COLUMNS
from nsfw_spark.spark.tables import only_adds
from tests.conftest import png
from tests.spark.conftest import Run, Tables, image_id, write_files

CAPTIONS = ["a cat", None, "größe"]


def tar(entries: list[tuple[str, bytes]], mode: str = "w") -> bytes:
    buffer = BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in entries:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, BytesIO(content))
    return buffer.getvalue()


def samples(first: int, number: int) -> list[tuple[str, bytes]]:
    """Return the entries of a tar: images, each with a caption and JSON."""
    return [
        entry
        for i in range(first, first + number)
        for entry in (
            (f"{i:04}.png", png(seed=i)),
            (f"{i:04}.txt", f"picture {i}".encode()),
            (f"{i:04}.json", json.dumps({"number": i}).encode()),
        )
    ]


def write_tars(folder: Path) -> Path:
    """Write a tar of three images, a compressed one of two, a truncated one, and an empty one."""
    whole = tar(samples(20, 4))
    return write_files(
        folder,
        {
            "a.tar": tar([*samples(0, 3), ("text.jpg", b"no image")]),
            "deep/b b.tar.gz": tar(samples(10, 2), "w:gz"),
            "cut.tar": whole[: len(whole) // 2],
            "empty.tar": b"",
            "notes.txt": b"not a tar",
        },
    )


def image_table(first: int, number: int) -> pa.Table:
    """Return a table as Hugging Face's `datasets` writes it."""
    return pa.table(
        {
            "image": [{"bytes": png(seed=first + i), "path": f"{i}.png"} for i in range(number)],
            "caption": [CAPTIONS[i % 3] for i in range(number)],
            "status": ["theirs"] * number,
            "number": list(range(first, first + number)),
        }
    )


def write_parquet(folder: Path) -> Path:
    """Write nine images and a null in two files, one with three row groups, and a damaged file."""
    folder.mkdir()
    null = pa.array([None], image_table(0, 1).schema.field("image").type)
    with_null = pa.concat_tables([image_table(0, 6), image_table(6, 1).set_column(0, "image", null)])
    pq.write_table(with_null, folder / "a.parquet", row_group_size=3)
    pq.write_table(image_table(10, 3), folder / "b.parquet")
    return write_files(folder, {"damaged.parquet": b"PAR1 and no more"})


def vectors(number: int = 40) -> npt.NDArray[np.float32]:
    """Return unit embeddings for L/14; one is zero, one is not finite, the last has length 3."""
    values = np.random.default_rng(0).normal(size=(number, 768)).astype(np.float32)
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    values[1], values[2, 5], values[-1] = 0, np.nan, values[-1] * 3
    return values


def write_clip_retrieval(folder: Path) -> Path:
    """Write a folder as clip-retrieval does: embeddings of images and texts, and metadata."""
    for name in ("img_emb", "text_emb", "metadata"):
        (folder / name).mkdir(parents=True)
    for i, half in enumerate(np.split(vectors(), 2)):
        np.save(folder / "img_emb" / f"img_emb_{i}.npy", half.astype(np.float16))
        np.save(folder / "text_emb" / f"text_emb_{i}.npy", half)
        paths = [f"{i}/{row}.jpg" for row in range(len(half))]
        pq.write_table(pa.table({"image_path": paths}), folder / "metadata" / f"metadata_{i}.parquet")
    return folder


def counts_add_up(tables: Tables, number: int) -> bool:
    runs = [row for row in tables.frame("runs").collect() if row.command == "run"]
    rows = tables.rows("image_scores")
    parts = [tables.rows(name) for name in ("safe_images", "flagged_images", "quarantined_images")]
    names = ("safe", "flagged", "quarantined")
    return (
        sum(run.images for run in runs) == len(rows) == number
        and [sum(run[name] for run in runs) for name in names] == [len(part) for part in parts]
        and set().union(*parts) == set(rows)
    )


def test_each_image_of_a_tar_is_a_row(spark: SparkSession, run: Run, tmp_path: Path) -> None:
    folder, output = write_tars(tmp_path / "tars"), tmp_path / "out"
    summary = run(folder, output)
    tables = Tables(spark, output)
    rows = tables.rows("image_scores")
    a, b = image_id(folder / "a.tar"), image_id(folder / "deep/b b.tar.gz")
    whole = {f"{a}!/{i:04}.png" for i in range(3)} | {f"{b}!/{i:04}.png" for i in (10, 11)}
    assert {key for key, row in rows.items() if row.status == "ok"} >= whole
    assert rows[f"{a}!/text.jpg"].status == "undecodable"
    first = rows[f"{a}!/0002.png"]
    assert (first.caption, json.loads(first.json), first.cls) == ("picture 2", {"number": 2}, None)
    assert (first.source_file, first.length) == (a, len(png(seed=2)))
    assert counts_add_up(tables, summary.counts.images)
    assert run(folder, output).counts.images == 0


def test_damaged_tars_are_rows_that_say_where(spark: SparkSession, run: Run, tmp_path: Path) -> None:
    folder, output = write_tars(tmp_path / "tars"), tmp_path / "out"
    run(folder, output)
    rows = Tables(spark, output).rows("quarantined_images")
    cut, empty = rows[image_id(folder / "cut.tar")], rows[image_id(folder / "empty.tar")]
    assert cut.status == empty.status == "undecodable"
    assert "up to byte" in cut.error
    assert "0 bytes" in empty.error
    assert cut.source_file == cut.image_id


def test_images_of_parquet_files_are_rows(spark: SparkSession, run: Run, tmp_path: Path) -> None:
    folder, output = write_parquet(tmp_path / "parquet"), tmp_path / "out"
    run(folder, output)
    tables = Tables(spark, output)
    rows = tables.rows("image_scores")
    a, b = image_id(folder / "a.parquet"), image_id(folder / "b.parquet")
    ok = {key for key, row in rows.items() if row.status == "ok"}
    assert ok == {f"{a}#{i}" for i in range(6)} | {f"{b}#{i}" for i in range(3)}
    assert rows[f"{a}#6"].status == "missing"
    assert rows[image_id(folder / "damaged.parquet")].status == "undecodable"
    row = rows[f"{b}#2"]
    assert (row.caption, row.number, row.source_status) == ("größe", 12, "theirs")
    assert counts_add_up(tables, 11)


def test_a_column_of_ids_is_the_image_id(spark: SparkSession, run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "parquet"
    folder.mkdir()
    pq.write_table(image_table(0, 3), folder / "a.parquet")
    run(folder, tmp_path / "out", id_column="number", carry="caption")
    rows = Tables(spark, tmp_path / "out").rows("image_scores")
    assert set(rows) == {"0", "1", "2"}
    assert "source_status" not in rows["0"]
    assert rows["2"].caption == "größe"


@pytest.mark.parametrize("ids", [["1", "1", "2"], ["1", None, "2"]], ids=["repeated", "null"])
def test_ids_that_do_not_tell_images_apart_are_refused(run: Run, tmp_path: Path, ids: list[str]) -> None:
    (tmp_path / "parquet").mkdir()
    table = pa.table({"id": ids, "image": [png(seed=i) for i in range(3)]})
    pq.write_table(table, tmp_path / "parquet" / "a.parquet")
    with pytest.raises(InputError, match="1, 2 times" if ids[1] else "null, 1 times"):
        run(tmp_path / "parquet", tmp_path / "out", id_column="id")
    assert not (tmp_path / "out" / "image_scores").exists()


def test_a_delta_table_is_followed_by_its_log(spark: SparkSession, run: Run, tmp_path: Path) -> None:
    source, output = tmp_path / "delta", tmp_path / "out"
    write = spark.createDataFrame(image_table(0, 4).to_pandas()).write.format("delta").mode("append")
    write.save(str(source))
    assert run(source, output, id_column="number").counts.images == 4
    spark.createDataFrame(image_table(4, 2).to_pandas()).write.format("delta").mode("append").save(
        str(source)
    )
    assert run(source, output, id_column="number").counts.images == 2
    spark.sql(f"OPTIMIZE delta.`{source}`")
    assert run(source, output, id_column="number").counts.images == 0
    assert counts_add_up(Tables(spark, output), 6)


def test_what_a_merge_adds_to_a_delta_table_is_not_lost(
    spark: SparkSession, run: Run, tmp_path: Path
) -> None:
    source, output = tmp_path / "delta", tmp_path / "out"
    spark.createDataFrame(image_table(0, 4).to_pandas()).coalesce(1).write.format("delta").save(str(source))
    run(source, output, id_column="number")
    spark.createDataFrame(image_table(3, 3).to_pandas()).createOrReplaceTempView("arrivals")
    spark.sql(
        f"MERGE INTO delta.`{source}` AS t USING arrivals AS a ON t.number = a.number "
        "WHEN MATCHED THEN UPDATE SET caption = 'new' WHEN NOT MATCHED THEN INSERT *"
    )
    DeltaTable.forPath(spark, str(source)).delete("number = 0")
    assert run(source, output, id_column="number").counts.images == 2
    assert run(source, output, id_column="number").counts.images == 0
    assert counts_add_up(Tables(spark, output), 6)


def test_rows_whose_commits_the_log_of_a_delta_table_no_longer_has_are_scored(
    spark: SparkSession, score: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = tmp_path / "delta", tmp_path / "out"

    def add(first: int) -> None:
        write = spark.createDataFrame(image_table(first, 1).to_pandas()).write.format("delta").mode("append")
        write.option("delta.checkpointInterval", "1").save(str(source))

    add(0)
    score(source, output, id_column="number")
    add(1)
    add(2)
    for version in range(2):
        (source / f"_delta_log/{version:020}.json").unlink()
    assert score(source, output, id_column="number").counts.images == 2
    assert "no longer tells what is new" in capsys.readouterr().err
    add(3)
    assert score(source, output, id_column="number").counts.images == 1
    assert len(Tables(spark, output).rows("image_scores")) == 4


@pytest.mark.parametrize(
    ("operation", "mode", "expected"),
    [
        ("WRITE", "Append", True),
        ("WRITE", "Overwrite", False),
        *(
            (name, "", True)
            for name in ("COPY INTO", "OPTIMIZE", "UPGRADE PROTOCOL", "ROW TRACKING BACKFILL")
        ),
        *((name, "", False) for name in ("DELETE", "MERGE", "RESTORE", "CREATE OR REPLACE TABLE AS SELECT")),
    ],
)
def test_a_commit_that_changes_no_row_is_known(operation: str, mode: str, *, expected: bool) -> None:
    parameters = {"mode": mode}
    assert only_adds(Row(version=1, operation=operation, operationParameters=parameters)) == expected
    assert only_adds(Row(version=0, operation=operation, operationParameters=parameters))


def test_a_delta_table_without_a_column_of_ids_is_refused(
    spark: SparkSession, run: Run, tmp_path: Path
) -> None:
    source = tmp_path / "delta"
    spark.createDataFrame(image_table(0, 1).to_pandas()).write.format("delta").save(str(source))
    with pytest.raises(InputError, match="--id-column"):
        run(source, tmp_path / "out")


def test_embeddings_of_clip_retrieval_get_the_heads_scores(
    spark: SparkSession, run: Run, tmp_path: Path
) -> None:
    folder, output = write_clip_retrieval(tmp_path / "embeddings"), tmp_path / "out"
    run(folder, output, format="embeddings", model="laion-vit-l-14", id_column="image_path")
    tables = Tables(spark, output)
    rows = tables.rows("image_scores")
    scorer = load_embeddings_scorer(load_card("laion-vit-l-14"))
    expected = scorer.score(vectors().astype(np.float16).astype(np.float32)).nsfw_scores
    for i, score in enumerate(expected):
        row = rows[f"{i // 20}/{i % 20}.jpg"]
        if i in (1, 2):
            assert (row.status, row.nsfw_score) == ("not_finite", None)
        else:
            assert (row.status, row.nsfw_score) == ("ok", pytest.approx(score, abs=1e-6))
        assert row.embedding is None
    assert counts_add_up(tables, 40)
    assert [run.normalized for run in tables.frame("runs").collect()] == [1]


@pytest.mark.parametrize("kind", ["parquet", "delta"])
def test_embeddings_in_a_column(spark: SparkSession, run: Run, tmp_path: Path, kind: str) -> None:
    source, output = tmp_path / kind, tmp_path / "out"
    values = [row.astype(np.float64).tolist() for row in vectors(6)]
    values[3] = values[3][:100]
    frame = spark.createDataFrame(
        [(str(i), value) for i, value in enumerate(values)], "id string, emb array<double>"
    )
    frame.write.format(kind).save(str(source))
    run(source, output, format="embeddings", model="laion-vit-l-14", id_column="id", keep_embedding=True)
    rows = Tables(spark, output).rows("image_scores")
    assert [rows[str(i)].status for i in range(6)] == [
        "ok",
        "not_finite",
        "not_finite",
        "unsupported",
        "ok",
        "ok",
    ]
    assert "100 numbers" in rows["3"].error
    assert np.linalg.norm(rows["5"].embedding) == pytest.approx(1, abs=1e-5)


def test_scores_of_embeddings_and_of_images_do_not_mix(run: Run, images: Path, tmp_path: Path) -> None:
    run(images, tmp_path / "out")
    (tmp_path / "embeddings").mkdir()
    np.save(tmp_path / "embeddings" / "x.npy", vectors(4))
    with pytest.raises(TableError, match="do not compare"):
        run(tmp_path / "embeddings", tmp_path / "out", format="embeddings", model="laion-vit-l-14")


FORMATS: dict[str, Callable[[Path], Path]] = {
    "ImageFiles": lambda folder: write_files(folder, {"a.jpg": b"x", "b": b"x", "c.txt": b"x"}),
    "Tars": lambda folder: write_files(folder, {"a.tar": b"x", "a.parquet": b"x", "a_stats.json": b"{}"}),
    "ParquetFiles": write_parquet,
}


@pytest.mark.parametrize("name", FORMATS)
def test_auto_looks_what_there_is(spark: SparkSession, tmp_path: Path, name: str) -> None:
    folder = FORMATS[name](tmp_path / "input")
    assert type(open_source(spark, SourceOptions(str(folder)))).__name__ == name


@pytest.mark.parametrize("other", ["b.parquet", "b.tar", "b.npy"])
def test_auto_refuses_to_choose(spark: SparkSession, tmp_path: Path, other: str) -> None:
    folder = write_files(tmp_path / "input", {"a.JPG": b"x", other: b"x", "c.txt": b"x"})
    with pytest.raises(InputError, match=r"several formats.*--format"):
        open_source(spark, SourceOptions(str(folder)))


def test_the_odd_format_in_a_folder_is_shown_with_a_file(spark: SparkSession, tmp_path: Path) -> None:
    folder = write_files(tmp_path / "input", {"a.jpg": b"x", "b.jpg": b"x", "deep/c.tar": b"x"})
    said = r"2 of files and 1 of webdataset, such as .*/deep/c\.tar \(only the first 1,000 names"
    with pytest.raises(InputError, match=said):
        open_source(spark, SourceOptions(str(folder)))


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("a.jpg", "image_id, modification_time"),
        ("a.tar", "image_id, source_file, modification_time, caption, json, cls"),
    ],
)
def test_a_column_to_carry_that_no_file_has_is_an_error(
    spark: SparkSession, tmp_path: Path, name: str, columns: str
) -> None:
    folder = write_files(tmp_path / "input", {name: b"x"})
    with pytest.raises(InputError, match=f"no column captoin. Its columns: {columns}$"):
        open_source(spark, SourceOptions(str(folder), carry="captoin, modification_time"))


@pytest.mark.parametrize(
    ("options", "left_out"),
    [
        ({}, "from column img and leaves out thumb,"),
        ({"content_column": "thumb"}, "from column thumb and leaves out img,"),
        ({"carry": "thumb"}, None),
        ({"content_column": "img", "carry": "none"}, None),
    ],
)
def test_a_second_column_of_images_is_not_left_out_in_silence(
    spark: SparkSession,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: dict[str, str],
    left_out: str | None,
) -> None:
    pq.write_table(pa.table({"img": [b"1"], "thumb": [b"2"], "url": ["u"]}), tmp_path / "a.parquet")
    source = open_source(spark, SourceOptions(str(tmp_path), "parquet", **options))  # type: ignore[arg-type]
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("nsfw-spark:")]
    assert len(lines) == (left_out is not None)
    assert all(str(left_out) in line and "--content-column" in line for line in lines)
    assert ("thumb" in source.columns.names) == (options.get("carry") == "thumb")


def test_read_images_has_no_images_of_embeddings(spark: SparkSession, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"run --format embeddings"):
        read_images(spark, str(tmp_path), format="embeddings")


@pytest.mark.parametrize("suffix", ["tar", "TAR", "tbz2", "Tar.Gz", "txz"])
def test_tars_are_found_whatever_case_their_names_have(
    spark: SparkSession, tmp_path: Path, suffix: str
) -> None:
    folder = write_files(tmp_path / "input", {f"a.{suffix}": b"x", "tar": b"x"})
    found = open_source(spark, SourceOptions(str(folder)))
    assert type(found).__name__ == "Tars"
    assert [row.path for row in found.batch().collect()] == [f"file:{folder}/a.{suffix}"]
    assert type(open_source(spark, SourceOptions(f"{folder}/a.{suffix}"))).__name__ == "Tars"


def test_a_directory_without_what_is_expected_is_refused(spark: SparkSession, tmp_path: Path) -> None:
    folder = write_files(tmp_path / "input", {"a.jpg": b"x"})
    said = r"holds no file that ends in \.tar, \.tar\.gz, .*; expected a directory with tars"
    with pytest.raises(InputError, match=said):
        open_source(spark, SourceOptions(str(folder), format="webdataset"))
    with pytest.raises(InputError, match=r"holds no file that matches \*\.png; expected"):
        open_source(spark, SourceOptions(str(folder), glob="*.png"))


def test_embeddings_are_found_among_images(spark: SparkSession, tmp_path: Path) -> None:
    folder = write_files(tmp_path / "input", {"a.jpg": b"x", "b.npy": b"x"})
    found = open_source(spark, SourceOptions(str(folder), format="embeddings"))
    assert type(found).__name__ == "NpyFiles"


@pytest.mark.parametrize(
    ("columns", "options", "said"),
    [
        ({"caption": ["x"]}, {}, "no column with images"),
        ({"a": [b"1"], "b": [b"2"]}, {}, "2 columns with images"),
        ({"image": [b"1"]}, {"content_column": "picture"}, "no column picture"),
        ({"image": [b"1"], "x": [1]}, {"content_column": "x"}, "column x is bigint"),
        ({"image": [b"1"]}, {"id_column": "id"}, "no column id"),
        ({"image": [b"1"]}, {"carry": "caption"}, "no column caption"),
        ({"emb": [[0.5]]}, {}, "--format embeddings"),
    ],
)
def test_columns_that_do_not_fit_are_told(
    spark: SparkSession, tmp_path: Path, columns: dict[str, Any], options: dict[str, str], said: str
) -> None:
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=said):
        open_source(spark, SourceOptions(str(tmp_path), "parquet", **options))


def test_auto_loader_is_for_databricks(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_files(tmp_path / "images", {"a.jpg": b"x"})
    options = SourceOptions(str(folder), "cloudfiles", "*.jpg")
    with pytest.raises(ConfigError, match=r"not a Databricks cluster.*--format files"):
        open_source(spark, options)
    monkeypatch.setenv("DATABRICKS_RUNTIME_VERSION", "17.3")
    given = {"cloudFiles.useManagedFileEvents": "true", "cloudFiles.maxBytesPerTrigger": "1g"}
    source = open_source(spark, replace(options, reader_options=given))
    assert source.auto_loader_options(Limit(500)) == {  # type: ignore[attr-defined]
        "cloudFiles.format": "binaryFile",
        "cloudFiles.includeExistingFiles": "true",
        "cloudFiles.maxFilesPerTrigger": "500",
        "cloudFiles.allowOverwrites": "false",
        "ignoreMissingFiles": "true",
        "recursiveFileLookup": "true",
        "pathGlobFilter": "*.jpg",
        **given,
    }
    for name in ("cloudfiles.FORMAT", "ignoreMissingFiles", "pathGlobFilter"):
        with pytest.raises(ConfigError, match=f"source-option {name}: this job sets that option itself"):
            open_source(spark, replace(options, reader_options={name: "false"}))


@pytest.mark.parametrize("stream", [False, True], ids=["batch", "stream"])
def test_tars_are_read_as_a_data_frame(
    spark: SparkSession, tmp_path: Path, card_file: str, *, stream: bool
) -> None:
    folder = write_files(
        tmp_path / "tars", {"a.tar": tar(samples(0, 3)), "cut.tar": tar(samples(5, 2))[:2000]}
    )
    images = read_images(spark, str(folder), format="webdataset", stream=stream)
    scored = score_images(images, model=card_file)
    if stream:
        checkpoint = str(tmp_path / "checkpoint")
        query = scored.writeStream.option("checkpointLocation", checkpoint).trigger(availableNow=True)
        query.format("delta").start(str(tmp_path / "scored")).awaitTermination()
        scored = spark.read.format("delta").load(str(tmp_path / "scored"))
    rows = {row.image_id: row for row in scored.collect()}
    a, cut = image_id(folder / "a.tar"), image_id(folder / "cut.tar")
    assert rows[f"{a}!/0001.png"].caption == "picture 1"
    assert rows[f"{a}!/0001.png"].nsfw_score is not None
    assert rows[cut].status == "missing"
    assert rows[cut].content is None


def test_readers_and_sources_agree_on_the_columns_of_a_file() -> None:
    of_spark = arrow_schema(StructType(FILE_COLUMNS))
    assert (of_spark.names, of_spark.types) == (readers.FILE_COLUMNS.names, readers.FILE_COLUMNS.types)


class WithCatalog:
    """A session with one table more, in a catalog whose name has a hyphen; Spark's own allows none."""

    name = "`my-catalog`.safety.images"

    def __init__(self, spark: SparkSession, path: Path) -> None:
        self._spark, self._path = spark, path
        self.catalog = SimpleNamespace(tableExists=lambda name: name == self.name)

    def table(self, name: str) -> DataFrame:
        assert name == self.name
        return self._spark.read.format("delta").load(str(self._path))

    def sql(self, text: str) -> DataFrame:
        assert self.name in text
        return self._spark.sql(text.replace(self.name, f"delta.`{self._path}`"))


def test_a_tables_name_with_a_hyphen_is_quoted_for_spark_and_kept_in_runs(
    spark: SparkSession, tmp_path: Path
) -> None:
    images = spark.createDataFrame([("a", png(seed=1))], "image_id string, image binary")
    images.write.format("delta").save(str(tmp_path / "table"))
    options = SourceOptions("my-catalog.safety.images", "delta", id_column="image_id")
    source = open_source(cast("SparkSession", WithCatalog(spark, tmp_path / "table")), options)
    assert source.uri == "my-catalog.safety.images"
    assert [row.image_id for row in source.batch().collect()] == ["a"]
    assert source.left_over(images, is_cut_off=False) is None
    assert not is_table_name(spark, "my-photos.tar")
