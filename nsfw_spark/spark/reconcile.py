"""Accounts for the files that Spark listed and then passed over.

Spark's file sources drop empty files without a word, and files that vanish between listing and reading.
Here no image is lost: the stream's own log says which files each micro-batch held, and each of them that
has no row in image_scores after the stream ended gets one, with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from py4j.protocol import Py4JJavaError
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from nsfw_spark.errors import ImageError
from nsfw_spark.spark.hadoop import file_system, list_names
from nsfw_spark.spark.tables import IMAGE_SCORES, Output

_ROWS_AT_ONCE: Final = 10_000  # rows that the driver holds


def last_batch(spark: SparkSession, checkpoint: str) -> int:
    """Return the number of the last micro-batch that the stream's log knows; -1 for none."""
    names = list_names(spark, _source_log(checkpoint))
    numbers = [name.removesuffix(".compact") for name in names]
    return max((int(number) for number in numbers if number.isdecimal()), default=-1)


def account_for_skipped(
    spark: SparkSession,
    output: Output,
    checkpoint: str,
    *,
    after_batch: int,
    num_rows: int,
    row: dict[str, Any],
) -> int:
    """Add a row to image_scores for each listed file that has none.

    Args:
        spark: The session.
        output: Where image_scores lies.
        checkpoint: Of the stream over the files.
        after_batch: Micro-batches up to this one were accounted for by an earlier run.
        num_rows: Rows that the stream has just written; as many as it listed: none was passed over.
        row: The values of `schema.MODEL` for the new rows.

    Returns:
        How many rows were added.
    """
    columns = spark.table(output.name(IMAGE_SCORES)).schema
    listed = _listed(spark, checkpoint, after_batch)
    if listed.count() == num_rows:
        return 0
    skipped = listed.join(spark.table(output.name(IMAGE_SCORES)).select("image_id"), "image_id", "left_anti")
    num_added = 0
    for image_ids in _chunks(skipped):
        rows = [{**row, **_why(spark, image_id)} for image_id in image_ids]
        _frame(spark, rows, columns).writeTo(output.name(IMAGE_SCORES)).append()
        num_added += len(rows)
    return num_added


def _source_log(checkpoint: str) -> str:
    return f"{checkpoint}/sources/0"


def _listed(spark: SparkSession, checkpoint: str, after_batch: int) -> DataFrame:
    """Return the image_id of each file in the stream's log, whose lines are `v1` and then JSON."""
    entries = spark.read.schema("path string, batchId long").json(_source_log(checkpoint))
    # The log holds encoded URIs, image_id Hadoop's paths. Unlike the encoding of web forms, that of URIs
    # leaves a plus sign as it is; and where there is no host, Hadoop writes one slash for three.
    decoded = F.url_decode(F.replace(F.col("path"), F.lit("+"), F.lit("%2B")))
    image_id = F.regexp_replace(decoded, "^([a-z0-9]+):///", "$1:/")
    new = entries.filter(F.col("path").isNotNull() & (F.col("batchId") > after_batch))
    return new.select(image_id.alias("image_id")).distinct()


def _why(spark: SparkSession, image_id: str) -> dict[str, Any]:
    """Return what a row says of a file that Spark passed over."""
    files, path = file_system(spark, image_id)
    try:
        length = int(files.getFileStatus(path).getLen())
    except Py4JJavaError:
        error = ImageError("missing", "the file was listed and was gone when it was to be read")
        return {"image_id": image_id, "status": error.status, "error": error.message}
    error = ImageError("undecodable", "the file is empty (0 bytes)")
    if length:
        error = ImageError("missing", f"the file was listed and not read; now it has {length} bytes")
    return {"image_id": image_id, "status": error.status, "error": error.message, "length": length}


def _chunks(image_ids: DataFrame) -> Iterator[list[str]]:
    chunk: list[str] = []
    for row in image_ids.toLocalIterator():
        chunk.append(row.image_id)
        if len(chunk) == _ROWS_AT_ONCE:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _frame(spark: SparkSession, rows: list[dict[str, Any]], columns: StructType) -> DataFrame:
    values = [[row.get(name) for name in columns.names] for row in rows]
    return spark.createDataFrame(values, columns).coalesce(1)
