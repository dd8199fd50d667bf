"""Writes the images of a filtered table as shards, for training, with a manifest.

In: a filtered table at one version, and the sources with its images. Out: tars or Parquet files, which the
executors write. The image_ids alone decide which image lies where: they are sorted, numbered and cut, so the
same rows give the same shards on any cluster. Ids and metadata are sorted before the images are joined.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, Literal

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession, Window
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, StringType, StructType

import nsfw_spark
from nsfw_spark.errors import InputError, TableError
from nsfw_spark.options import JobOptions
from nsfw_spark.readers.storage import HADOOP_PREFIXES, Storage
from nsfw_spark.shards import KEY, SHARD, TEMPORARY, Shard, ShardFormat, ShardWriter
from nsfw_spark.spark import schema
from nsfw_spark.spark.content import Contents, open_contents, recorded_contents
from nsfw_spark.spark.filtered import FilterState, filter_state
from nsfw_spark.spark.hadoop import delete, file_system, list_names, settings
from nsfw_spark.spark.session import get_session
from nsfw_spark.spark.tables import PROPERTY, Output, last_version
from nsfw_spark.uris import absolute_uri

MANIFEST: Final = "manifest.json"
_UNFINISHED: Final = "_unfinished"
_OURS: Final = re.compile(rf"\d{{5,}}\.(tar|parquet)|{TEMPORARY}|{_UNFINISHED}")
_SHOWN: Final = 10  # image_ids of missing images
_PARTITION_BITS: Final = 33  # monotonically_increasing_id: the row below these bits, the partition above
_WRITTEN: Final = ("image_id", "nsfw_score", "content_sha256", "width", "height", "model")
"""Columns written with each image, besides the columns carried from the source."""
_RESULT: Final = (
    StructType()
    .add("number", "long")
    .add("name", "string")
    .add("images", "long")
    .add("bytes", "long")
    .add("sha256", "string")
    .add("missing", "long")
    .add("first_missing", ArrayType(StringType()))
)
"""A `Shard`, as a row."""

ExportedTable = Literal["safe_images", "flagged_images", "quarantined_images"]


@dataclass(frozen=True)
class ShardSize:
    """Upper limits of one shard."""

    images: int = 10_000
    bytes: int = 1 << 30
    """A shard ends with the image that exceeds it."""


@dataclass(frozen=True)
class ExportOptions:
    """The images to write, and their place."""

    directory: str
    """URI; the directory must be empty, or hold an unfinished export."""
    format: ShardFormat = "webdataset"
    table: ExportedTable = "safe_images"
    size: ShardSize = field(default_factory=ShardSize)


@dataclass(frozen=True)
class Exported:
    """The result of an export."""

    shards: list[Shard]
    """In order; a shard without images has no file."""
    seconds: float

    @property
    def files(self) -> list[Shard]:
        """The shards that have a file."""
        return [shard for shard in self.shards if shard.name is not None]

    @property
    def missing(self) -> int:
        """Number of images without bytes."""
        return sum(shard.missing for shard in self.shards)

    @property
    def missing_rate(self) -> float:
        """Share of all images that have no bytes."""
        total = self.missing + sum(shard.images for shard in self.shards)
        return self.missing / total if total else 0.0

    @property
    def first_missing(self) -> list[str]:
        """The image_ids of some images without bytes."""
        return [image_id for shard in self.shards for image_id in shard.first_missing][:_SHOWN]

    def as_dict(self) -> dict[str, Any]:
        """Return the keys that users and scripts rely on, in their order."""
        return {
            "images": sum(shard.images for shard in self.shards),
            "shards": len(self.files),
            "bytes": sum(shard.bytes for shard in self.shards),
            "missing": self.missing,
            "seconds": round(self.seconds, 3),
        }


def export_job(options: JobOptions, export: ExportOptions) -> Exported:
    """Write the images of a filtered table for training; load no model.

    Args:
        options: `output` is the place of the tables; `content_from`, `content_column` and `id_column` the
            place of the images. Without `content_from` the images come from the table, if it has a column
            `content`, else from the inputs in the table `runs`.
        export: The images to write, and the directory.

    Raises:
        InputError: The directory holds other files, or no source of the images is known.
        TableError: The table does not exist, or somebody else changed it.
    """
    spark = get_session(options.output, options.content_from, export.directory)
    start, output = time.perf_counter(), Output.of(spark, options)
    table = _Table.of(output, export.table)
    contents = _contents(options, table)
    directory = _claim(spark, export.directory)
    storage = Storage(settings(spark, HADOOP_PREFIXES))
    _write_file(storage, directory, _UNFINISHED, "An export by nsfw-spark that is not complete.\n")
    shards = _write_shards(table.rows, contents, ShardWriter(storage, directory, export.format), export.size)
    exported = Exported(shards, time.perf_counter() - start)
    _report_missing(exported)
    manifest = json.dumps(_manifest(exported, export, table, contents), indent=2, ensure_ascii=False)
    _write_file(storage, directory, MANIFEST, manifest + "\n")
    for name in (TEMPORARY, _UNFINISHED):
        delete(spark, f"{directory}/{name}")
    return exported


@dataclass(frozen=True)
class _Table:
    """A filtered table at one version."""

    output: Output
    name: ExportedTable
    version: int
    state: FilterState

    @classmethod
    def of(cls, output: Output, name: ExportedTable) -> _Table:
        """Return the table at its last version.

        Raises:
            TableError: The table does not exist, or somebody else changed it, so that its policy is unknown.
        """
        version, state = last_version(output, name), filter_state(output, name)
        if version is None or state is None:
            problem = "there is no table" if version is None else "not nsfw-spark made the last change of"
            raise TableError(
                f"{problem} {output.name(name)}; expected one that shows image_scores under a policy. First: "
                f"nsfw-spark filter {output.location} --threshold T"
            )
        return cls(output, name, version, state)

    @property
    def rows(self) -> DataFrame:
        return self.output.table(self.name, self.version)

    def setting(self, key: str) -> str | None:
        """Return one of this package's properties of the table."""
        rows = self.output.spark.sql(f"SHOW TBLPROPERTIES {self.output.name(self.name)}").collect()
        return next((str(row.value) for row in rows if row.key == PROPERTY.format(key)), None)


