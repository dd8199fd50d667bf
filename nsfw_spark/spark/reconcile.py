"""Accounts for the files that Spark listed and then passed over.

Spark's file sources drop empty files without a word, and files that vanish between listing and reading; where
the job goes on without them, also such as a store does not give out. Files of a store that are too long it is
not asked for. Here no image is lost: the stream's own log says which files each micro-batch held, and each of
them that has no row in image_scores after the stream ended gets one, with the reason.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from py4j.protocol import Py4JJavaError
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from nsfw_spark.decode import too_long
from nsfw_spark.errors import ImageError
from nsfw_spark.spark.checkpoints import listed_files_log
from nsfw_spark.spark.faults import reason
from nsfw_spark.spark.hadoop import file_system, in_chunks, literally
from nsfw_spark.spark.schema import IMAGE_ID
from nsfw_spark.spark.tables import IMAGE_SCORES, Output

_ROWS_AT_ONCE: Final = 10_000  # that the driver holds, and that one commit adds


def account_for_skipped(  # noqa: PLR0913 - all but the first four are keywords
    output: Output,
    checkpoint: str,
    file_column: str,
    *,
    after_batch: int,
    max_bytes: int,
    num_rows: int,
    row: dict[str, Any],
    user_metadata: str,
) -> int:
    """Add a row to image_scores for each listed file that has none.

    Args:
        output: Where image_scores lies.
        checkpoint: Of the stream over the files.
        file_column: Column of image_scores with the file that a row is from.
        after_batch: Micro-batches up to this one were accounted for by an earlier run.
        max_bytes: Of a file; longer ones were not to be read.
        num_rows: Rows that the stream has just written; where a file is one row, as many as it listed means
            that none was passed over.
        row: The values of `schema.MODEL` for the new rows.
        user_metadata: What the commits say of their run.

    Returns:
        How many rows were added.
    """
    scores = output.table(IMAGE_SCORES)
    listed = _listed(output.spark, checkpoint, after_batch)
    is_file_a_row = file_column == IMAGE_ID.name
    if is_file_a_row and listed.count() == num_rows:
        return 0
    skipped = listed.join(scores.select(F.col(file_column).alias("file")), "file", "left_anti")
    num_added = 0
    for chunk in in_chunks(skipped, _ROWS_AT_ONCE):
        found = {row.file: _status(output.spark, row.file) for row in chunk}
        if not is_file_a_row:  # a table file may well hold no row
            found = {file: status for file, status in found.items() if not (status.length or 0)}
        rows = [
            {**row, "image_id": file, file_column: file, **_why(status, max_bytes)}
            for file, status in found.items()
        ]
        if rows:
            writer = _frame(output.spark, rows, scores.schema).writeTo(output.name(IMAGE_SCORES))
            writer.option("userMetadata", user_metadata).append()
        num_added += len(rows)
    return num_added


def _listed(spark: SparkSession, checkpoint: str, after_batch: int) -> DataFrame:
    """Return each `file` in the stream's log, whose lines are `v1` and then JSON."""
    entries = spark.read.schema("path string, batchId long").json(literally(listed_files_log(checkpoint)))
    # The log holds encoded URIs, image_id Hadoop's paths. Unlike the encoding of web forms, that of URIs
    # leaves a plus sign as it is; and where there is no host, Hadoop writes one slash for three.
    decoded = F.url_decode(F.replace(F.col("path"), F.lit("+"), F.lit("%2B")))
    file = F.regexp_replace(decoded, "^([a-z0-9]+):///", "$1:/")
    new = entries.filter(F.col("path").isNotNull() & (F.col("batchId") > after_batch))
    return new.select(file.alias("file")).distinct()


class _Status(NamedTuple):
    """What a file system says of a file now."""

    length: int | None = None
    """Bytes; None: it is gone, or the file system does not say."""
    modified: datetime | None = None
    problem: str = ""


def _status(spark: SparkSession, file: str) -> _Status:
    files, path = file_system(spark, file)
    try:
        found = files.getFileStatus(path)
    except Py4JJavaError as error:
        if str(error.java_exception.getClass().getSimpleName()) == "FileNotFoundException":
            return _Status(problem="was gone when it was to be read")
        return _Status(problem=f"could not be read ({reason(error)})")
    modified = datetime.fromtimestamp(found.getModificationTime() / 1000, UTC)
    return _Status(int(found.getLen()), modified)


def _why(found: _Status, max_bytes: int) -> dict[str, Any]:
    """Return what a row says of a file that Spark passed over."""
    length = found.length
    if length is None:
        error = ImageError("missing", f"the file was listed and {found.problem}")
    elif length == 0:
        error = ImageError("undecodable", "the file is empty (0 bytes)")
    elif length > max_bytes:
        error = too_long(length, max_bytes)
    else:
        error = ImageError("missing", f"the file was listed and could not be read; now it has {length} bytes")
        length = None  # of what was not read: so `--rescore changed` tries it again
    row = {"status": error.status, "error": error.message, "length": length}
    return {**row, "modification_time": found.modified}


def _frame(spark: SparkSession, rows: list[dict[str, Any]], columns: StructType) -> DataFrame:
    values = [[row.get(name) for name in columns.names] for row in rows]
    return spark.createDataFrame(values, columns).coalesce(1)
