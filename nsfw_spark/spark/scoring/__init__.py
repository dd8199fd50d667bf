"""The job's one operator: what a source lists → the columns of image_scores.

In the Python worker of a task a reader opens what Spark listed, and the scorer scores what the reader finds.
One listed row may be one image (a file, a row of a table) or thousands (a tar). Arrow batches go in and out
(`mapInArrow`), so that no number becomes a Python object on its way; and an operator, unlike a UDF, is never
run twice for a filter on its result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql.types import StructType

from nsfw_spark.readers import Reader, VectorReader
from nsfw_spark.spark.arrow_columns import Columns
from nsfw_spark.spark.schema import arrow_schema
from nsfw_spark.spark.scoring.choice import choose_scoring
from nsfw_spark.spark.scoring.images import ImageScoring
from nsfw_spark.spark.scoring.vectors import VectorScoring

__all__ = ["ImageScoring", "VectorScoring", "choose_scoring", "score_listed"]


def score_listed(
    listed: DataFrame,
    reader: Reader | VectorReader,
    score: Callable[[Iterator[Any]], Iterator[Columns]],
    result: StructType,
) -> DataFrame:
    """Score all images of what is listed.

    Args:
        listed: What the reader reads; batch or streaming.
        reader: Finds the images in it, in the Python workers.
        score: Scores the reader's chunks: `ImageScoring` or `VectorScoring`.
        result: Of the columns that the chunks have and that `score` adds, those that are wanted.
    """

    def scored(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        schema = arrow_schema(result)
        for columns in score(reader.read(batches)):
            arrays = [
                columns[name].cast(type_) for name, type_ in zip(schema.names, schema.types, strict=True)
            ]
            yield pa.RecordBatch.from_arrays(arrays, schema=schema)

    return listed.mapInArrow(scored, result)
