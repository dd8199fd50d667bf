"""What a run did: for the table `runs`, and for whoever started it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from typing import Any, Final

from pyspark.sql import SparkSession
from pyspark.sql import functions as F

import nsfw_spark
from nsfw_spark.scorer import Stages
from nsfw_spark.spark import schema, tables
from nsfw_spark.spark.output import FILTERED, IMAGE_SCORES, Output
from nsfw_spark.spark.policy import Policy
from nsfw_spark.spark.progress import Counts, row_counts

_UNSCORED_SHOWN: Final = 5


@dataclass(frozen=True)
class Summary:
    """What a job did; the last line of the command's output."""

    counts: Counts
    """Of this run; of the tables as they are, for `filter`."""
    totals: dict[str, int]
    """Rows of each table, now."""
    unscored: list[tuple[str, str, str]]
    """Of a few images of this run that have no score: image_id, status, error."""
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Return the keys that users and checks rely on, in their order."""
        counts = self.counts
        return {
            "images": counts.images,
            "ok": counts.ok,
            "safe": counts.safe,
            "flagged": counts.flagged,
            "quarantined": counts.quarantined,
            "seconds": round(self.seconds, 3),
            "images_per_second": round(counts.images / self.seconds, 1) if self.seconds else 0.0,
        }


class Clock:
    """When a job began, Spark's start not included, and for how long it has run."""

    def __init__(self) -> None:
        self.at, self._start = datetime.now(UTC), time.perf_counter()

    def seconds(self) -> float:
        """Return for how long."""
        return time.perf_counter() - self._start


def finish_run(
    spark: SparkSession, output: Output, clock: Clock, counts: Counts, run: dict[str, Any]
) -> Summary:
    """Record a run in the table `runs`, and return what it did.

    Args:
        spark: The session.
        output: Where the tables lie.
        clock: That of the run.
        counts: Of the run.
        run: The values of `schema.RUNS` that only the job knows.
    """
    unscored = _unscored(spark, output, run["run_id"]) if counts.quarantined else []
    summary = Summary(counts, count_tables(spark, output), unscored, clock.seconds())
    counted = {name: n for name, n in summary.as_dict().items() if name in schema.RUNS.names}
    times = {"started_at": clock.at, "filter_seconds": summary.seconds - run["score_seconds"]}
    tables.append_run(spark, output, {**run, **counted, **times, "versions": _versions()})
    return summary


def count_run(spark: SparkSession, output: Output, run_id: str, policy: Policy, stages: Stages) -> Counts:
    """Count the rows of a run that are in image_scores, with the time that went into them."""
    rows = spark.table(output.name(IMAGE_SCORES)).filter(F.col("run_id") == run_id)
    found = rows.agg(*row_counts(policy)).first()
    return Counts(stages=stages) if found is None else Counts(found.images, found.ok, found.safe, stages)


def _unscored(spark: SparkSession, output: Output, run_id: str) -> list[tuple[str, str, str]]:
    scores = spark.table(output.name(IMAGE_SCORES))
    found = scores.filter((F.col("run_id") == run_id) & (F.col("status") != "ok"))
    rows = found.select("image_id", "status", "error").limit(_UNSCORED_SHOWN).collect()
    return [(row.image_id, row.status, row.error) for row in rows]


def count_tables(spark: SparkSession, output: Output) -> dict[str, int]:
    """Count the rows of each table that is there; Delta's log knows, no data is read."""
    names = [name for name in (IMAGE_SCORES, *FILTERED) if output.exists(spark, name)]
    counts = tables.at_once(lambda name: spark.table(output.name(name)).count(), names)
    return dict(zip(names, counts, strict=True))


def _versions() -> dict[str, str]:
    """Return the versions of the installed libraries that a score can depend on."""
    libraries = ("pyspark", "delta-spark", "pillow", "cykooz-resizer", "numpy")
    versions = {"nsfw-spark": nsfw_spark.__version__}
    for library in (*libraries, "torch", "open-clip-torch", "onnxruntime"):
        try:
            versions[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return versions
