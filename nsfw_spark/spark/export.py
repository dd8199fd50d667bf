"""Deals the rows of a table out to shards, and lets the executors write them.

The image_ids alone decide what lies where: they are sorted, numbered and cut. So the same rows give the same
shards, whatever the cluster; and only ids and metadata are sorted, before the images are joined.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, Literal

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession, Window
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, LongType, StringType, StructField, StructType

import nsfw_spark
from nsfw_spark.errors import InputError, TableError
from nsfw_spark.options import JobOptions
from nsfw_spark.readers.storage import HADOOP_PREFIXES, Storage
from nsfw_spark.shards import KEY, SHARD, TEMPORARY, Shard, ShardFormat, ShardWriter
from nsfw_spark.spark import schema
from nsfw_spark.spark.content import Contents, open_contents
from nsfw_spark.spark.filtered import Shown, shown_by
from nsfw_spark.spark.hadoop import delete, file_system, list_names, settings
from nsfw_spark.spark.runs import Clock
from nsfw_spark.spark.session import get_session
from nsfw_spark.spark.sources import Source, SourceOptions, open_source
from nsfw_spark.spark.tables import PROPERTY, RUNS, Output, last_version
from nsfw_spark.uris import absolute_uri

_PARTITION_BITS: Final = 33  # below them monotonically_increasing_id counts, above is the partition

_WRITTEN: Final = ("image_id", "nsfw_score", "content_sha256", "width", "height", "model")
"""What is said of each image, besides what the source carried along."""

_RESULT: Final = StructType(
    [
        StructField("number", LongType()),
        StructField("name", StringType()),
        StructField("images", LongType()),
        StructField("bytes", LongType()),
        StructField("sha256", StringType()),
        StructField("missing", LongType()),
        StructField("first_missing", ArrayType(StringType())),
    ]
)
"""A `Shard`, as a row."""


@dataclass(frozen=True)
class ShardSize:
    """How much one shard holds."""

    images: int = 10_000
    """At most."""
    bytes: int = 1 << 30
    """About: a shard ends with the image that makes it so large."""


def write_shards(rows: DataFrame, contents: Contents, writer: ShardWriter, size: ShardSize) -> list[Shard]:
    """Write all shards on the executors; return them in order.

    Args:
        rows: Of a filtered table; a `content` that is there is taken.
        contents: Where the other images lie.
        writer: Of the shards.
        size: Of the shards.
    """
    ordered = _ordered(rows.drop("content"))
    try:
        placed, num_shards = _placed(ordered, size)
        if "content" in rows.columns:
            own = rows.groupBy("image_id").agg(F.first("content", ignorenulls=True).alias("content"))
            placed = placed.join(own, "image_id", "left")
        images = contents.join(placed).repartition(max(1, num_shards), SHARD)
        images = contents.read_files(images.sortWithinPartitions(SHARD, KEY))
        written = images.select(SHARD, KEY, *_columns(rows), "format", "content")
        results = written.mapInArrow(partial(_write_shards, writer), _RESULT).collect()
    finally:
        ordered.unpersist()
    return sorted((Shard(**row.asDict()) for row in results), key=lambda shard: shard.number)


def _columns(rows: DataFrame) -> list[str]:
    """Return the names of what is said of each image."""
    ours = {schema.IMAGE_ID.name, *schema.SCORE.names, *schema.MODEL.names, schema.CONTENT.name}
    return [*_WRITTEN, *(name for name in rows.columns if name not in ours)]


def _write_shards(writer: ShardWriter, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    columns = schema.arrow_schema(_RESULT)
    for shard in writer.write(batches):
        yield pa.RecordBatch.from_pylist([asdict(shard)], schema=columns)


def _ordered(rows: DataFrame) -> DataFrame:
    """Sort by image_id, and keep what was sorted: `_place` holds partition and row, which must not change."""
    ordered = rows.orderBy("image_id", "content_sha256", "scored_at")
    return ordered.withColumn("_place", F.monotonically_increasing_id()).persist()


def _placed(ordered: DataFrame, size: ShardSize) -> tuple[DataFrame, int]:
    """Return the rows with key and number of shard, and the number of shards.

    Numbers follow from the order alone, however Spark has cut it. Each `size.images` rows are a group; where
    these are more than `size.bytes`, it is several shards.
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


MANIFEST: Final = "manifest.json"
_UNFINISHED: Final = "_unfinished"
_OURS: Final = re.compile(rf"\d{{5,}}\.(tar|parquet)|{TEMPORARY}|{_UNFINISHED}")
_SHOWN: Final = 10  # image_ids of missing images

ExportedTable = Literal["safe_images", "flagged_images", "quarantined_images"]


@dataclass(frozen=True)
class ExportOptions:
    """What is written where."""

    directory: str
    """URI; it must be empty, or hold an unfinished export."""
    format: ShardFormat = "webdataset"
    table: ExportedTable = "safe_images"
    size: ShardSize = field(default_factory=ShardSize)


