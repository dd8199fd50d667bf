"""Scores as Arrow columns.

In: what the scorer says of some images, vectors, seconds. Out: arrays of the types that `schema` names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass, replace
from functools import lru_cache, partial
from itertools import groupby
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.types import StructType

from nsfw_spark.cards import choose_card
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
from nsfw_spark.spark.schema import CONTENT, SCORE, TIMINGS, arrow_schema, other_scores
from nsfw_spark.spark.scorer_spec import ScorerSpec, second_model
from nsfw_spark.spark.session import executor_cores, tries_once
from nsfw_spark.spark.udf import driver_fingerprint
from nsfw_spark.spark.worker import check_fingerprint, task_scorer
from nsfw_spark.weights import with_lock

Columns = dict[str, pa.Array]
"""By name, all of the same number of rows."""

_TIMINGS_TYPE: Final = pa.list_(pa.float64())
FIELDS: Final = {field.name: field for field in arrow_schema(SCORE)}
"""Of `schema.SCORE`, by name, as Arrow has them."""


def timings_column(timings: Timings, num_rows: int) -> pa.Array:
    """Return `schema.TIMINGS` for some rows: the first carries the time that went into all of them."""
    return pa.array([astuple(timings), *[None] * (num_rows - 1)], _TIMINGS_TYPE)


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


@dataclass(frozen=True)
class ImageScoring:
    """Scores encoded images with the scorer of the task."""

    card: ModelCard
    fingerprint: str
    """Of the scores, as the driver computed it."""
    spec: ScorerSpec
    keep_content: bool = False
    """Whether the rows keep the encoded images."""

    @property
    def name(self) -> str:
        """What the column `model` says."""
        return self.spec.name

    @property
    def scores(self) -> StructType:
        """The columns that scoring one image gives."""
        return self.spec.scores

    def on_executors_of(self, spark: SparkSession) -> Self:
        """Return the same, for the executors of a session, to which weights are shipped if they are to be."""
        self.spec.delivery.send(spark)
        spec = replace(self.spec, host_threads=executor_cores(spark), isolated=tries_once(spark))
        return replace(self, spec=spec)

    def expecting(self, self_check: SelfCheck | None) -> Self:
        """Return the same, for executors whose models scored the built-in test image as this one."""
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
                columns = by_name(places[0].columns) | score_columns(rows, self.scores)
                if self.keep_content:
                    columns[CONTENT.name] = pa.array([place.kept for place in places], pa.binary())
                columns[TIMINGS.name] = timings_column(scorer.take_timings(), len(rows))
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
    """Scores embeddings that were computed elsewhere: the head alone, in the Python worker."""

    card: ModelCard
    fingerprint: str
    """The head's, as the driver computed it."""
    model_dir: Path | None = None
    keep_embedding: bool = False
    """Whether the rows keep the embeddings."""
    delivery: Delivery = AS_ON_DRIVER
    """How an executor comes to the head's weights."""

    @property
    def name(self) -> str:
        """What the column `model` says."""
        return self.card.name

    @property
    def scores(self) -> StructType:
        """The columns that scoring one embedding gives."""
        return schema.scores(self.card.other_heads)

    def on_executors_of(self, spark: SparkSession) -> Self:
        """Return the same: a head needs no more than the task's own thread, and decodes nothing."""
        self.delivery.send(spark)
        return self

    def expecting(self, self_check: SelfCheck | None) -> Self:  # noqa: ARG002 - see ImageScoring
        """Return the same: a head is compared with its own golden scores when it is loaded."""
        return self

    def __call__(self, chunks: Iterator[VectorChunk]) -> Iterator[Columns]:
        """Score chunks: columns of each, those of the scores, and the timings."""
        parts = [head_part(name) for name in self.card.heads]
        scorer = _embeddings_scorer(*self.delivery.received(self.card, self.model_dir, parts))
        check_fingerprint(scorer.fingerprint, self.fingerprint, self.name)
        for chunk in chunks:
            columns = by_name(chunk.columns) | self._score_columns(chunk, scorer.score(chunk.vectors))
            columns[TIMINGS.name] = timings_column(scorer.take_timings(), len(chunk.vectors))
            yield columns

    def _score_columns(self, chunk: VectorChunk, scored: Predictions) -> Columns:
        problems = dict(chunk.problems)
        columns_of_heads = [] if scored.other_scores is None else list(scored.other_scores.T)
        is_finite = np.isfinite([scored.nsfw_scores, *columns_of_heads]).all(axis=0)  # (M,)
        for row in np.flatnonzero(~is_finite).tolist():
            error = ImageError("not_finite", f"the model {self.card.name} gave no number for this embedding")
            problems.setdefault(row, error)
        num_rows = len(chunk.vectors)
        columns = {name: pa.nulls(num_rows, field.type) for name, field in FIELDS.items()}
        columns["status"] = pa.repeat(pa.scalar("ok"), num_rows)
        is_ok = np.ones(num_rows, np.bool_)
        if problems:
            is_ok[list(problems)] = False
            errors = [problems.get(row) for row in range(num_rows)]
            columns["status"] = pa.array([error.status if error else "ok" for error in errors])
            columns["error"] = pa.array([error.message if error else None for error in errors], pa.string())
        columns["nsfw_score"] = pa.array(scored.nsfw_scores, mask=~is_ok)
        for field, scores in zip(other_scores(self.card.other_heads), columns_of_heads, strict=True):
            columns[field.name] = pa.array(scores, mask=~is_ok)
        if self.keep_embedding and scored.embeddings is not None:
            columns["embedding"] = vectors_column(scored.embeddings[is_ok], is_ok)
        return columns


