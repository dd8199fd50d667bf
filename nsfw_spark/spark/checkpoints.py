"""Checkpoints: what Spark remembers of each input that it has seen.

One directory for each input of an output, so that an output can have several. They belong to one generation
of `image_scores`: after `--rescore all` nothing has been seen.
"""

from __future__ import annotations

import hashlib

from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from nsfw_spark.errors import TableError
from nsfw_spark.spark.hadoop import exists, list_names
from nsfw_spark.spark.sources import Source
from nsfw_spark.spark.tables import IMAGE_SCORES, Output


def find_checkpoint(spark: SparkSession, output: Output, source: Source, generation: str) -> str:
    """Return the URI of an input's checkpoint, whether or not it is there already.

    Raises:
        TableError: Images of this input were scored, and their checkpoint is gone.
    """
    uri = f"{output.checkpoints}/{checkpoint_name(source, generation)}"
    if not exists(spark, uri) and output.exists(spark, IMAGE_SCORES) and _has_rows(spark, output, source):
        raise TableError(
            f"{output.name(IMAGE_SCORES)} holds images of {source.uri}, and there is no checkpoint {uri} "
            "that says which: all would be scored twice. Restore it, score all again with --rescore all, or "
            "choose another --output"
        )
    return uri


def checkpoint_name(source: Source, generation: str) -> str:
    """Return the name of an input's checkpoint."""
    key = hashlib.sha256(source.uri.encode()).hexdigest()[:12]
    kind = "vectors" if source.has_vectors else "images"
    return f"{IMAGE_SCORES}-{generation}-{kind}-{key}"


def last_batch(spark: SparkSession, checkpoint: str) -> int:
    """Return the number of the last micro-batch that the log of listed files knows; -1 for none."""
    names = list_names(spark, listed_files_log(checkpoint))
    numbers = [name.removesuffix(".compact") for name in names]
    return max((int(number) for number in numbers if number.isdecimal()), default=-1)


def listed_files_log(checkpoint: str) -> str:
    """Return the directory in which a stream over files logs what it has listed."""
    return f"{checkpoint}/sources/0"


def _has_rows(spark: SparkSession, output: Output, source: Source) -> bool:
    scores = spark.table(output.name(IMAGE_SCORES))
    if source.file_column in scores.columns:
        file = F.col(str(source.file_column))
        return not scores.filter(file.startswith(f"{source.uri}/") | (file == source.uri)).isEmpty()
    if not output.exists(spark, "runs"):
        return False
    runs = spark.table(output.name("runs")).filter((F.col("input") == source.uri) & (F.col("images") > 0))
    return not runs.isEmpty()
