"""A directory of image files: one file is one image."""

from __future__ import annotations

from pyspark.sql import DataFrame, Row, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from nsfw_spark.readers.chunk import MOST_BYTES
from nsfw_spark.readers.files import ContentReader, LocalFileReader
from nsfw_spark.spark.schema import IMAGE_ID, MODIFICATION_TIME
from nsfw_spark.spark.sources.listing import LISTED, LISTED_SCHEMA, ListedFiles
from nsfw_spark.spark.sources.source import SourceOptions


class ImageFiles(ListedFiles):
    """Image files of any format; the image_id is the file's URI."""

    holds = "images"
    columns = StructType([IMAGE_ID, MODIFICATION_TIME])
    file_column: str | None = "image_id"

    def __init__(self, spark: SparkSession, options: SourceOptions) -> None:
        super().__init__(spark, options)
        self._is_local = self.uri.startswith("file:")
        self._max_bytes = min(options.max_bytes, MOST_BYTES)  # of what Spark reads
        self.reader = LocalFileReader(options.max_bytes) if self._is_local else ContentReader(self._max_bytes)

    def prepared(self, files: DataFrame) -> DataFrame:
        """Let Spark read the bytes where it has the credentials, and no more than list local files.

        It reads a file whole, which beyond 2 GiB fails the task: so files that are too long are passed over
        before they are opened.
        """
        if self._is_local:
            return files.select(*LISTED)
        return _as_images(files.filter(F.col("length") <= self._max_bytes))

    def listed_again(self, files: list[Row]) -> DataFrame:
        """Return what the reader gets of some files: see `ListedFiles.listed_again`."""
        if self._is_local:
            return super().listed_again(files)
        # Their rows are about to be replaced: those that are too long to be read need theirs here.
        too_long = self.spark.createDataFrame(
            [file for file in files if file.length > self._max_bytes], LISTED_SCHEMA
        )
        rows = _as_images(too_long.withColumn("content", F.lit(None).cast("binary")))
        paths = [file.path for file in files if file.length <= self._max_bytes]
        return self.prepared(self._load(*paths)).unionByName(rows) if paths else rows


def _as_images(files: DataFrame) -> DataFrame:
    """Return binaryFile's columns as `ContentReader` wants them."""
    return files.select(
        F.col("path").alias("image_id"),
        F.col("modificationTime").alias("modification_time"),
        "length",
        "content",
    )