def _contents(options: JobOptions, table: _Table) -> Contents:
    """Return the source of the images that the table does not hold itself."""
    spark, columns = table.output.spark, (options.content_column, options.id_column)
    if (named := open_contents(spark, options.content_from, *columns)) is not None:
        return named
    if "content" in table.rows.columns:
        return Contents(())
    recorded, problems = recorded_contents(table.output, *columns)
    if not recorded.sources:
        problem = "; ".join(problems) or "the table runs names no input"
        raise InputError(
            f"{table.output.name(table.name)} has no column content, and its images are not where they were "
            f"scored ({problem}). Say where they are: --content-from SOURCE"
        )
    for problem in problems:
        sys.stderr.write(f"nsfw-spark: left out: {problem}\n")
    return recorded


def _claim(spark: SparkSession, location: str) -> str:
    """Empty a directory that this export may write to, and return its full URI.

    Raises:
        InputError: The directory holds files that no unfinished export left.
    """
    uri = str(file_system(spark, absolute_uri(location))[1].toString())
    names = list_names(spark, uri)
    if MANIFEST in names:
        raise InputError(f"{location} holds a complete export ({MANIFEST}); expected an empty directory")
    foreign = [name for name in names if not _OURS.fullmatch(name)]
    if foreign or (names and _UNFINISHED not in names):
        raise InputError(
            f"{location} is not empty (it holds {(foreign or names)[0]}); expected an empty directory, or "
            "one that does not exist"
        )
    delete(spark, uri)
    return uri


def _write_shards(rows: DataFrame, contents: Contents, writer: ShardWriter, size: ShardSize) -> list[Shard]:
    """Write all shards on the executors; return them in order. `contents` has the bytes that rows lack."""
    ordered = _ordered(rows.drop("content"))
    try:
        placed, num_shards = _placed(ordered, size)
        if "content" in rows.columns:
            own = rows.groupBy("image_id").agg(F.first("content", ignorenulls=True).alias("content"))
            placed = placed.join(own, "image_id", "left")
        images = contents.join(placed).repartition(max(1, num_shards), SHARD)
        images = contents.read_files(images.sortWithinPartitions(SHARD, KEY))
        written = images.select(SHARD, KEY, *_written_columns(rows), "format", "content")
        results = written.mapInArrow(partial(_write_on_executor, writer), _RESULT).collect()
    finally:
        ordered.unpersist()
    return sorted((Shard(**row.asDict()) for row in results), key=lambda shard: shard.number)


