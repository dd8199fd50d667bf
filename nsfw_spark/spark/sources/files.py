"""A directory of image files: one file is one image."""

from __future__ import annotations

import re
from typing import Final

from pyspark.sql import DataFrame, Row, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from nsfw_spark.readers.files import LocalFileReader
from nsfw_spark.readers.rows import ContentReader
from nsfw_spark.spark.schema import IMAGE_ID, MODIFICATION_TIME
from nsfw_spark.spark.sources.listing import LISTED, ListedFiles
from nsfw_spark.spark.sources.source import SourceOptions

_GLOB: Final = re.compile(r"[\\*?\[\]{}^]")
"""What Hadoop would not take for itself in a path."""


class ImageFiles(ListedFiles):
    """Image files of any format; the image_id is the file's URI."""

    holds = "images"
    columns = StructType([IMAGE_ID, MODIFICATION_TIME])
    file_column: str | None = "image_id"

    def __init__(self, spark: SparkSession, options: SourceOptions) -> None:
        super().__init__(spark, options)
        self._is_local = self.uri.startswith("file:")
        self.reader = LocalFileReader() if self._is_local else ContentReader()

    def prepared(self, files: DataFrame) -> DataFrame:
        """Let Spark read the bytes where it has the credentials, and no more than list local files."""
        if self._is_local:
            return files.select(*LISTED)
        return files.select(
            F.col("path").alias("image_id"),
            F.col("modificationTime").alias("modification_time"),
            "content",
        )

    def listed_again(self, files: list[Row]) -> DataFrame:
        """Return what the reader gets of some files: see `ListedFiles.listed_again`."""
        if self._is_local:
            return super().listed_again(files)
        return self.prepared(self._load(*(_GLOB.sub(r"\\\g<0>", file.path) for file in files)))
