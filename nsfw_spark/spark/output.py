"""Where the Delta tables of a job lie, and what they are called."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from delta import DeltaTable
from pyspark.sql import SparkSession

from nsfw_spark.options import JobOptions
from nsfw_spark.uris import absolute_uri, is_schema

IMAGE_SCORES: Final = "image_scores"
FILTERED: Final = ("safe_images", "flagged_images", "quarantined_images")
RUNS: Final = "runs"


@dataclass(frozen=True)
class Output:
    """Where a job's tables lie: in a directory, or in a catalog schema."""

    location: str
    """URI of the directory, or `catalog.schema`."""
    checkpoints: str | None
    """URI of the directory for Spark's checkpoints; a catalog schema has no place of its own for them."""

    @classmethod
    def of(cls, options: JobOptions) -> Output:
        """Return the output that the options name."""
        location = options.output if options.is_schema else absolute_uri(options.output).rstrip("/")
        if options.checkpoints is not None:
            return cls(location, absolute_uri(options.checkpoints))
        return cls(location, None if options.is_schema else f"{location}/_checkpoints")

    @property
    def is_schema(self) -> bool:
        """Whether the tables lie in a catalog schema and not in a directory."""
        return is_schema(self.location)

    def name(self, table: str) -> str:
        """Return the table's name in SQL, quoted."""
        if self.is_schema:
            return f"{self.location}.{table}"
        return f"delta.`{self.path(table).replace('`', '``')}`"

    def path(self, table: str) -> str:
        """Return the table's directory, where the output is one."""
        return f"{self.location}/{table}"

    def exists(self, spark: SparkSession, table: str) -> bool:
        """Whether the table is there."""
        if self.is_schema:
            return bool(spark.catalog.tableExists(self.name(table)))
        return bool(DeltaTable.isDeltaTable(spark, self.path(table)))
