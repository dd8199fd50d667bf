"""Gives a row to each file that Spark listed and then skipped, with the reason.

Spark's file sources skip empty files and deleted files without a word. A stream may also go on without the
files that a store fails to return, and does not request files of a store above the size limit. The stream's
log names the files of each micro-batch. A file of that log without a row in image_scores gets one here.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, NamedTuple

from py4j.protocol import Py4JJavaError
from pyspark.sql import DataFrame, Row, SparkSession
from pyspark.sql import functions as F

from nsfw_spark.decode import too_long
from nsfw_spark.errors import ImageError, storage_failed
from nsfw_spark.spark.checkpoints import listed_files_log
from nsfw_spark.spark.faults import is_forbidden, reason
from nsfw_spark.spark.hadoop import file_system, in_lists, literally
from nsfw_spark.spark.schema import IMAGE_ID
from nsfw_spark.spark.tables import IMAGE_SCORES, Output, last_version, only_once

_ROWS_AT_ONCE: Final = 10_000  # held by the driver, added by one commit

_LOOKUPS_AT_ONCE: Final = 16


def listed_files(spark: SparkSession, checkpoint: str, *, after_batch: int) -> DataFrame:
    """Return the column `file` of the files that a stream listed after a micro-batch."""
    # Each line of the log is `v1` or JSON.
    entries = spark.read.schema("path string, batchId long").json(literally(listed_files_log(checkpoint)))
    # The log has encoded URIs, image_id has Hadoop's paths. Unlike the encoding of web forms, the encoding of
    # URIs keeps a plus sign; and Hadoop writes one slash for three if there is no host.
    decoded = F.url_decode(F.replace(F.col("path"), F.lit("+"), F.lit("%2B")))
    file = F.regexp_replace(decoded, "^([a-z0-9]+):///", "$1:/")
    new = entries.filter(F.col("path").isNotNull() & (F.col("batchId") > after_batch))
    return new.select(file.alias("file")).distinct()


def account_for_skipped(
    output: Output, listed: DataFrame, file_column: str, *, max_bytes: int, num_rows: int, row: dict[str, Any]
) -> None:
    """Add a row to image_scores for each listed file that has none.

    Args:
        output: Where image_scores lies.
        listed: From `listed_files`.
        file_column: The column of image_scores with the file of a row.
        max_bytes: Longer files were not requested.
        num_rows: Rows that the stream has just written. If each file is one row and the stream listed as many
            files, it skipped none.
        row: Values of `schema.MODEL` for the new rows.
    """
    is_file_a_row = file_column == IMAGE_ID.name
    if is_file_a_row and listed.count() == num_rows:
        return
    version = last_version(output, IMAGE_SCORES) or 0  # before the rows are read
    scores = output.table(IMAGE_SCORES)
    skipped = listed.join(scores.select(F.col(file_column).alias("file")), "file", "left_anti")
    for number, files in enumerate(in_lists(skipped, _ROWS_AT_ONCE)):
        found = {each.file: _status(output.spark, each.file, max_bytes) for each in files}
        if not is_file_a_row:  # a table file may hold no row
            found = {file: status for file, status in found.items() if not status.length}
        rows = [
            {**row, "image_id": file, file_column: file, **_result(status, max_bytes)}
            for file, status in found.items()
        ]
        if rows:
            values = [[each.get(name) for name in scores.columns] for each in rows]
            frame = output.spark.createDataFrame(values, scores.schema).coalesce(1)
            output.writer(IMAGE_SCORES, frame).options(**only_once(version + number)).append()


def readable_files(spark: SparkSession, listed: DataFrame, max_bytes: int) -> list[Row]:
    """Return `path`, `modificationTime` and `length` of the listed files that can be read."""
    with ThreadPoolExecutor(_LOOKUPS_AT_ONCE) as threads:
        files = [row.file for row in listed.collect()]
        found = zip(files, threads.map(partial(_status, spark, max_bytes=max_bytes), files), strict=True)
    return [
        Row(path=file, modificationTime=status.modified, length=status.length)
        for file, status in found
        if status.length
    ]


class _Status(NamedTuple):
    """A file's state in its file system now."""

    length: int | None = None
    """Bytes; None if there is a `problem`."""
    modified: datetime | None = None
    problem: ImageError | None = None
    """Why it cannot be read."""


def _status(spark: SparkSession, file: str, max_bytes: int) -> _Status:
    """Look a file up and read its first byte: a user who may list it may not be allowed to read it."""
    try:
        files, path = file_system(spark, file)
        status = files.getFileStatus(path)
        length, modified = int(status.getLen()), status.getModificationTime() / 1000
        if 0 < length <= max_bytes:
            stream = files.open(path)
            try:
                stream.read()
            finally:
                stream.close()
    except Py4JJavaError as error:
        return _Status(problem=_problem(error))
    return _Status(length, datetime.fromtimestamp(modified, UTC))


def _problem(error: Py4JJavaError) -> ImageError:
    if str(error.java_exception.getClass().getSimpleName()) == "FileNotFoundException":
        return ImageError("missing", "the file was listed and was gone when it was to be read")
    if is_forbidden(error):
        return ImageError("missing", f"the file was listed and could not be read ({reason(error)})")
    return storage_failed(reason(error))


def _result(status: _Status, max_bytes: int) -> dict[str, Any]:
    """Return the columns of a skipped file's row that say why it has no score."""
    length = status.length
    if status.problem is not None:
        error = status.problem
    elif not length:
        error = ImageError("undecodable", "the file is empty (0 bytes)")
    elif length > max_bytes:
        error = too_long(length, max_bytes)
    else:
        error = storage_failed(f"Spark read no byte of it; now it has {length} bytes")
        length = None  # nothing was read, so `--rescore changed` tries the file again
    values = {"status": error.status, "error": error.message, "length": length}
    return {**values, "modification_time": status.modified}
