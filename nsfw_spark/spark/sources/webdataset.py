"""WebDataset: tars that hold images, and beside them captions and metadata."""

from __future__ import annotations

from pyspark.sql import SparkSession
from pyspark.sql.types import StringType, StructField, StructType

from nsfw_spark.readers.webdataset import TarReader
from nsfw_spark.spark.sources.files import ListedFiles
from nsfw_spark.spark.sources.source import FILE_COLUMNS, SourceOptions, chosen


def _sidecar(name: str, comment: str) -> StructField:
    return StructField(name, StringType(), nullable=True, metadata={"comment": comment})


_SIDECARS = [
    _sidecar("caption", "of the .txt beside the image"),
    _sidecar("json", "of the .json beside the image"),
    _sidecar("cls", "of the .cls beside the image"),
]


class Tars(ListedFiles):
    """Tars, compressed or not; the image_id is `…/x.tar!/entry`."""

    holds = "tars"
    suffixes = ("tar", "tar.gz", "tgz", "tar.bz2", "tbz2", "tar.xz", "txz")
    bytes_per_image = 50_000
    file_column = "source_file"

    def __init__(self, spark: SparkSession, options: SourceOptions) -> None:
        super().__init__(spark, options)
        self.reader = TarReader(self.storage(), options.max_bytes)
        self.columns = StructType([*FILE_COLUMNS, *chosen(_SIDECARS, options)])
