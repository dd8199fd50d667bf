"""Scores as Arrow columns.

In: what the scorer says of some images, vectors, seconds. Out: arrays of the types that `schema` names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyspark.sql.types import StructType

from nsfw_spark.scorer import ImageScore, Stages
from nsfw_spark.spark.schema import SCORE, arrow_schema

Columns = dict[str, pa.Array]
"""By name, all of the same number of rows."""

_STAGES_TYPE: Final = pa.list_(pa.float64())
FIELDS: Final = {field.name: field for field in arrow_schema(SCORE)}
"""Of `schema.SCORE`, by name, as Arrow has them."""


def stages_column(stages: Stages, num_rows: int) -> pa.Array:
    """Return `schema.STAGES` for some rows: the first carries the time that went into all of them."""
    return pa.array([astuple(stages), *[None] * (num_rows - 1)], _STAGES_TYPE)


def vectors_column(vectors: npt.NDArray[np.float32], is_there: npt.NDArray[np.bool_]) -> pa.Array:
    """Return vectors, float32 (M, D), as lists: one for each row that is there, in order; else null."""
    offsets = np.concatenate([[0], np.cumsum(is_there) * vectors.shape[1]]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, vectors.reshape(-1), mask=pa.array(~is_there))


def score_columns(rows: Sequence[ImageScore], scores: StructType) -> Columns:
    """Return these columns of some scores: see `schema.scores`."""
    return {
        field.name: _column(field.name, field.type, [row.column(field.name) for row in rows])
        for field in arrow_schema(scores)
    }


def _column(name: str, type_: pa.DataType, values: list[Any]) -> pa.Array:
    if name == "embedding":
        there = [vector for vector in values if vector is not None]
        if not there:
            return pa.nulls(len(values), type_)
        return vectors_column(np.stack(there), np.array([vector is not None for vector in values]))
    if name == "class_scores":
        values = [None if classes is None else list(classes.items()) for classes in values]
    return pa.array(values, type_)


def by_name(batch: pa.RecordBatch) -> Columns:
    """Return the columns of a batch."""
    return dict(zip(batch.schema.names, batch.columns, strict=True))
