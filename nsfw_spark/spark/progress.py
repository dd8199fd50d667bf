"""Counts images: as columns that Spark computes, and as values of a run or of a micro-batch.

The counts come from `DataFrame.observe`: Spark counts the rows while it writes them, without an extra pass.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from typing import Any, Final

from pyspark.errors import PySparkException
from pyspark.sql import Column
from pyspark.sql import functions as F

from nsfw_spark import errors
from nsfw_spark.errors import STORAGE_FAILED
from nsfw_spark.scorer import Timings
from nsfw_spark.spark.policy import Policy
from nsfw_spark.spark.schema import TIMINGS

OBSERVATION: Final = "images"


@dataclass(frozen=True)
class Counts:
    """Images of a run, or of a micro-batch."""

    images: int = 0
    ok: int = 0
    safe: int | None = None
    """None without a policy."""
    timings: Timings = field(default_factory=Timings)
    """Seconds that the tasks spent."""
    files_lost: int = 0
    """Of the images without a score: files, or parts of files, that storage failed to give."""

    @property
    def flagged(self) -> int | None:
        """Images with a score that are not safe; None without a policy."""
        return None if self.safe is None else self.ok - self.safe

    @property
    def quarantined(self) -> int:
        """Images without a score."""
        return self.images - self.ok

    def __add__(self, other: Counts) -> Counts:
        known = [counts.safe for counts in (self, other) if counts.safe is not None]
        safe, timings = sum(known) if known else None, self.timings + other.timings
        lost = self.files_lost + other.files_lost
        return Counts(self.images + other.images, self.ok + other.ok, safe, timings, lost)


def counting_columns(policy: Policy | None) -> list[Column]:
    """Return the aggregates of image_scores' rows that `observed_counts` reads."""
    return [
        *row_counts(policy),
        *(F.sum(F.col(TIMINGS.name)[i]).alias(timing.name) for i, timing in enumerate(fields(Timings))),
    ]


def row_counts(policy: Policy | None) -> list[Column]:
    """Return `images`, `ok`, `files_lost` and, with a policy, `safe` as aggregates of image_scores' rows."""
    safe = [] if policy is None else [F.count(F.when(policy.is_safe(), 1)).alias("safe")]
    ok = F.count(F.when(F.col("status") == "ok", 1)).alias("ok")
    is_lost = (F.col("status") == "missing") & F.col("error").startswith(STORAGE_FAILED)
    lost = F.count(F.when(is_lost, 1)).alias("files_lost")
    return [F.count(F.lit(1)).alias("images"), ok, *safe, lost]


def observed_counts(progress: Any) -> Counts:  # noqa: ANN401 - StreamingQueryProgress, or a dict before Spark 4
    """Return the counts of a micro-batch that Spark observed."""
    observed = progress.observedMetrics.get(OBSERVATION)
    if observed is None:
        return Counts()
    timings = Timings(*(observed[timing.name] or 0.0 for timing in fields(Timings)))
    safe = observed.asDict().get("safe")
    return Counts(observed.images, observed.ok, safe, timings, observed.files_lost)


def from_executor(error: PySparkException) -> Exception:
    """Return the error of this package that a task raised, or else `error` itself."""
    # If the task was writing rows, only the chain of causes names the error, not the message.
    text = f"{error}\n{getattr(error, '_stackTrace', '')}"
    raised = re.search(r"nsfw_spark\.errors\.(\w+Error): (.*)", text)
    if raised is None:
        return error
    return getattr(errors, raised[1], errors.NsfwSparkError)(raised[2])