@lru_cache(maxsize=1)
def _embeddings_scorer(card: ModelCard, model_dir: Path | None) -> EmbeddingsScorer:
    return load_embeddings_scorer(card, model_dir)


def choose_scoring(options: JobOptions) -> ImageScoring | VectorScoring:
    """Return what the options ask to score with; what is wrong with the model is said before Spark starts.

    Raises:
        ConfigError: The model card is wrong, is random, has no such head or class, or none for embeddings.
        WeightsError: Weights absent, or not the ones that the card or the lock file pins.
    """
    card = choose_card(options.model, heads=options.head_names, score_class=options.score_class)
    model_dir = options.model_dir and options.model_dir.absolute()  # the workers' directory is another
    card = with_lock(card, model_dir, options.weights_lock)
    has_vectors = options.format == "embeddings"
    computed = set(card.weights_sources) - ({"encoder"} if has_vectors else set())
    _check_weights(card, computed, options)
    delivered = partial(deliver, model_source=options.model_source, ship=options.ship_weights)
    if has_vectors:
        if options.strict:
            raise ConfigError("--strict looks at images, and --format embeddings has none: leave one out")
        delivery = delivered([ModelSpec(card, model_dir)], parts=computed)
        fingerprint = head_fingerprint(card, model_dir)
        return VectorScoring(
            card, fingerprint, model_dir, keep_embedding=options.keep_embedding, delivery=delivery
        )
    model = ModelSpec(card, model_dir, options.device, options.batch_size)
    spec = ScorerSpec(
        model,
        options.max_pixels,
        options.host,
        options.host_timeout_seconds,
        max_bytes=options.max_bytes,
        decode_timeout_seconds=options.decode_timeout_seconds,
        strict=options.strict,
        **second_model(model, options.second, options.band, options.weights_lock),
    )
    if spec.second is not None:
        _check_weights(spec.second.card, set(spec.second.card.weights_sources), options)
    spec = replace(spec, delivery=delivered(spec.models))
    return ImageScoring(card, driver_fingerprint(spec), spec, keep_content=options.keep_content)


def _check_weights(card: ModelCard, computed: set[str], options: JobOptions) -> None:
    """Refuse a model whose scores mean nothing.

    Raises:
        ConfigError: A part that is computed has random weights, and nobody said that they were wanted.
    """
    if card.random_parts & computed and not options.allow_random_weights:
        raise ConfigError(
            f"the model {card.name} has random weights, so its scores mean nothing. Choose another model, "
            "or pass --allow-random-weights for a test"
        )


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
