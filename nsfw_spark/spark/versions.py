"""A new version of image_scores: `--rescore all`.

All is scored into a table apart, which takes as long as it takes and survives being killed; then its rows
replace those of image_scores in one commit. Readers see the old rows until then, and later by time travel.
"""

from __future__ import annotations

from typing import Final

from pyspark.sql import SparkSession

from nsfw_spark.spark import tables
from nsfw_spark.spark.hadoop import delete, exists, list_names
from nsfw_spark.spark.output import IMAGE_SCORES, Output
from nsfw_spark.spark.tables import PROPERTY

_FIRST: Final = "1"


def generation(spark: SparkSession, output: Output) -> str:
    """Return the name of what image_scores is now: `1`, or `2-FINGERPRINT` after it was rescored."""
    if not output.exists(spark, IMAGE_SCORES):
        return _FIRST
    return tables.properties(spark, output).get("generation", _FIRST)


def next_generation(spark: SparkSession, output: Output, fingerprint: str) -> str:
    """Return the name of what image_scores will be when a model has scored all again."""
    number, _, _ = generation(spark, output).partition("-")
    return f"{int(number) + 1}-{fingerprint}"


def apart(output: Output, generation: str) -> Output:
    """Return where a generation is scored until it is whole."""
    return Output(f"{output.checkpoints}/rescored-{generation}", output.checkpoints)


def is_adopted(spark: SparkSession, output: Output, fingerprint: str) -> bool:
    """Whether a killed run of this model has put its rows in place, and had no time to say so."""
    now = generation(spark, output)
    return now.endswith(f"-{fingerprint}") and exists(spark, apart(output, now).location)


def adopt(spark: SparkSession, source: Output, output: Output, generation: str) -> None:
    """Put the rows of a table apart in place of those of image_scores, in one commit."""
    found = tables.properties(spark, source)
    writer = spark.table(source.name(IMAGE_SCORES)).writeTo(output.name(IMAGE_SCORES)).using("delta")
    for key, value in {**found, "generation": generation}.items():
        writer = writer.tableProperty(PROPERTY.format(key), value)
    writer.createOrReplace()
    columns = spark.table(output.name(IMAGE_SCORES)).schema
    tables.ensure_image_scores(spark, output, columns, found["model"], found["model_fingerprint"])


def forget(spark: SparkSession, output: Output) -> None:
    """Delete all that was scored apart, whole or not."""
    for name in list_names(spark, str(output.checkpoints)):
        if name.startswith("rescored-"):
            delete(spark, f"{output.checkpoints}/{name}")
