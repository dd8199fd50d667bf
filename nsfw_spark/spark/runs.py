"""The table `runs`: one row for each run, written when the run starts and completed when it ends.

A run that dies leaves its row with the outcome `running`. The next run that holds the lock sets the outcome
to `interrupted` and counts the images in image_scores. So the counts of `runs` add up to the rows of
image_scores, whatever was killed.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import reduce
from importlib import metadata
from typing import Any, Final, NamedTuple

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

import nsfw_spark
from nsfw_spark.scorer import Timings
from nsfw_spark.spark import schema
from nsfw_spark.spark.policy import Policy
from nsfw_spark.spark.progress import Counts, row_counts
from nsfw_spark.spark.summary import RunSummary
from nsfw_spark.spark.tables import (
    CONFLICTS,
    FILTERED,
    IMAGE_SCORES,
    RUNS,
    WELL_SIZED,
    Output,
    at_once,
    changes_no_row,
    create_table,
    history,
    last_version,
)

_NAMED: Final = 3  # of each list: the end of a run fits a screen of 24 lines
_COMMIT_TRIES: Final = 5
_NIGHTS: Final = 4  # a killed run among them
_SCORING_LIBRARIES: Final = (
    *("pyspark", "delta-spark", "pillow", "pillow-heif", "cykooz-resizer", "numpy", "torch"),
    *("open-clip-torch", "timm", "safetensors", "onnxruntime", "onnxruntime-gpu"),
)

Row = dict[str, Any]
"""A row of `runs`; absent columns are null."""


class RunRecord:
    """The row of one run in the table `runs`."""

    def __init__(self, output: Output, run_id: str, command: str) -> None:
        """Start the run's clock; write nothing."""
        self._output, self._start = output, time.perf_counter()
        self._row: Row = {"run_id": run_id, "command": command, "started_at": datetime.now(UTC)}

    def seconds(self) -> float:
        """Return how long the run has taken so far."""
        return time.perf_counter() - self._start

    def start(self, **values: Any) -> None:  # noqa: ANN401 - values of a row
        """Add the row, with the outcome `running` and further columns of `schema.RUNS`."""
        self._row |= {**values, "versions": _versions()}
        _write(self._output, [{**self._row, "outcome": "running"}], are_new=True)

    def finish(self, counts: Counts, score_seconds: float, **values: Any) -> RunSummary:  # noqa: ANN401
        """Complete the row, with the outcome `done`; return the counts for the user."""
        named = (
            _named(self._output, self._row["run_id"], values.get("threshold")) if counts.images else _NOBODY
        )
        totals, threshold = count_tables(self._output), values.get("threshold")
        unscored, highest, nearest = named
        summary = RunSummary(
            counts,
            totals,
            unscored,
            self.seconds(),
            self._row["run_id"],
            self._output.location,
            threshold,
            highest,
            nearest,
        )
        counted = {name: n for name, n in summary.as_dict().items() if name in schema.RUNS.names}
        times = {"score_seconds": score_seconds, "filter_seconds": summary.seconds - score_seconds}
        _write(self._output, [{**self._row, **values, **counted, **times, "outcome": "done"}])
        return summary


def record_interrupted(output: Output) -> int:
    """Complete the rows of runs that died, and add those that are missing; return how many.

    Call it while no other run writes, before this run does. A row is missing if an earlier version of this
    package was killed, or if somebody deleted the table. image_scores is read only if a run died.
    """
    recorded = _recorded(output)
    died = {run_id for run_id, row in recorded.items() if row.get("outcome") == "running"}
    if not died and not _may_lack_runs(output, recorded.values()):
        return 0
    counted = _count_runs(output) if output.exists(IMAGE_SCORES) else {}
    return _interrupt(output, recorded, counted, died | (counted.keys() - recorded.keys()))


def record_rescored(output: Output, staging: Output, run_id: str) -> None:
    """Count the images that killed runs before `run_id` left in the staging table of `--rescore all`.

    Call it before the staging table replaces image_scores.
    """
    counted = _count_runs(staging)
    _interrupt(output, _recorded(output), counted, counted.keys() - {run_id})


def may_have_lost_files(output: Output, input_: str) -> bool:
    """Whether storage failed to give files to one of the last runs of an input."""
    runs = output.table(RUNS).filter(F.col("input") == input_)
    if "files_lost" not in runs.columns:
        return False
    last = runs.orderBy(F.desc("started_at")).limit(_NIGHTS).filter(F.col("files_lost") > 0)
    return not last.isEmpty()


def count_run(output: Output, run_id: str, policy: Policy | None, timings: Timings) -> Counts:
    """Count the rows of a run in image_scores; `timings` becomes part of the result."""
    rows = output.table(IMAGE_SCORES).filter(F.col("run_id") == run_id)
    counted = rows.agg(*row_counts(policy)).collect()[0].asDict()
    return Counts(**counted, timings=timings)


def count_tables(output: Output) -> dict[str, int]:
    """Count the rows of each table that exists; Delta's log has the numbers, no data is read."""
    names = [name for name in (IMAGE_SCORES, *FILTERED) if output.exists(name)]
    return dict(zip(names, at_once(output, lambda name: output.table(name).count(), names), strict=True))


