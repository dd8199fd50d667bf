"""Scores images: the scorer of the task."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Self

import pyarrow as pa
from pyspark.sql import SparkSession
from pyspark.sql.types import StructType

from nsfw_spark.errors import ImageError
from nsfw_spark.model_card import ModelCard
from nsfw_spark.readers import Chunk
from nsfw_spark.self_check import SelfCheck
from nsfw_spark.spark.arrow_columns import Columns, by_name, score_columns, stages_column
from nsfw_spark.spark.schema import CONTENT, STAGES
from nsfw_spark.spark.scorer_spec import ScorerSpec
from nsfw_spark.spark.session import executor_cores, tries_once
from nsfw_spark.spark.worker import task_scorer


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
        """Score chunks: columns of each, those of the scores, `content` if it is kept, and the stages."""
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
                columns = by_name(carried) | score_columns(rows, self.scores)
                if self.keep_content:
                    columns[CONTENT.name] = pa.array(kept, pa.binary())
                columns[STAGES.name] = stages_column(scorer.take_stages(), len(rows))
                yield columns
