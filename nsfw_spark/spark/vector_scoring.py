"""Scores embeddings that were computed elsewhere: the counterpart of `scoring.ImageScoring`.

In: a reader's chunks of vectors, in the Python worker. Out: the columns of image_scores. Only the heads are
loaded; `nsfw_spark.embeddings` computes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final, Self

import numpy as np
import pyarrow as pa
from pyspark.sql import SparkSession
from pyspark.sql.types import StructType

from nsfw_spark.embeddings import EmbeddingsScorer, load_embeddings_scorer
from nsfw_spark.errors import ImageError
from nsfw_spark.heads import Predictions
from nsfw_spark.model import ModelSpec
from nsfw_spark.model_card import ModelCard, head_part
from nsfw_spark.readers import VectorChunk
from nsfw_spark.self_check import SelfCheck
from nsfw_spark.spark import schema
from nsfw_spark.spark.delivery import AS_ON_DRIVER, Delivery
from nsfw_spark.spark.scoring import Columns, by_name, timings_column, vectors_column
from nsfw_spark.spark.worker import check_fingerprint

_FIELDS: Final = {field.name: field for field in schema.arrow_schema(schema.SCORE)}


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
            columns = by_name(chunk.columns) | self._score_columns(chunk, scorer.score(chunk.vectors))
            columns[schema.TIMINGS.name] = timings_column(scorer.take_timings(), len(chunk.vectors))
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
            columns["embedding"] = vectors_column(predictions.embeddings[is_ok], is_ok)
        return columns


@lru_cache(maxsize=1)
def _embeddings_scorer(card: ModelCard, model_dir: Path | None) -> EmbeddingsScorer:
    return load_embeddings_scorer(card, model_dir)