def _interrupt(
    output: Output, recorded: Mapping[str, Row], counted: Mapping[str, Row], run_ids: Iterable[str]
) -> int:
    """Write the rows of some runs as interrupted, with counts from `_count_runs`; return how many."""
    nothing = {"images": 0, "ok": 0, "quarantined": 0, "files_lost": 0}
    rows = []
    for run_id in run_ids:
        known = {name: value for name, value in recorded.get(run_id, {}).items() if value is not None}
        of_images = counted.get(run_id, nothing)
        counts = {name: of_images[name] for name in nothing}
        rows.append({"command": "run", **of_images, "run_id": run_id, **known, **counts})
    if rows:
        _write(output, [{**row, "outcome": "interrupted"} for row in rows])
    return len(rows)


def _recorded(output: Output) -> dict[str, Row]:
    """Return the rows of `runs` by run_id; none if there is no table."""
    rows = output.table(RUNS).collect() if output.exists(RUNS) else []
    return {row.run_id: row.asDict() for row in rows}


def _may_lack_runs(output: Output, recorded: Iterable[Row]) -> bool:
    """Whether image_scores changed since `runs` did; at its end each run writes the version into its row."""
    if not output.exists(IMAGE_SCORES):
        return False
    # A `filter` without a lock has not looked for them.
    versions = [row.get("image_scores_version") for row in recorded if row.get("command") != "filter"]
    last = max((version for version in versions if version is not None), default=-1)
    commits = history(output, IMAGE_SCORES)
    if last > commits[0].version:  # of a table that was deleted since
        return True
    return any(commit.version > last and not changes_no_row(commit) for commit in commits)


def _count_runs(output: Output) -> dict[str, Row]:
    """Return for each run_id of image_scores the columns of `runs` that its images tell."""
    images, ok, lost = row_counts(None)
    model = [F.any_value(name, ignoreNulls=True).alias(name) for name in ("model", "model_fingerprint")]
    counted = (
        output.table(IMAGE_SCORES)
        .filter(F.col("run_id").isNotNull())
        .groupBy("run_id")
        .agg(
            F.min("scored_at").alias("started_at"),
            images,
            ok,
            (images - ok).alias("quarantined"),
            lost,
            *model,
        )
    )
    return {row.run_id: row.asDict() for row in counted.collect()}


def _write(output: Output, rows: Sequence[Row], *, are_new: bool = False) -> None:
    """Add rows to `runs`, or replace them by run_id, in one commit.

    A `filter` without a lock may write at the same time: Delta then refuses one of two replacements.
    """
    version = last_version(output, IMAGE_SCORES)
    full = [{**row, "image_scores_version": version} for row in rows]
    values = [[row.get(name) for name in schema.RUNS.names] for row in full]
    frame = output.spark.createDataFrame(values, schema.RUNS).coalesce(1)
    if not output.exists(RUNS):
        create_table(output, RUNS, frame, WELL_SIZED)
        return
    # A table of an earlier version of this package has fewer columns.
    writer = output.writer(RUNS, frame).option("mergeSchema", "true")
    if are_new:
        writer.append()
        return
    for tries_left in reversed(range(_COMMIT_TRIES)):
        try:
            writer.overwrite(F.col("run_id").isin([row["run_id"] for row in rows]))
            break
        except CONFLICTS:
            if not tries_left:
                raise


class _Named(NamedTuple):
    """Some images of a run by name: see `RunSummary`."""

    unscored: list[tuple[str, str, str]]
    highest: list[tuple[str, float]]
    nearest: list[tuple[str, float]]


_NOBODY: Final = _Named([], [], [])


def _named(output: Output, run_id: str, threshold: float | None) -> _Named:
    """Name a few images of a run: in one query, since each costs half a second."""
    of_run = output.table(IMAGE_SCORES).filter(F.col("run_id") == run_id)
    of_run = of_run.select("image_id", "nsfw_score", "status", "error")
    scored = of_run.filter(F.col("status") == "ok")
    lists = {
        "unscored": of_run.filter(F.col("status") != "ok").limit(_NAMED),
        "highest": scored.orderBy(F.desc("nsfw_score"), "image_id").limit(_NAMED),
    }
    if threshold is not None:
        distance = F.abs(F.col("nsfw_score") - F.lit(threshold))
        lists["nearest"] = scored.orderBy(distance, "image_id").limit(_NAMED)
    named = [rows.withColumn("_list", F.lit(name)) for name, rows in lists.items()]
    found = reduce(DataFrame.union, named).collect()
    near = [(row.image_id, row.nsfw_score) for row in found if row[-1] == "nearest"]
    return _Named(
        [(row.image_id, row.status, row.error) for row in found if row[-1] == "unscored"],
        sorted(((r.image_id, r.nsfw_score) for r in found if r[-1] == "highest"), key=lambda each: -each[1]),
        sorted(near, key=lambda each: abs(each[1] - (threshold or 0))),
    )


def _versions() -> dict[str, str]:
    """Return the versions of the installed libraries that a score can depend on."""
    versions = {"nsfw-spark": nsfw_spark.__version__}
    for library in _SCORING_LIBRARIES:
        try:
            versions[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return versions
