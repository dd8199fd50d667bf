"""The job's one operator: what a source lists → the columns of image_scores.

In the Python worker of a task, a reader opens the rows that Spark listed, and the scorer scores the images
that it finds. One row may be one image (a file, a row of a table) or thousands (a tar). Arrow batches go in
and come out (`mapInArrow`), so that no number becomes a Python object on its way. Spark never runs an
operator twice for a filter on its result, as it may run a UDF.

`choose_scoring` picks one of two: `ImageScoring` scores encoded images, `VectorScoring` scores embeddings
that were computed elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass, replace
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.types import StructType

from nsfw_spark.cascade import model_specs
from nsfw_spark.embeddings import EmbeddingsScorer, head_fingerprint, load_embeddings_scorer
from nsfw_spark.errors import ConfigError, ImageError
from nsfw_spark.heads import Predictions
from nsfw_spark.model import ModelSpec
from nsfw_spark.model_card import ModelCard, head_part
from nsfw_spark.options import JobOptions
from nsfw_spark.readers import Chunk, Reader, VectorChunk, VectorReader
from nsfw_spark.scorer import Content, ImageScore, Timings
from nsfw_spark.self_check import SelfCheck
from nsfw_spark.spark import schema
from nsfw_spark.spark.delivery import AS_ON_DRIVER, Delivery, deliver
from nsfw_spark.spark.scorer_spec import ScorerSpec
from nsfw_spark.spark.worker import check_fingerprint, task_scorer

Columns = dict[str, pa.Array]
"""By name, all of the same number of rows."""


def score_listed(
    listed: DataFrame,
    reader: Reader | VectorReader,
    score: Callable[[Iterator[Any]], Iterator[Columns]],
    result: StructType,
) -> DataFrame:
    """Score all images of what a source listed.

    Args:
        listed: The rows that the reader reads; batch or streaming.
        reader: Finds the images in them, in the Python workers.
        score: Scores the reader's chunks: `ImageScoring` or `VectorScoring`.
        result: The columns to return, of those that the chunks have and that `score` adds.
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
                columns = _by_name(places[0].columns) | _score_columns(rows, self.scores)
                if self.keep_content:
                    columns[schema.CONTENT.name] = pa.array([place.kept for place in places], pa.binary())
                columns[schema.TIMINGS.name] = _timings_column(scorer.take_timings(), len(rows))
                yield columns


class _Place(NamedTuple):
    """Where an image's row belongs."""

    chunk: int
    """Number of its chunk."""
    columns: pa.RecordBatch
    """The chunk's columns."""
    kept: bytes | None
    """The encoded image, if the rows keep it."""


@dataclass(frozen=True)
class VectorScoring:
    """Scores embeddings that were computed elsewhere, with the heads alone, in the Python worker."""

    model: ModelSpec
    fingerprint: str
    """Of the heads, as the driver computed it."""
    keep_embedding: bool = False
    """Whether the rows keep the embeddings."""
    delivery: Delivery = AS_ON_DRIVER
    """How an executor gets the heads' weights."""

    @property
    def card(self) -> ModelCard:
        """The model's card."""
        return self.model.card

    @property
    def name(self) -> str:
        """The value of the column `model`."""
        return self.card.name

    @property
    def scores(self) -> StructType:
        """The columns that scoring one embedding gives."""
        return schema.scores(self.card.other_heads)

    def on_executors_of(self, spark: SparkSession) -> Self:
        """Send the heads' weights to the executors if the driver ships them."""
        self.delivery.send(spark)
        return self

    def expecting(self, self_check: SelfCheck | None) -> Self:  # noqa: ARG002 - see ImageScoring
        """Return the same: heads are compared with their golden scores when they are loaded."""
        return self

    def __call__(self, chunks: Iterator[VectorChunk]) -> Iterator[Columns]:
        """Score chunks: yield for each its columns, the scores, and the timings."""
        parts = [head_part(name) for name in self.card.heads]
        scorer = _embeddings_scorer(*self.delivery.received(self.card, self.model.model_dir, parts))
        check_fingerprint(scorer.fingerprint, self.fingerprint, self.name)
        for chunk in chunks:
            columns = _by_name(chunk.columns) | self._score_columns(chunk, scorer.score(chunk.vectors))
            columns[schema.TIMINGS.name] = _timings_column(scorer.take_timings(), len(chunk.vectors))
            yield columns

    def _score_columns(self, chunk: VectorChunk, predictions: Predictions) -> Columns:
        problems = dict(chunk.problems)
        of_heads = [] if predictions.other_scores is None else list(predictions.other_scores.T)
        is_finite = np.isfinite([predictions.nsfw_scores, *of_heads]).all(axis=0)  # (M,)
        for row in np.flatnonzero(~is_finite).tolist():
            error = ImageError("not_finite", f"the model {self.card.name} gave no number for this embedding")
            problems.setdefault(row, error)
        num_rows = len(chunk.vectors)
        columns = {name: pa.nulls(num_rows, field.type) for name, field in _FIELDS.items()}
        columns["status"] = pa.repeat(pa.scalar("ok"), num_rows)
        is_ok = np.ones(num_rows, np.bool_)
        if problems:
            is_ok[list(problems)] = False
            errors = [problems.get(row) for row in range(num_rows)]
            columns["status"] = pa.array([error.status if error else "ok" for error in errors])
            columns["error"] = pa.array([error.message if error else None for error in errors], pa.string())
        columns["nsfw_score"] = pa.array(predictions.nsfw_scores, mask=~is_ok)
        for field, scores in zip(schema.other_scores(self.card.other_heads), of_heads, strict=True):
            columns[field.name] = pa.array(scores, mask=~is_ok)
        if self.keep_embedding and predictions.embeddings is not None:
            columns["embedding"] = _vectors_column(predictions.embeddings[is_ok], is_ok)
        return columns


