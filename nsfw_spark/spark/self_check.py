"""Asks an executor what its model makes of the built-in test image: for a table that has no rows yet.

Not the driver, which may have neither a GPU nor a model library.
"""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

from nsfw_spark.self_check import SelfCheck
from nsfw_spark.spark.progress import from_executor
from nsfw_spark.spark.scorer_spec import ScorerSpec
from nsfw_spark.spark.worker import task_scorer

_COLUMN = "self_check"


def ask_executor(spark: SparkSession, spec: ScorerSpec, fingerprint: str) -> SelfCheck:
    """Load the model on whichever executor Spark takes, where it stays for the rows that follow.

    Args:
        spark: The session.
        spec: Of the scorer.
        fingerprint: The model's, as the driver computed it.

    Raises:
        NsfwSparkError: The model could not be loaded there.
    """

    def ask(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            with task_scorer(spec, fingerprint) as scorer:
                said = [scorer.self_check and scorer.self_check.as_json()] * batch.num_rows
            yield pa.RecordBatch.from_arrays([pa.array(said, pa.string())], [_COLUMN])

    try:
        (row,) = spark.range(0, 1, 1, 1).mapInArrow(ask, f"{_COLUMN} string").collect()
    except PySparkException as error:
        raise from_executor(error) from error
    return SelfCheck.from_json(row[_COLUMN])
