"""Accounts for the runs that did not live to write their row into `runs`.

A run that is killed, or that fails, leaves the rows of its finished micro-batches in image_scores, with its
run_id, and the next run takes up the rest. Here such runs get their rows in `runs` too, so that its counts
add up to image_scores.
"""

from __future__ import annotations

import json
from typing import Any, Final

from py4j.protocol import Py4JError
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from nsfw_spark.spark import tables
from nsfw_spark.spark.output import IMAGE_SCORES, RUNS, Output
from nsfw_spark.spark.tables import history

_UNREADABLE: Final = (PySparkException, Py4JError)
_COLUMNS: Final = ("run_id", "status", "scored_at", "model", "model_fingerprint", "_commit_version")
_ORIGIN: Final = ("command", "input")


def account_for_interrupted(spark: SparkSession, output: Output) -> int:
    """Add a row to `runs` for each run_id of `image_scores` that has none; return how many.

    To be called where no other run is under way (`one_run_at_a_time`), before this one writes. Looks only at
    what was added since the last row of `runs` was written; where nothing was, at two versions.
    """
    version = tables.last_version(spark, output, IMAGE_SCORES)
    if version is None:
        return 0
    seen = _seen_version(spark, output, version)
    if seen == version:
        return 0
    return _add_unknown(spark, output, output, _runs_since(spark, output, seen, version))


def account_for_rescoring(spark: SparkSession, apart: Output, output: Output, run_id: str) -> int:
    """Add a row to `runs` for each earlier run whose rows are in a table apart; return how many.

    To be called by the run that is about to put them in place of those of `image_scores`: nobody looks for
    them after that run has written its own row, which is of that version.

    Args:
        spark: The session.
        apart: Where runs of `--rescore all` have scored.
        output: Where `runs` lies.
        run_id: Of the run that calls; its row it writes itself.
    """
    version = tables.last_version(spark, apart, IMAGE_SCORES)
    found = _runs_since(spark, apart, 0, version or 0)  # version 0 made it, without rows
    return _add_unknown(spark, apart, output, [run for run in found if run["run_id"] != run_id])


def _add_unknown(spark: SparkSession, scored: Output, output: Output, found: list[dict[str, Any]]) -> int:
    """Add rows for those runs that `runs` does not know; `scored` holds the image_scores they wrote."""
    known = _known(spark, output, [run["run_id"] for run in found])
    unknown = [run for run in found if run["run_id"] not in known]
    if unknown:
        origins = _origins(spark, scored)
        rows = [{**run, **origins.get(run["_commit_version"], {})} for run in unknown]
        tables.append_runs(spark, output, rows)
    return len(unknown)


def _seen_version(spark: SparkSession, output: Output, now: int) -> int | None:
    """Return the version of image_scores up to which `runs` knows all runs; None: it does not say."""
    if not output.exists(spark, RUNS):
        return None
    runs = spark.table(output.name(RUNS))
    if "image_scores_version" not in runs.columns:  # made by an earlier version of this package
        return None
    last = runs.agg(F.max("image_scores_version").alias("version")).first()
    if last is None or last.version is None or last.version > now:  # later than now: of a table that is gone
        return None
    return int(last.version)


def _runs_since(spark: SparkSession, output: Output, seen: int | None, now: int) -> list[dict[str, Any]]:
    """Return what `runs` should say of the runs that added rows after a version; None: of all."""
    try:
        return _runs(_changes(spark, output, 0 if seen is None else seen + 1, now))
    except _UNREADABLE:
        # The change feed was off, or VACUUM took the files that it names: the table itself has it all.
        pass
    no_commit = F.lit(None).cast("long")
    return _runs(spark.table(output.name(IMAGE_SCORES)).withColumn("_commit_version", no_commit))


def _changes(spark: SparkSession, output: Output, first: int, last: int) -> DataFrame:
    reader = spark.read.option("readChangeFeed", "true")
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


def _origins(spark: SparkSession, output: Output) -> dict[int, dict[str, str]]:
    """Return, by version, what commits to image_scores say in their `userMetadata` of the run they are of."""
    return {commit.version: _origin(commit.userMetadata) for commit in history(spark, output, IMAGE_SCORES)}


def _origin(user_metadata: str | None) -> dict[str, str]:
    try:
        said = json.loads(user_metadata or "{}")
    except ValueError:  # somebody else's
        return {}
    return {key: str(said[key]) for key in _ORIGIN if key in said} if isinstance(said, dict) else {}


def _known(spark: SparkSession, output: Output, run_ids: list[str]) -> set[str]:
    if not output.exists(spark, RUNS):
        return set()
    runs = spark.table(output.name(RUNS)).filter(F.col("run_id").isNull() | F.col("run_id").isin(run_ids))
    return {row.run_id for row in runs.select("run_id").distinct().collect()}
