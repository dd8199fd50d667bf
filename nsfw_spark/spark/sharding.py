"""Deals the rows of a table out to shards, and lets the executors write them.

The image_ids alone decide what lies where: they are sorted, numbered and cut. So the same rows give the same
shards, whatever the cluster; and only ids and metadata are sorted, before the images are joined.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Final

import pyarrow as pa
from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, LongType, StringType, StructField, StructType

from nsfw_spark.shards import KEY, SHARD, Shard, ShardWriter
from nsfw_spark.spark import schema
from nsfw_spark.spark.content import Contents

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
