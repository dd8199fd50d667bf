"""Sources: where images come from.

Out: a DataFrame with at least `image_id` and `content`, batch or streaming. Today one source, `files`: a
directory of image files, which Spark lists and reads with its `binaryFile` format.
"""

from __future__ import annotations

from typing import Any, Final

from py4j.protocol import Py4JJavaError
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import BinaryType, LongType, StringType, StructField, StructType, TimestampType

from nsfw_spark.errors import InputError
from nsfw_spark.options import absolute_uri
from nsfw_spark.spark.hadoop import file_system, name_matcher

# A stream's schema must be given; this one is fixed by the format.
_BINARY_FILE: Final = StructType(
    [
        StructField("path", StringType()),
        StructField("modificationTime", TimestampType()),
        StructField("length", LongType()),
        StructField("content", BinaryType()),
    ]
)


def read_images(spark: SparkSession, uri: str, *, glob: str | None = None) -> DataFrame:
    """Read a directory of images, with all below it, as a batch.

    Spark itself leaves out empty files, and those whose names begin with `_` or `.`.

    Args:
        spark: The session.
        uri: Any directory that Spark reads: a local path, `s3a://…`, `abfss://…`, `/Volumes/…`.
        glob: Only files whose names match; default: all.

    Returns:
        Spark's binaryFile columns (`path`, `modificationTime`, `length`, `content`) and `image_id`.
    """
    reader = spark.read.format("binaryFile").options(**_file_options(glob))
    return _with_image_id(reader.load(absolute_uri(uri)))


def stream_images(
    spark: SparkSession, uri: str, *, files_per_batch: int, glob: str | None = None
) -> DataFrame:
    """Read a directory of images, with all below it, as a stream: see `read_images`.

    Args:
        spark: The session.
        uri: Any directory that Spark reads.
        files_per_batch: Files in one micro-batch.
        glob: Only files whose names match; default: all.
    """
    reader = (
        spark.readStream.format("binaryFile")
        .schema(_BINARY_FILE)
        .options(**_file_options(glob))
        .option("maxFilesPerTrigger", files_per_batch)
        # The stream would skip, in silence, files a week older than the newest it has seen.
        .option("maxFileAge", "36500d")
        # A file that is deleted after it was listed would fail its micro-batch for ever.
        .option("ignoreMissingFiles", "true")
    )
    return _with_image_id(reader.load(absolute_uri(uri)))


def check_directory(spark: SparkSession, uri: str, *, glob: str | None = None) -> str:
    """Make sure that there is something to read, without listing it all.

    Returns:
        The directory's full URI.

    Raises:
        InputError: Missing, not a directory, or without a file that the source would list.
    """
    try:
        files, path = file_system(spark, absolute_uri(uri))
        status = files.getFileStatus(path)
    except Py4JJavaError as error:
        said = str(error.java_exception.getMessage()).splitlines()[0]
        raise InputError(f"input {uri} cannot be read: {said}. Expected a directory") from None
    if status.isFile():
        raise InputError(f"input {uri} is a file; expected a directory. To read one file: --glob NAME")
    if not _has_file(files, path, None if glob is None else name_matcher(spark, glob)):
        matching = f" that matches {glob}" if glob else ""
        raise InputError(f"input {uri} holds no file{matching}; expected a directory with images")
    return str(path.toString())


def _has_file(files: Any, directory: Any, matcher: Any | None) -> bool:  # noqa: ANN401 - Java objects
    """Whether Spark would list a file here or below: names that begin with `_` or `.` it skips."""
    found = files.listStatusIterator(directory)
    while found.hasNext():
        status = found.next()
        name = status.getPath().getName()
        if name.startswith(("_", ".")):
            continue
        if status.isDirectory():
            if _has_file(files, status.getPath(), matcher):
                return True
        elif matcher is None or matcher.matches(name):
            return True
    return False


def _file_options(glob: str | None) -> dict[str, str]:
    options = {"recursiveFileLookup": "true"}
    if glob is not None:
        options["pathGlobFilter"] = glob
    return options


def _with_image_id(files: DataFrame) -> DataFrame:
    return files.withColumn("image_id", F.col("path"))
