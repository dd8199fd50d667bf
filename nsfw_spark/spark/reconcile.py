"""Accounts for the files that Spark listed and then passed over.

Spark's file sources drop empty files without a word, and files that vanish between listing and reading.
Here no image is lost: the stream's own log says which files each micro-batch held, and each of them that
has no row in image_scores after the stream ended gets one, with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final

from py4j.protocol import Py4JJavaError
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from nsfw_spark.errors import ImageError
from nsfw_spark.spark.checkpoints import listed_files_log
from nsfw_spark.spark.hadoop import file_system
from nsfw_spark.spark.schema import IMAGE_ID
from nsfw_spark.spark.tables import IMAGE_SCORES, Output

_ROWS_AT_ONCE: Final = 10_000  # rows that the driver holds


def account_for_skipped(  # noqa: PLR0913 - all but the first four are keywords
    spark: SparkSession,
    output: Output,
    checkpoint: str,
    file_column: str,
    *,
    after_batch: int,
    num_rows: int,
    row: dict[str, Any],
    user_metadata: str,
) -> int:
    """Add a row to image_scores for each listed file that has none.

    Args:
        spark: The session.
        output: Where image_scores lies.
        checkpoint: Of the stream over the files.
        file_column: Column of image_scores with the file that a row is from.
        after_batch: Micro-batches up to this one were accounted for by an earlier run.
        num_rows: Rows that the stream has just written; where a file is one row, as many as it listed means
            that none was passed over.
        row: The values of `schema.MODEL` for the new rows.
        user_metadata: What the commits say of their run.

    Returns:
        How many rows were added.
    """
    scores = spark.table(output.name(IMAGE_SCORES))
    listed = _listed(spark, checkpoint, after_batch)
    is_file_a_row = file_column == IMAGE_ID.name
    if is_file_a_row and listed.count() == num_rows:
        return 0
    skipped = listed.join(scores.select(F.col(file_column).alias("file")), "file", "left_anti")
    num_added = 0
    for files in _chunks(skipped):
        problems = [{"image_id": file, file_column: file, **_why(spark, file)} for file in files]
        if not is_file_a_row:  # a table file may well hold no row
            problems = [problem for problem in problems if not problem["length"]]
        rows = [{**row, **problem} for problem in problems]
        if rows:
            writer = _frame(spark, rows, scores.schema).writeTo(output.name(IMAGE_SCORES))
            writer.option("userMetadata", user_metadata).append()
        num_added += len(rows)
    return num_added


def _listed(spark: SparkSession, checkpoint: str, after_batch: int) -> DataFrame:
    """Return each `file` in the stream's log, whose lines are `v1` and then JSON."""
    entries = spark.read.schema("path string, batchId long").json(listed_files_log(checkpoint))
    # The log holds encoded URIs, image_id Hadoop's paths. Unlike the encoding of web forms, that of URIs
    # leaves a plus sign as it is; and where there is no host, Hadoop writes one slash for three.
    decoded = F.url_decode(F.replace(F.col("path"), F.lit("+"), F.lit("%2B")))
    file = F.regexp_replace(decoded, "^([a-z0-9]+):///", "$1:/")
    new = entries.filter(F.col("path").isNotNull() & (F.col("batchId") > after_batch))
    return new.select(file.alias("file")).distinct()


def _why(spark: SparkSession, file: str) -> dict[str, Any]:
    """Return what a row says of a file that Spark passed over."""
    files, path = file_system(spark, file)
    try:
        found = files.getFileStatus(path)
        length = int(found.getLen())
    except Py4JJavaError:
        error = ImageError("missing", "the file was listed and was gone when it was to be read")
        return {"status": error.status, "error": error.message, "length": None}
    error = ImageError("undecodable", "the file is empty (0 bytes)")
    if length:
        error = ImageError("missing", f"the file was listed and not read; now it has {length} bytes")
    modified = datetime.fromtimestamp(found.getModificationTime() / 1000, UTC)
    row = {"status": error.status, "error": error.message, "length": length}
    return {**row, "modification_time": modified}


def _chunks(files: DataFrame) -> Iterator[list[str]]:
    chunk: list[str] = []
    for row in files.toLocalIterator():
        chunk.append(row.file)
        if len(chunk) == _ROWS_AT_ONCE:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _frame(spark: SparkSession, rows: list[dict[str, Any]], columns: StructType) -> DataFrame:
    values = [[row.get(name) for name in columns.names] for row in rows]
    return spark.createDataFrame(values, columns).coalesce(1)
