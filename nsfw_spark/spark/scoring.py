"""The job's one operator: what a source lists → the columns of image_scores.

In the Python worker of a task, a reader opens the rows that Spark listed, and the scorer scores the images
that it finds. One row may be one image (a file, a row of a table) or thousands (a tar). Arrow batches go in
and come out (`mapInArrow`), so that no number becomes a Python object on its way. Spark never runs an
operator twice for a filter on its result, as it may run a UDF.

`ImageScoring` scores encoded images. Its counterpart for embeddings is in `vector_scoring`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass, replace
from itertools import groupby
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.types import StructType

from nsfw_spark.model_card import ModelCard
from nsfw_spark.readers import Chunk, Reader, VectorReader
from nsfw_spark.scorer import Content, ImageScore, Timings
from nsfw_spark.self_check import SelfCheck
from nsfw_spark.spark import schema
from nsfw_spark.spark.scorer_spec import ScorerSpec
from nsfw_spark.spark.worker import task_scorer

Columns = dict[str, pa.Array]
"""By name, all of the same number of rows."""


def score_listed(
    listed: DataFrame,
    reader: Reader | VectorReader,
    score: Callable[[Iterator[Any]], Iterator[Columns]],
    result: StructType,
) -> DataFrame:
    """Score all images in the rows that a source listed.

    Args:
        listed: The rows that the reader reads; batch or streaming.
        reader: Finds the images in them, in the Python workers.
        score: Scores the reader's chunks, as `ImageScoring` does.
        result: The columns to return, from the chunks' columns and the columns that `score` adds.
    """

    def scored(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        fields = schema.arrow_schema(result)
        for columns in score(reader.read(batches)):
            arrays = [
                columns[name].cast(type_) for name, type_ in zip(fields.names, fields.types, strict=True)
            ]
            yield pa.RecordBatch.from_arrays(arrays, schema=fields)

    return listed.mapInArrow(scored, result)


@dataclass(frozen=True)
class ImageScoring:
    """Scores encoded images with the scorer of the task."""

    spec: ScorerSpec
    fingerprint: str
    """Of the scores, as the driver computed it."""
    keep_content: bool = False
    """Whether the rows keep the encoded images."""

    @property
    def card(self) -> ModelCard:
        """The model's card; the first model's in a cascade."""
        return self.spec.models[0].card

    @property
    def name(self) -> str:
        """The value of the column `model`."""
        return self.spec.name

    @property
    def scores(self) -> StructType:
        """The columns that scoring one image gives."""
        return self.spec.scores

    def on_executors_of(self, spark: SparkSession) -> Self:
        """Return the same for the executors of a session: see `ScorerSpec.on_executors_of`."""
        return replace(self, spec=self.spec.on_executors_of(spark))

    def expecting(self, self_check: SelfCheck | None) -> Self:
        """Return the same for executors whose models must give this answer to the test image."""
        return replace(self, spec=replace(self.spec, self_check=self_check))

    def __call__(self, chunks: Iterator[Chunk]) -> Iterator[Columns]:
        """Score chunks: yield for each its columns, the scores, `content` if it is kept, and the timings."""

        def images() -> Iterator[tuple[_Place, Content]]:
            for number, chunk in enumerate(chunks):
                for content in chunk.contents:
                    kept = content if self.keep_content and isinstance(content, bytes) else None
                    yield _Place(number, chunk.columns, kept), content

        with task_scorer(self.spec, self.fingerprint) as scorer:
            # The scorer forms batches across chunks; its scores come back in order, each with its place.
            for _, group in groupby(scorer.score_each(images()), key=lambda scored: scored[0].chunk):
                places, rows = zip(*group, strict=True)
                columns = by_name(places[0].columns) | _score_columns(rows, self.scores)
                if self.keep_content:
                    columns[schema.CONTENT.name] = pa.array([place.kept for place in places], pa.binary())
                columns[schema.TIMINGS.name] = timings_column(scorer.take_timings(), len(rows))
                yield columns


class _Place(NamedTuple):
    """Where an image's row belongs."""

    chunk: int
    """Number of its chunk."""
    columns: pa.RecordBatch
    """The chunk's columns."""
    kept: bytes | None
    """The encoded image, if the rows keep it."""


def by_name(batch: pa.RecordBatch) -> Columns:
    """Return the columns of a batch."""
    return dict(zip(batch.schema.names, batch.columns, strict=True))


def _score_columns(rows: Sequence[ImageScore], scores: StructType) -> Columns:
    """Return the columns `scores` of some rows."""
    return {
        field.name: _column(field.name, field.type, [row.column(field.name) for row in rows])
        for field in schema.arrow_schema(scores)
    }


def _column(name: str, type_: pa.DataType, values: list[Any]) -> pa.Array:
    if name == "embedding":
        vectors = [vector for vector in values if vector is not None]
        if not vectors:
            return pa.nulls(len(values), type_)
        return vectors_column(np.stack(vectors), np.array([vector is not None for vector in values]))
    if name == "class_scores":
        values = [None if classes is None else list(classes.items()) for classes in values]
    return pa.array(values, type_)


def vectors_column(vectors: npt.NDArray[np.float32], is_valid: npt.NDArray[np.bool_]) -> pa.Array:
    """Return a column of lists: the vectors, float32 (M, D), in the rows that are valid, null elsewhere."""
    offsets = np.concatenate([[0], np.cumsum(is_valid) * vectors.shape[1]]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, vectors.reshape(-1), mask=pa.array(~is_valid))


def timings_column(timings: Timings, num_rows: int) -> pa.Array:
    """Return the column `schema.TIMINGS`: the first row carries the seconds of all rows."""
    return pa.array([astuple(timings), *[None] * (num_rows - 1)], pa.list_(pa.float64()))