@dataclass(frozen=True)
class Exported:
    """What an export wrote."""

    shards: list[Shard]
    """In order; those without a file are among them."""
    seconds: float

    @property
    def files(self) -> list[Shard]:
        """Return the shards that have a file."""
        return [shard for shard in self.shards if shard.name is not None]

    @property
    def missing(self) -> int:
        """Images whose bytes were not found."""
        return sum(shard.missing for shard in self.shards)

    @property
    def missing_rate(self) -> float:
        """Share of all images whose bytes were not found."""
        total = self.missing + sum(shard.images for shard in self.shards)
        return self.missing / total if total else 0.0

    @property
    def first_missing(self) -> list[str]:
        """The image_ids of some of them."""
        return [image_id for shard in self.shards for image_id in shard.first_missing][:_SHOWN]

    def as_dict(self) -> dict[str, Any]:
        """Return the keys that users and checks rely on, in their order."""
        return {
            "images": sum(shard.images for shard in self.shards),
            "shards": len(self.files),
            "bytes": sum(shard.bytes for shard in self.shards),
            "missing": self.missing,
            "seconds": round(self.seconds, 3),
        }


def export_job(options: JobOptions, export: ExportOptions) -> Exported:
    """Write the images of a filtered table for training; loads no model.

    Args:
        options: Of these `output`, where the tables lie; `content_from`, `content_column` and `id_column`,
            where the images lie. Without `content_from` they come from the table itself, if it has a column
            `content`, else from the inputs that the table `runs` names.
        export: What is written where.

    Raises:
        InputError: The directory holds something else, or there is no place where the images could lie.
        TableError: There is no such table, or somebody else changed it.
    """
    spark = get_session()
    clock, output = Clock(), Output.of(spark, options)
    table = _Table.of(output, export.table)
    contents = _contents(spark, options, table)
    directory = _claim(spark, export.directory)
    storage = Storage(settings(spark, HADOOP_PREFIXES))
    _write_file(storage, directory, _UNFINISHED, "An export by nsfw-spark that is not complete.\n")
    writer = ShardWriter(storage, directory, export.format)
    shards = write_shards(table.rows, contents, writer, export.size)
    exported = Exported(shards, clock.seconds())
    _tell_missing(exported)
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
    shown: Shown

    @classmethod
    def of(cls, output: Output, name: ExportedTable) -> _Table:
        """Take a table as it stands.

        Raises:
            TableError: It is not there, or somebody else changed it, so that its policy is not known.
        """
        version, shown = last_version(output, name), shown_by(output, name)
        if version is None or shown is None:
            problem = "there is no table" if version is None else "not nsfw-spark made the last change of"
            raise TableError(
                f"{problem} {output.name(name)}; expected one that shows image_scores under a policy. First: "
                f"nsfw-spark filter {output.location} --threshold T"
            )
        return cls(output, name, version, shown)

    @property
    def rows(self) -> DataFrame:
        return self.output.table(self.name, self.version)

    def setting(self, key: str) -> str | None:
        """Return what the table says of itself."""
        found = self.output.spark.sql(f"SHOW TBLPROPERTIES {self.output.name(self.name)}").collect()
        return next((str(row.value) for row in found if row.key == PROPERTY.format(key)), None)


def _contents(spark: SparkSession, options: JobOptions, table: _Table) -> Contents:
    """Return where the images lie that the table does not hold itself."""
    columns = (options.content_column, options.id_column)
    if (named := open_contents(spark, options.content_from, *columns)) is not None:
        return named
    if "content" in table.rows.columns:
        return Contents(())
    uris = _recorded_inputs(table.output)
    sources, problems = _opened(spark, uris, *columns)
    if not sources:
        found = "; ".join(problems) or "the table runs names no input"
        raise InputError(
            f"{table.output.name(table.name)} has no column content, and its images are not where they were "
            f"scored ({found}). Say where they are: --content-from SOURCE"
        )
    for problem in problems:
        sys.stderr.write(f"nsfw-spark: left out: {problem}\n")
    return Contents(tuple(sources))


def _recorded_inputs(output: Output) -> list[str]:
    """Return the inputs of all runs so far, by name."""
    if not output.exists(RUNS):
        return []
    inputs = output.table(RUNS).select("input").filter(F.col("input").isNotNull())
    return sorted(row.input for row in inputs.distinct().collect())


def _opened(
    spark: SparkSession, uris: list[str], content_column: str | None, id_column: str | None
) -> tuple[list[Source], list[str]]:
    """Return those sources that can be read, and why others cannot."""
    sources, problems = [], []
    for uri in uris:
        options = SourceOptions(uri, content_column=content_column, id_column=id_column, carry="none")
        try:
            sources.append(open_source(spark, options))
        except InputError as error:
            problems.append(str(error))
    return sources, problems


def _claim(spark: SparkSession, location: str) -> str:
    """Make sure that a directory is ours to write to, empty it, and return its full URI.

    Raises:
        InputError: Something is there that no unfinished export left.
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


def _tell_missing(exported: Exported) -> None:
    if exported.missing:
        shown = ", ".join(exported.first_missing[:3])
        sys.stderr.write(
            f"nsfw-spark: {exported.missing:,} images are left out, whose bytes were not found as they were "
            f"scored: {shown}{', …' if exported.missing > len(exported.first_missing[:3]) else ''}\n"
        )


def _manifest(exported: Exported, export: ExportOptions, table: _Table, contents: Contents) -> dict[str, Any]:
    """Return what the directory holds and where it is from."""
    counts = exported.as_dict()
    threshold = table.setting("threshold")
    return {
        "package": f"nsfw-spark {nsfw_spark.__version__}",
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "format": export.format,
        "table": table.output.location,
        "tables": {export.table: table.version, "image_scores": table.shown.image_scores_version},
        "policy": table.shown.policy,
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
    """Write a small file that is there whole or not at all."""
    temporary = f"{directory}/{TEMPORARY}/{name}"
    with storage.create(temporary) as file:
        file.write(text.encode())
    storage.move(temporary, f"{directory}/{name}")
