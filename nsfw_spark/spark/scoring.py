"""The job's one operator: what a source lists → the columns of image_scores.

In the Python worker of a task a reader opens what Spark listed, and the scorer scores what the reader finds.
One listed row may be one image (a file, a row of a table) or thousands (a tar). Arrow batches go in and out
(`mapInArrow`), so that no number becomes a Python object on its way; and an operator, unlike a UDF, is never
run twice for a filter on its result.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql.types import StructType

from nsfw_spark.embeddings import (
    EmbeddingsScorer,
    ScoredEmbeddings,
    head_fingerprint,
    load_embeddings_scorer,
)
from nsfw_spark.errors import ConfigError, ImageError
from nsfw_spark.model import ModelSpec
from nsfw_spark.model_card import ModelCard, load_card
from nsfw_spark.options import JobOptions
from nsfw_spark.readers import Chunk, Reader, VectorChunk, VectorReader
from nsfw_spark.scorer import ImageScore, Stages
from nsfw_spark.spark.schema import CONTENT, SCORE, STAGES, arrow_schema
from nsfw_spark.spark.udf import driver_fingerprint
from nsfw_spark.spark.worker import ScorerSpec, check_fingerprint, task_scorer

Columns = dict[str, pa.Array]
"""By name, all of the same number of rows."""


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


def choose_scoring(options: JobOptions) -> ImageScoring | VectorScoring:
    """Return what the options ask to score with; what is wrong with the model is said before Spark starts.

    Raises:
        ConfigError: The model card is wrong, has random weights, or none that scores embeddings.
        WeightsError: Weights absent, or not the ones that the card pins.
    """
    card = load_card(options.model)
    model_dir = options.model_dir and options.model_dir.absolute()  # the workers' directory is another
    if options.format == "embeddings":
        fingerprint = head_fingerprint(card, model_dir)
        return VectorScoring(card, fingerprint, model_dir, keep_embedding=options.keep_embedding)
    if card.has_random_weights and not options.allow_random_weights:
        raise ConfigError(
            f"the model {card.name} has random weights, so its scores mean nothing. Choose another model, "
            "or pass --allow-random-weights for a test"
        )
    model = ModelSpec(card, model_dir, options.device, options.batch_size)
    spec = ScorerSpec(model, options.max_pixels, options.host, options.host_timeout_seconds)
    return ImageScoring(card, driver_fingerprint(model), spec, keep_content=options.keep_content)


@dataclass(frozen=True)
class ImageScoring:
    """Scores encoded images with the scorer of the task."""

    card: ModelCard
    fingerprint: str
    """The model's, as the driver computed it."""
    spec: ScorerSpec
    keep_content: bool = False
    """Whether the rows keep the encoded images."""

    def on_executors_with(self, num_cores: int | None) -> Self:
        """Return the same, for executors of so many cores."""
        return replace(self, spec=replace(self.spec, host_threads=num_cores))

    def __call__(self, chunks: Iterator[Chunk]) -> Iterator[Columns]:
        """Score chunks: columns of each, those of `schema.SCORE`, `content` if it is kept, and the stages."""
        waiting: deque[tuple[pa.RecordBatch, list[bytes | None]]] = deque()

        def contents() -> Iterator[bytes | ImageError]:
            for chunk in chunks:
                kept: list[bytes | None] = []
                if chunk.columns.num_rows:
                    waiting.append((chunk.columns, kept))
                for content in chunk.contents:
                    if self.keep_content:
                        kept.append(None if isinstance(content, ImageError) else content)
                    yield content

        with task_scorer(self.spec, self.fingerprint) as scorer:
            scores = scorer.stream(contents())
            # Batches of the model are formed across chunks; the scores come back in the order of the images.
            for first in scores:
                carried, kept = waiting.popleft()
                rows = [first, *islice(scores, carried.num_rows - 1)]
                columns = _by_name(carried) | _score_columns(rows)
                if self.keep_content:
                    columns[CONTENT.name] = pa.array(kept, pa.binary())
                columns[STAGES.name] = stages_column(scorer.take_stages(), len(rows))
                yield columns


