"""What a run did: for the table `runs`, and for whoever started it."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from typing import Any, Final

from py4j.protocol import Py4JError
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

import nsfw_spark
from nsfw_spark.scorer import Timings
from nsfw_spark.spark import schema, tables
from nsfw_spark.spark.policy import Policy
from nsfw_spark.spark.progress import Counts, row_counts
from nsfw_spark.spark.tables import FILTERED, IMAGE_SCORES, RUNS, Output, history

_UNSCORED_SHOWN: Final = 5


@dataclass(frozen=True)
class RunSummary:
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


def finish_run(output: Output, clock: Clock, counts: Counts, run: dict[str, Any]) -> RunSummary:
    """Record a run in the table `runs`, and return what it did.

    Args:
        output: Where the tables lie.
        clock: That of the run.
        counts: Of the run.
        run: The values of `schema.RUNS` that only the job knows.
    """
    unscored = _unscored(output, run["run_id"]) if counts.quarantined else []
    summary = RunSummary(counts, count_tables(output), unscored, clock.seconds())
    counted = {name: n for name, n in summary.as_dict().items() if name in schema.RUNS.names}
    times = {"started_at": clock.at, "filter_seconds": summary.seconds - run["score_seconds"]}
    tables.append_run(output, {**run, **counted, **times, "versions": _versions()})
    return summary


def count_run(output: Output, run_id: str, policy: Policy, timings: Timings) -> Counts:
    """Count the rows of a run that are in image_scores, with the time that went into them."""
    rows = output.table(IMAGE_SCORES).filter(F.col("run_id") == run_id)
    found = rows.agg(*row_counts(policy)).first()
    return Counts(timings=timings) if found is None else Counts(found.images, found.ok, found.safe, timings)


def _unscored(output: Output, run_id: str) -> list[tuple[str, str, str]]:
    scores = output.table(IMAGE_SCORES)
    found = scores.filter((F.col("run_id") == run_id) & (F.col("status") != "ok"))
    rows = found.select("image_id", "status", "error").limit(_UNSCORED_SHOWN).collect()
    return [(row.image_id, row.status, row.error) for row in rows]


def count_tables(output: Output) -> dict[str, int]:
    """Count the rows of each table that is there; Delta's log knows, no data is read."""
    names = [name for name in (IMAGE_SCORES, *FILTERED) if output.exists(name)]
    counts = tables.at_once(lambda name: output.table(name).count(), names)
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


_UNREADABLE: Final = (PySparkException, Py4JError)
_COLUMNS: Final = ("run_id", "status", "scored_at", "model", "model_fingerprint", "_commit_version")
_ORIGIN: Final = ("command", "input")


def account_for_interrupted(output: Output) -> int:
    """Add a row to `runs` for each run_id of `image_scores` that has none; return how many.

    To be called where no other run is under way (`one_run_at_a_time`), before this one writes. Looks only at
    what was added since the last row of `runs` was written; where nothing was, at two versions.
    """
    version = tables.last_version(output, IMAGE_SCORES)
    if version is None:
        return 0
    seen = _seen_version(output, version)
    if seen == version:
        return 0
    return _add_unknown(output, output, _runs_since(output, seen, version))


def account_for_rescoring(apart: Output, output: Output, run_id: str) -> int:
    """Add a row to `runs` for each earlier run whose rows are in a table apart; return how many.

    To be called by the run that is about to put them in place of those of `image_scores`: nobody looks for
    them after that run has written its own row, which is of that version.

    Args:
        apart: Where runs of `--rescore all` have scored.
        output: Where `runs` lies.
        run_id: Of the run that calls; its row it writes itself.
    """
    version = tables.last_version(apart, IMAGE_SCORES)
    found = _runs_since(apart, 0, version or 0)  # version 0 made it, without rows
    return _add_unknown(apart, output, [run for run in found if run["run_id"] != run_id])


def _add_unknown(scored: Output, output: Output, found: list[dict[str, Any]]) -> int:
    """Add rows for those runs that `runs` does not know; `scored` holds the image_scores they wrote."""
    known = _known(output, [run["run_id"] for run in found])
    unknown = [run for run in found if run["run_id"] not in known]
    if unknown:
        origins = _origins(scored)
        rows = [{**run, **origins.get(run["_commit_version"], {})} for run in unknown]
        tables.append_runs(output, rows)
    return len(unknown)


def _seen_version(output: Output, now: int) -> int | None:
    """Return the version of image_scores up to which `runs` knows all runs; None: it does not say."""
    if not output.exists(RUNS):
        return None
    runs = output.table(RUNS)
    if "image_scores_version" not in runs.columns:  # made by an earlier version of this package
        return None
    last = runs.agg(F.max("image_scores_version").alias("version")).first()
    if last is None or last.version is None or last.version > now:  # later than now: of a table that is gone
        return None
    return int(last.version)


def _runs_since(output: Output, seen: int | None, now: int) -> list[dict[str, Any]]:
    """Return what `runs` should say of the runs that added rows after a version; None: of all."""
    try:
        return _runs(_changes(output, 0 if seen is None else seen + 1, now))
    except _UNREADABLE:
        # The change feed was off, or VACUUM took the files that it names: the table itself has it all.
        pass
    no_commit = F.lit(None).cast("long")
    return _runs(output.table(IMAGE_SCORES).withColumn("_commit_version", no_commit))


def _changes(output: Output, first: int, last: int) -> DataFrame:
    reader = output.spark.read.option("readChangeFeed", "true")
    changes = reader.option("startingVersion", first).option("endingVersion", last)
    new = F.col("_change_type").isin("insert", "update_postimage")
    return changes.table(output.name(IMAGE_SCORES)).filter(new)


def _runs(rows: DataFrame) -> list[dict[str, Any]]:
    """Return for each run_id the values of `schema.RUNS` that its rows tell, and its first commit."""
    ok = F.count(F.when(F.col("status") == "ok", 1))
    images = F.count(F.lit(1))
    counted = (
        rows.select(*_COLUMNS)
        .groupBy("run_id")
        .agg(
            F.min("_commit_version").alias("_commit_version"),
            F.min("scored_at").alias("started_at"),
            images.alias("images"),
            ok.alias("ok"),
            (images - ok).alias("quarantined"),
            F.any_value("model", ignoreNulls=True).alias("model"),
            F.any_value("model_fingerprint", ignoreNulls=True).alias("model_fingerprint"),
        )
    )
    return [{**row.asDict(), "command": "run", "outcome": "interrupted"} for row in counted.collect()]


def _origins(output: Output) -> dict[int, dict[str, str]]:
    """Return, by version, what commits to image_scores say in their `userMetadata` of the run they are of."""
    return {commit.version: _origin(commit.userMetadata) for commit in history(output, IMAGE_SCORES)}


def _origin(user_metadata: str | None) -> dict[str, str]:
    try:
        said = json.loads(user_metadata or "{}")
    except ValueError:  # somebody else's
        return {}
    return {key: str(said[key]) for key in _ORIGIN if key in said} if isinstance(said, dict) else {}


def _known(output: Output, run_ids: list[str]) -> set[str]:
    if not output.exists(RUNS):
        return set()
    runs = output.table(RUNS).filter(F.col("run_id").isNull() | F.col("run_id").isin(run_ids))
    return {row.run_id for row in runs.select("run_id").distinct().collect()}
