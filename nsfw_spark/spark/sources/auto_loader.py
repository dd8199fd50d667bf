"""Image files that Databricks' Auto Loader lists: like `files`, for directories too large to be listed."""

from __future__ import annotations

import os
from collections.abc import Mapping

from pyspark.sql import DataFrame, SparkSession

from nsfw_spark.errors import ConfigError
from nsfw_spark.spark.hadoop import literally
from nsfw_spark.spark.sources.files import ImageFiles
from nsfw_spark.spark.sources.source import Limit, SourceOptions


class AutoLoaderFiles(ImageFiles):
    """Like `files`, listed by Databricks' Auto Loader.

    Only Databricks can read its log of listed files. So empty or vanished files, which it skips, get no row.
    """

    file_column = None

    def __init__(self, spark: SparkSession, options: SourceOptions) -> None:
        if "DATABRICKS_RUNTIME_VERSION" not in os.environ:
            raise ConfigError(
                "--format cloudfiles is Databricks' Auto Loader, and this is not a Databricks cluster (there "
                "is no DATABRICKS_RUNTIME_VERSION); expected --format files, which lists the directory itself"
            )
        super().__init__(spark, options)
        self._reader_options: Mapping[str, str] = {}
        ours = {*map(str.lower, self.auto_loader_options(Limit(1))), "pathglobfilter", "path"}
        if taken := [name for name in options.reader_options if name.lower() in ours]:
            raise ConfigError(
                f"--source-option {taken[0]}: this job sets that option itself; leave it out (--glob chooses "
                "files by their names, --files-per-batch the size of a micro-batch)"
            )
        self._reader_options = options.reader_options

    def stream(self, limit: Limit) -> DataFrame:
        """List new files: see `Source.stream`."""
        reader = self.spark.readStream.format("cloudFiles").options(**self.auto_loader_options(limit))
        return self.prepared(reader.load(literally(self.uri)))

    def auto_loader_options(self, limit: Limit) -> dict[str, str]:
        """Return the options of Auto Loader, which knows the schema of binaryFile.

        Source:
            docs.databricks.com, "Auto Loader options" (2026).
        """
        return {
            "cloudFiles.format": "binaryFile",
            "cloudFiles.includeExistingFiles": "true",
            "cloudFiles.maxFilesPerTrigger": str(limit.num_files or limit.num_images),
            # As with `files`, a changed file keeps its score.
            "cloudFiles.allowOverwrites": "false",
            # A file that is deleted after it was listed would fail its micro-batch again and again.
            "ignoreMissingFiles": "true",
            **self._file_options(),
            **self._reader_options,
        }
