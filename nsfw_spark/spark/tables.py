"""The Delta tables of a job: where they lie, how they are made and checked.

Rows get into `image_scores` through Spark's own streaming sink (`pipeline`), into the three filtered tables
through `filtered`. This module knows names, places and properties, and nothing of images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from delta import DeltaTable
from pyspark.sql import SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from nsfw_spark.errors import TableError
from nsfw_spark.options import JobOptions, absolute_uri, is_schema
from nsfw_spark.spark import schema
from nsfw_spark.spark.hadoop import exists

T = TypeVar("T")
IMAGE_SCORES: Final = "image_scores"
FILTERED: Final = ("safe_images", "flagged_images", "quarantined_images")
PROPERTY: Final = "nsfw_spark.{}"  # of a table: what it was made with


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


def check_output(
    spark: SparkSession, output: Output, columns: StructType, model: str, fingerprint: str
) -> None:
    """Make sure that a job may write to the output, before it writes anything.

    Raises:
        TableError: The output is another table, holds other things, or scores of another model.
    """
    _check_location(spark, output)
    if not output.exists(spark, IMAGE_SCORES):
        return
    found = properties(spark, output)
    if found["model_fingerprint"] != fingerprint:
        raise TableError(
            f"{output.name(IMAGE_SCORES)} holds scores of {found['model']} with the fingerprint "
            f"{found['model_fingerprint']}; this run would add scores of {model} with the fingerprint "
            f"{fingerprint}, which do not compare. Choose another --output, or the model of the table"
        )
    have = set(spark.table(output.name(IMAGE_SCORES)).columns)
    if missing := [name for name in columns.names if name not in have]:
        raise TableError(
            f"{output.name(IMAGE_SCORES)} has no column {', '.join(missing)}, which this run would write. "
            "Choose another --output, or the options of the first run"
        )


def properties(spark: SparkSession, output: Output) -> dict[str, str]:
    """Return what `image_scores` says of itself: `model`, `model_fingerprint`.

    Raises:
        TableError: Not a table of this project.
    """
    rows = spark.sql(f"SHOW TBLPROPERTIES {output.name(IMAGE_SCORES)}").collect()
    prefix = PROPERTY.format("")
    found = {row.key.removeprefix(prefix): row.value for row in rows if row.key.startswith(prefix)}
    if not {"model", "model_fingerprint"} <= set(found):
        raise TableError(
            f"{output.name(IMAGE_SCORES)} was not written by nsfw-spark: it has no table property "
            f"{PROPERTY.format('model_fingerprint')}. Choose another --output"
        )
    return found


def create_image_scores(
    spark: SparkSession, output: Output, columns: StructType, model: str, fingerprint: str
) -> None:
    """Make `image_scores` if it is not there."""
    _create(
        spark,
        output,
        IMAGE_SCORES,
        columns,
        {
            PROPERTY.format("model"): model,
            PROPERTY.format("model_fingerprint"): fingerprint,
            # So the filtered tables can ask for what was added since they last looked.
            "delta.enableChangeDataFeed": "true",
        },
    )


def append_run(spark: SparkSession, output: Output, run: dict[str, Any]) -> None:
    """Add one row to `runs`."""
    _create(spark, output, "runs", schema.RUNS, {})
    row = [run.get(name) for name in schema.RUNS.names]
    frame = spark.createDataFrame([row], schema.RUNS).coalesce(1)
    # A table that an earlier version of this package made has fewer columns.
    frame.writeTo(output.name("runs")).option("mergeSchema", "true").append()


def last_accounted_batch(spark: SparkSession, output: Output, input_uri: str) -> int:
    """Return the last micro-batch of this input whose files all have rows; -1 for none."""
    if not output.exists(spark, "runs"):
        return -1
    runs = spark.table(output.name("runs")).filter(F.col("input") == input_uri)
    found = runs.agg(F.max("last_batch").alias("last_batch")).first()
    return -1 if found is None or found.last_batch is None else int(found.last_batch)


def history(spark: SparkSession, output: Output, table: str) -> list[Any]:
    """Return the commits that the log still holds, newest first."""
    history = spark.sql(f"DESCRIBE HISTORY {output.name(table)}")
    return list(history.select("version", "operation", "operationParameters", "userMetadata").collect())


def at_once(step: Callable[[str], T], names: Sequence[str]) -> list[T]:
    """Run a step for several tables side by side: each is mostly Delta's own waiting, not work."""
    with ThreadPoolExecutor(len(names) or 1) as threads:
        return list(threads.map(step, names))


def _create(
    spark: SparkSession, output: Output, table: str, columns: StructType, settings: dict[str, str]
) -> None:
    if output.exists(spark, table):
        return
    writer = spark.createDataFrame([], columns).writeTo(output.name(table)).using("delta")
    for key, value in settings.items():
        writer = writer.tableProperty(key, value)
    writer.create()


def _check_location(spark: SparkSession, output: Output) -> None:
    if output.is_schema:
        if not spark.catalog.databaseExists(output.location):
            raise TableError(f"there is no schema {output.location}: create it, or pass a directory")
        return
    if DeltaTable.isDeltaTable(spark, output.location):
        raise TableError(
            f"output {output.location} is itself a Delta table; expected a directory to put tables into"
        )
    for table in (IMAGE_SCORES, *FILTERED, "runs"):
        if exists(spark, output.path(table)) and not DeltaTable.isDeltaTable(spark, output.path(table)):
            raise TableError(
                f"{output.path(table)} is there and is not a Delta table; choose another --output"
            )