@dataclass(frozen=True)
class VectorScoring:
    """Scores embeddings that were computed elsewhere: the head alone, in the Python worker."""

    card: ModelCard
    fingerprint: str
    """The head's, as the driver computed it."""
    model_dir: Path | None = None
    keep_embedding: bool = False
    """Whether the rows keep the embeddings."""

    def on_executors_with(self, num_cores: int | None) -> Self:  # noqa: ARG002 - see ImageScoring
        """Return the same: a head needs no more than the task's own thread."""
        return self

    def __call__(self, chunks: Iterator[VectorChunk]) -> Iterator[Columns]:
        """Score chunks: columns of each, those of `schema.SCORE`, and the stages."""
        scorer = _embeddings_scorer(self.card, self.model_dir)
        check_fingerprint(scorer.fingerprint, self.fingerprint, self.card)
        for chunk in chunks:
            started = time.perf_counter()
            scored = scorer.score(chunk.vectors)
            columns = _by_name(chunk.columns) | self._score_columns(chunk, scored)
            stages = Stages(
                encode_seconds=time.perf_counter() - started, normalized=float(scored.num_normalized)
            )
            columns[STAGES.name] = stages_column(stages, len(chunk.vectors))
            yield columns

    def _score_columns(self, chunk: VectorChunk, scored: ScoredEmbeddings) -> Columns:
        problems = dict(chunk.problems)
        for row in np.flatnonzero(~np.isfinite(scored.nsfw_scores)).tolist():
            error = ImageError("not_finite", f"the model {self.card.name} gave no number for this embedding")
            problems.setdefault(row, error)
        num_rows = len(chunk.vectors)
        columns = {name: pa.nulls(num_rows, field.type) for name, field in _SCORE.items()}
        columns["status"] = pa.repeat(pa.scalar("ok"), num_rows)
        is_ok = np.ones(num_rows, np.bool_)
        if problems:
            is_ok[list(problems)] = False
            errors = [problems.get(row) for row in range(num_rows)]
            columns["status"] = pa.array([error.status if error else "ok" for error in errors])
            columns["error"] = pa.array([error.message if error else None for error in errors], pa.string())
        columns["nsfw_score"] = pa.array(scored.nsfw_scores, mask=~is_ok)
        if self.keep_embedding:
            columns["embedding"] = vectors_column(scored.embeddings[is_ok], is_ok)
        return columns


@lru_cache(maxsize=1)
def _embeddings_scorer(card: ModelCard, model_dir: Path | None) -> EmbeddingsScorer:
    return load_embeddings_scorer(card, model_dir)


def stages_column(stages: Stages, num_rows: int) -> pa.Array:
    """Return `schema.STAGES` for some rows: the first carries the time that went into all of them."""
    return pa.array([astuple(stages), *[None] * (num_rows - 1)], _STAGES_TYPE)


def vectors_column(vectors: npt.NDArray[np.float32], is_there: npt.NDArray[np.bool_]) -> pa.Array:
    """Return vectors, float32 (M, D), as lists: one for each row that is there, in order; else null."""
    offsets = np.concatenate([[0], np.cumsum(is_there) * vectors.shape[1]]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, vectors.reshape(-1), mask=pa.array(~is_there))


_STAGES_TYPE: Final = pa.list_(pa.float64())
_SCORE: Final = {field.name: field for field in arrow_schema(SCORE)}


def _score_columns(rows: Sequence[ImageScore]) -> Columns:
    return {name: _column(name, [getattr(row, name) for row in rows]) for name in SCORE.names}


def _column(name: str, values: list[Any]) -> pa.Array:
    type_ = _SCORE[name].type
    if name == "embedding":
        there = [vector for vector in values if vector is not None]
        if not there:
            return pa.nulls(len(values), type_)
        return vectors_column(np.stack(there), np.array([vector is not None for vector in values]))
    if name == "class_scores":
        values = [None if classes is None else list(classes.items()) for classes in values]
    return pa.array(values, type_)


def _by_name(batch: pa.RecordBatch) -> Columns:
    return dict(zip(batch.schema.names, batch.columns, strict=True))