@lru_cache(maxsize=1)
def _embeddings_scorer(card: ModelCard, model_dir: Path | None) -> EmbeddingsScorer:
    return load_embeddings_scorer(card, model_dir)


def choose_scoring(options: JobOptions) -> ImageScoring | VectorScoring:
    """Choose the model that the options name; an error in it is an error before Spark starts.

    Raises:
        ConfigError: The model card is wrong or has random weights, or has no such head or class, or no head
            for embeddings.
        WeightsError: Weights are absent, or are not the ones that the card or the lock file pins.
    """
    has_vectors = options.format == "embeddings"
    if has_vectors and options.strict:
        raise ConfigError("--strict looks at images, and --format embeddings has none: leave one out")
    models = model_specs(options)
    unused = {"encoder"} if has_vectors else set()
    for model in models:
        parts = set(model.card.weights_sources) - unused
        if model.card.random_parts & parts and not options.allow_random_weights:
            raise ConfigError(
                f"the model {model.card.name} has random weights, so its scores mean nothing. Choose another "
                "model, or pass --allow-random-weights for a test"
            )
    if not has_vectors:
        spec = ScorerSpec.of(options, models)
        return ImageScoring(spec, spec.driver_fingerprint(), keep_content=options.keep_content)
    source, ship, keep = options.model_source, options.ship_weights, options.keep_embedding
    delivery = deliver(models, model_source=source, ship=ship, parts=parts)
    fingerprint = head_fingerprint(model.card, model.model_dir)
    return VectorScoring(model, fingerprint, keep_embedding=keep, delivery=delivery)


_FIELDS: Final = {field.name: field for field in schema.arrow_schema(schema.SCORE)}


def _by_name(batch: pa.RecordBatch) -> Columns:
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
        return _vectors_column(np.stack(vectors), np.array([vector is not None for vector in values]))
    if name == "class_scores":
        values = [None if classes is None else list(classes.items()) for classes in values]
    return pa.array(values, type_)


def _vectors_column(vectors: npt.NDArray[np.float32], is_valid: npt.NDArray[np.bool_]) -> pa.Array:
    """Return a column of lists: the vectors, float32 (M, D), in the rows that are valid, null elsewhere."""
    offsets = np.concatenate([[0], np.cumsum(is_valid) * vectors.shape[1]]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, vectors.reshape(-1), mask=pa.array(~is_valid))


def _timings_column(timings: Timings, num_rows: int) -> pa.Array:
    """Return the column `schema.TIMINGS`: the first row carries the seconds of all rows."""
    return pa.array([astuple(timings), *[None] * (num_rows - 1)], pa.list_(pa.float64()))