def _written_columns(rows: DataFrame) -> list[str]:
    ours = {schema.IMAGE_ID.name, *schema.SCORE.names, *schema.MODEL.names, schema.CONTENT.name}
    return [*_WRITTEN, *(name for name in rows.columns if name not in ours)]


def _write_on_executor(writer: ShardWriter, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    columns = schema.arrow_schema(_RESULT)
    for shard in writer.write(batches):
        yield pa.RecordBatch.from_pylist([asdict(shard)], schema=columns)


def _ordered(rows: DataFrame) -> DataFrame:
    """Sort by image_id and persist: `_place` holds partition and row, which must not change."""
    ordered = rows.orderBy("image_id", "content_sha256", "scored_at")
    return ordered.withColumn("_place", F.monotonically_increasing_id()).persist()


def _placed(ordered: DataFrame, size: ShardSize) -> tuple[DataFrame, int]:
    """Return the rows with their key and their shard's number, and the number of shards.

    The numbers follow from the order alone, not from Spark's partitions. Each `size.images` rows form a
    group; a group with more than `size.bytes` becomes several shards.
    """
    spark, partition = ordered.sparkSession, F.shiftright("_place", _PARTITION_BITS).alias("_partition")
    sizes = ordered.groupBy(partition).count().orderBy("_partition").collect()
    firsts = [sum(row["count"] for row in sizes[:i]) for i in range(len(sizes))]
    offsets = [(row["_partition"], first) for row, first in zip(sizes, firsts, strict=True)]
    offset = F.broadcast(spark.createDataFrame(offsets, "_partition long, _first long"))
    row_number = F.col("_place").bitwiseAND((1 << _PARTITION_BITS) - 1)
    number = (F.col("_first") + row_number).alias("_number")
    numbered = ordered.join(offset, F.shiftright("_place", _PARTITION_BITS) == F.col("_partition"))
    numbered = numbered.select(*ordered.columns, number)
    numbered = numbered.withColumn("_group", F.floor(F.col("_number") / size.images))
    before = Window.partitionBy("_group").orderBy("_number").rowsBetween(Window.unboundedPreceding, -1)
    num_bytes = F.coalesce(F.sum("length").over(before), F.lit(0))
    grouped = numbered.withColumn("_part", F.floor(num_bytes / size.bytes))
    parts = sorted(grouped.select("_group", "_part").distinct().collect())
    shards = [(*part, number) for number, part in enumerate(parts)]
    shard = F.broadcast(spark.createDataFrame(shards, f"_group long, _part long, {SHARD} long"))
    key = F.format_string("%09d", "_number").alias(KEY)
    return grouped.join(shard, ["_group", "_part"]).select(*ordered.columns[:-1], key, SHARD), len(parts)


def _report_missing(exported: Exported) -> None:
    if exported.missing:
        shown = ", ".join(exported.first_missing[:3])
        more = ", …" if exported.missing > len(exported.first_missing[:3]) else ""
        sys.stderr.write(
            f"nsfw-spark: {exported.missing:,} images are left out, because their bytes were not found as "
            f"they were scored: {shown}{more}\n"
        )


def _manifest(exported: Exported, export: ExportOptions, table: _Table, contents: Contents) -> dict[str, Any]:
    """Return the manifest: the files, their table, its policy and its model."""
    counts = exported.as_dict()
    threshold = table.setting("threshold")
    return {
        "package": f"nsfw-spark {nsfw_spark.__version__}",
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "format": export.format,
        "table": table.output.location,
        "tables": {export.table: table.version, "image_scores": table.state.image_scores_version},
        "policy": table.state.policy,
        "threshold": None if threshold is None else float(threshold),
        "model": table.setting("model"),
        "model_fingerprint": table.setting("model_fingerprint"),
        "content_from": [source.uri for source in contents.sources],
        "totals": {name: counts[name] for name in ("images", "shards", "bytes", "missing")},
        "first_missing": exported.first_missing,
        "files": [
            {name: getattr(shard, name) for name in ("name", "images", "bytes", "sha256")}
            for shard in exported.files
        ],
    }


def _write_file(storage: Storage, directory: str, name: str, text: str) -> None:
    """Write a small file that exists completely or not at all."""
    temporary = f"{directory}/{TEMPORARY}/{name}"
    with storage.create(temporary) as file:
        file.write(text.encode())
    storage.move(temporary, f"{directory}/{name}")
