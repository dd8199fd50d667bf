"""Scores embeddings: a head alone."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
from pyspark.sql import SparkSession
from pyspark.sql.types import StructType

from nsfw_spark.embeddings import EmbeddingsScorer, ScoredEmbeddings, load_embeddings_scorer
from nsfw_spark.errors import ImageError
from nsfw_spark.model_card import ModelCard, head_part
from nsfw_spark.readers import VectorChunk
from nsfw_spark.scorer import Stages
from nsfw_spark.self_check import SelfCheck
from nsfw_spark.spark import schema
from nsfw_spark.spark.arrow_columns import FIELDS, Columns, by_name, stages_column, vectors_column
from nsfw_spark.spark.delivery import AS_ON_DRIVER, Delivery
from nsfw_spark.spark.schema import STAGES, other_scores
from nsfw_spark.spark.worker import check_fingerprint


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
        """Score chunks: columns of each, those of the scores, and the stages."""
        parts = [head_part(name) for name in self.card.heads]
        scorer = _embeddings_scorer(*self.delivery.received(self.card, self.model_dir, parts))
        check_fingerprint(scorer.fingerprint, self.fingerprint, self.name)
        for chunk in chunks:
            started = time.perf_counter()
            scored = scorer.score(chunk.vectors)
            columns = by_name(chunk.columns) | self._score_columns(chunk, scored)
            stages = Stages(
                encode_seconds=time.perf_counter() - started, normalized=float(scored.num_normalized)
            )
            columns[STAGES.name] = stages_column(stages, len(chunk.vectors))
            yield columns

    def _score_columns(self, chunk: VectorChunk, scored: ScoredEmbeddings) -> Columns:
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
        if self.keep_embedding:
            columns["embedding"] = vectors_column(scored.embeddings[is_ok], is_ok)
        return columns


@lru_cache(maxsize=1)
def _embeddings_scorer(card: ModelCard, model_dir: Path | None) -> EmbeddingsScorer:
    return load_embeddings_scorer(card, model_dir)
