"""Image files that Databricks' Auto Loader lists: it is told of new ones, where listing would take hours."""

from __future__ import annotations

import os

from pyspark.sql import DataFrame, SparkSession

from nsfw_spark.errors import ConfigError
from nsfw_spark.spark.hadoop import literally
from nsfw_spark.spark.sources.files import ImageFiles
from nsfw_spark.spark.sources.source import Limit, SourceOptions


class AutoLoaderFiles(ImageFiles):
    """Like `files`, listed by Auto Loader, whose log of listed files only Databricks reads.

    So files that it passes over, empty or vanished ones, get no row: what `files` looks up afterwards.
    """

    file_column = None

    def __init__(self, spark: SparkSession, options: SourceOptions) -> None:
        if "DATABRICKS_RUNTIME_VERSION" not in os.environ:
            raise ConfigError(
                "--format cloudfiles is Databricks' Auto Loader, and this is not a Databricks cluster (there "
                "is no DATABRICKS_RUNTIME_VERSION); expected --format files, which lists the directory itself"
            )
        super().__init__(spark, options)

    def stream(self, limit: Limit) -> DataFrame:
        """List what is new: see `Source.stream`."""
        reader = self.spark.readStream.format("cloudFiles").options(**self.auto_loader_options(limit))
        return self.prepared(reader.load(literally(self.uri)))

    def auto_loader_options(self, limit: Limit) -> dict[str, str]:
        """Return the options of Auto Loader; the schema of binaryFile it knows itself.

        Source:
            docs.databricks.com, "Auto Loader options" (2026).
        """
        return {
            "cloudFiles.format": "binaryFile",
            "cloudFiles.includeExistingFiles": "true",
            "cloudFiles.maxFilesPerTrigger": str(limit.num_files or limit.num_images),
            # A changed file is not scored again silently: as with `files`.
            "cloudFiles.allowOverwrites": "false",
            **self._file_options(),
        }
