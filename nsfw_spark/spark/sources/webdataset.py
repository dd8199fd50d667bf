"""WebDataset on the driver: lists tars; `readers.webdataset` is the worker's half, which reads them."""

from __future__ import annotations

from typing import Final

from pyspark.sql import SparkSession
from pyspark.sql.types import StringType, StructField, StructType

from nsfw_spark.formats import SUFFIXES
from nsfw_spark.readers.webdataset import SIDECARS, TarReader
from nsfw_spark.spark.sources.files import ListedFiles
from nsfw_spark.spark.sources.source import FILE_COLUMNS, IMAGE_BYTES, SourceOptions

_SIDECARS: Final = [
    StructField(
        name, StringType(), nullable=True, metadata={"comment": f"of the .{extension} beside the image"}
    )
    for extension, name in SIDECARS.items()
]


class Tars(ListedFiles):
    """Tars, compressed or not; the image_id is `…/x.tar!/entry`."""

    holds = "tars"
    suffixes = SUFFIXES["webdataset"]
    bytes_per_image = IMAGE_BYTES
    file_column = "source_file"

    def __init__(self, spark: SparkSession, options: SourceOptions) -> None:
        super().__init__(spark, options)
        options.check_named([column.name for column in (*FILE_COLUMNS, *_SIDECARS)])
        self.reader = TarReader(self.storage(), options.max_bytes)
        self.columns = StructType([*FILE_COLUMNS, *options.carried(_SIDECARS)])
