"""A new version of image_scores: `--rescore all`.

All is scored into a table apart, which takes as long as it takes and survives being killed; then its rows
replace those of image_scores in one commit. Readers see the old rows until then, and later by time travel.
"""

from __future__ import annotations

from typing import Final

from pyspark.sql import SparkSession

from nsfw_spark.spark import tables
from nsfw_spark.spark.hadoop import delete, exists, list_names
from nsfw_spark.spark.tables import IMAGE_SCORES, PROPERTY, Output

_GENERATION: Final = PROPERTY.format("generation")


def generation(spark: SparkSession, output: Output) -> int:
    """Return how often image_scores has begun: 1 for a table that was never rescored as a whole."""
    if not output.exists(spark, IMAGE_SCORES):
        return 1
    return int(tables.properties(spark, output).get("generation", 1))


def apart(output: Output, fingerprint: str, number: int) -> Output:
    """Return where a generation is scored until it is whole."""
    return Output(f"{output.checkpoints}/rescored-{number}-{fingerprint}", output.checkpoints)


def is_adopted(spark: SparkSession, output: Output, fingerprint: str) -> bool:
    """Whether a killed run has put its rows in place, and had no time to say so."""
    found = apart(output, fingerprint, generation(spark, output))
    return exists(spark, found.location)


def adopt(spark: SparkSession, source: Output, output: Output, number: int) -> None:
    """Put the rows of a table apart in place of those of image_scores, in one commit."""
    found = tables.properties(spark, source)
    writer = spark.table(source.name(IMAGE_SCORES)).writeTo(output.name(IMAGE_SCORES)).using("delta")
    for key, value in {**found, "generation": str(number)}.items():
        writer = writer.tableProperty(PROPERTY.format(key), value)
    writer.createOrReplace()
    columns = spark.table(output.name(IMAGE_SCORES)).schema
    tables.ensure_image_scores(spark, output, columns, found["model"], found["model_fingerprint"])


def forget(spark: SparkSession, output: Output) -> None:
    """Delete all that was scored apart, whole or not."""
    for name in list_names(spark, str(output.checkpoints)):
        if name.startswith("rescored-"):
            delete(spark, f"{output.checkpoints}/{name}")
