"""The filtered tables: safe_images, flagged_images, quarantined_images.

In: image_scores and a policy. Out: three tables that follow image_scores. Each commit to one of them names
the version of image_scores and the policy that it shows. There is no other state, so a killed job leaves no
doubt: new rows are appended, a table under another policy is replaced, each in one atomic commit. This module
loads no model: it is plain SQL on scores.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Collection
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, NamedTuple

from py4j.protocol import Py4JError
from pyspark.errors import PySparkException
from pyspark.sql import Column, DataFrame, DataFrameWriterV2
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from nsfw_spark.errors import ConfigError, InputError, TableError
from nsfw_spark.spark.content import Contents
from nsfw_spark.spark.policy import Policy, check_policy, is_ok
from nsfw_spark.spark.tables import (
    CONFLICTS,
    FILTERED,
    IMAGE_SCORES,
    PROPERTY,
    Output,
    at_once,
    changes_no_row,
    history,
    only_adds,
    only_once,
    properties,
    replace_table,
)

_SCAN_BYTES: Final = 128 << 20  # Spark's default size of a task's input
_GOOD_FILE_BYTES: Final = 64 << 20  # Delta's compaction leaves larger files alone
_FILE_IS_GONE: Final = re.compile(r"FILE_NOT_EXIST|FileNotFoundException")
_COMPACTED: Final = {"delta.autoOptimize.autoCompact": "true"}  # nightly runs append small files


def keep_safe(scored: DataFrame, threshold: float | None = None, policy: str | None = None) -> DataFrame:
    """Keep the images that are safe; an image without a score never is.

    Args:
        scored: From `score_images`, or a table image_scores.
        threshold: In [0, 1]; an image is safe if its score is below, not equal. Default: 0.5.
        policy: In place of a threshold, SQL that is true for safe images, such as
            `nsfw_score < 0.3 AND class_scores['high'] < 0.1`.

    Raises:
        ConfigError: Both are given, the threshold is not in [0, 1], or the policy cannot be applied.
        InputError: The rows have no scores.
    """
    if lacking := {"status", "nsfw_score"} - set(scored.columns):
        raise InputError(
            f"the rows have no column {' and '.join(sorted(lacking))}; expected rows of score_images, or of "
            f"a table image_scores. Their columns: {', '.join(scored.columns)}"
        )
    if policy is None:
        return scored.filter(Policy.below(0.5 if threshold is None else threshold).is_safe())
    if threshold is not None:
        raise ConfigError(f"got threshold {threshold} and a policy; expected one of the two")
    parsed = Policy.from_sql(policy)
    check_policy(parsed, scored.sparkSession.createDataFrame([], scored.schema))
    return scored.filter(parsed.is_safe())


def check_filter(
    output: Output, policy: Policy, columns: StructType, classes: Collection[str] | None = None
) -> None:
    """Check a policy before anything runs.

    Args:
        output: The tables may not exist yet.
        policy: The policy.
        columns: The columns of `image_scores`, used if the table does not exist yet.
        classes: The model's classes; default: the classes of an image in the table.

    Raises:
        ConfigError: The policy cannot be applied.
    """
    if policy.threshold is not None:
        return
    if not output.exists(IMAGE_SCORES):
        check_policy(policy, output.spark.createDataFrame([], columns), classes)
        return
    scores = output.table(IMAGE_SCORES)
    check_policy(policy, scores, _classes(scores) if classes is None else classes)


def update_filtered(output: Output, policy: Policy, contents: Contents | None = None) -> None:
    """Bring the three filtered tables up to date with `image_scores`.

    A table under the same policy gets the rows added since its last commit. Any other table is replaced in
    one commit, from one version of `image_scores`. Readers never see half a table. With `contents`, the
    images are joined in as the column `content`; another source than before replaces the tables too.

    Raises:
        TableError: Another job changed a table at the same time.
    """
    commits = history(output, IMAGE_SCORES)
    detail = output.spark.sql(f"DESCRIBE DETAIL {output.name(IMAGE_SCORES)}").collect()[0]
    uri = None if contents is None else contents.uri
    now = FilterState(detail.id, commits[0].version, policy.text, uri)
    snapshot = output.table(IMAGE_SCORES, now.image_scores_version)
    # Files of new rows may be gone, see `_append`; with this setting Spark would not say so.
    passes_over = output.spark.conf.get("spark.sql.files.ignoreMissingFiles") == "true"
    last = dict(zip(FILTERED, at_once(output, partial(_last_commit, output), FILTERED), strict=True))

    def rows(table: str, scores: DataFrame) -> DataFrame:
        kept = scores.filter(_conditions(policy)[table])
        return kept if contents is None else contents.add_to(kept)

    def append(table: str) -> bool:
        """Add the new rows, if there are any; return False if the table must be replaced."""
        first = _first_unseen(last[table], now, commits)
        if first is None or passes_over or last[table].state == now:
            return first is not None and last[table].state == now
        options = _write_options(now, last[table], is_gathered=contents is None)
        added = rows(table, _added(output, first, now.image_scores_version))
        writer = output.writer(table, added)
        return _append(writer.options(**options, mergeSchema="true"))

    replaced = [
        table for table, done in zip(FILTERED, at_once(output, append, FILTERED), strict=True) if not done
    ]
    gathers = replaced and contents is None  # with images, the rows are spread well already
    gathered = _gathered(snapshot, policy, detail.sizeInBytes) if gathers else set()

    def replace_all(table: str) -> None:
        options = _write_options(now, last[table], is_gathered=table in gathered)
        with suppress(*CONFLICTS):  # see below
            replace_table(output, table, rows(table, snapshot), _table_properties(output, policy), **options)

    at_once(output, replace_all, replaced)
    changed = [table for table in FILTERED if table in replaced or last[table].state != now]
    if overtaken := [table for table in changed if filter_state(output, table) != now]:
        names = " and ".join(overtaken)
        raise TableError(f"another job changed {names} at the same time; wait for it, and run this one again")
    if contents is not None and changed:
        _report_missing(output, contents)


@dataclass(frozen=True)
class FilterState:
    """What a filtered table shows; JSON in each of its commits."""

    image_scores_id: str
    image_scores_version: int
    policy: str
    content_from: str | None = None
    """URI of the images that were joined in."""


def filter_state(output: Output, table: str) -> FilterState | None:
    """Return what a filtered table shows; None without a table, or if somebody else changed it."""
    return _last_commit(output, table).state


class _Commit(NamedTuple):
    """The last commit that changed a filtered table; version -1 without a table."""

    version: int
    at: datetime
    state: FilterState | None  # None if somebody else changed the table: nothing tells what the commit did


def _last_commit(output: Output, table: str) -> _Commit:
    commits = history(output, table) if output.exists(table) else []
    changes = [commit for commit in commits if not changes_no_row(commit)] or commits
    if not changes:
        return _Commit(-1, datetime.fromtimestamp(0, UTC), None)
    try:
        state = FilterState(**json.loads(changes[0].userMetadata or ""))
    except (ValueError, TypeError):
        state = None
    return _Commit(changes[0].version, changes[0].timestamp, state)


def _first_unseen(last: _Commit, now: FilterState, commits: list[Any]) -> int | None:
    """Return the first version that a table lacks; None if other rows than appended ones change it."""
    state = last.state
    if state is None or replace(state, image_scores_version=0) != replace(now, image_scores_version=0):
        return None
    # A version younger than the table that shows it is another one: the first of that number was lost.
    if any(each.version == state.image_scores_version and each.timestamp > last.at for each in commits):
        return None
    since = [commit for commit in commits if commit.version > state.image_scores_version]
    is_whole = len(since) == now.image_scores_version - state.image_scores_version  # the log holds all
    suffices = is_whole and all(only_adds(commit) for commit in since)
    return state.image_scores_version + 1 if suffices else None


def _conditions(policy: Policy) -> dict[str, Column]:
    safe, ok = policy.is_safe(), is_ok()
    return {"safe_images": safe, "flagged_images": ok & ~safe, "quarantined_images": ~ok}


def _append(writer: DataFrameWriterV2) -> bool:
    """Append rows; return False if files with some are gone: compacted, then deleted by VACUUM."""
    try:
        with suppress(*CONFLICTS):  # see `update_filtered`
            writer.append()
    except (PySparkException, Py4JError) as error:
        if not _FILE_IS_GONE.search(str(error)):
            raise
        return False
    return True


def _added(output: Output, first: int, last: int) -> DataFrame:
    """Return the rows that the versions first…last of image_scores added."""
    changes = (
        output.spark.read.option("readChangeFeed", "true")
        .option("startingVersion", first)
        .option("endingVersion", last)
        .table(output.name(IMAGE_SCORES))
    )
    return changes.drop("_change_type", "_commit_version", "_commit_timestamp")


def _classes(scores: DataFrame) -> list[str] | None:
    """Return the classes of the model that scored an image; None without a score, or for a cascade."""
    if "decided_by" in scores.columns or "class_scores" not in scores.columns:
        return None
    row = scores.filter(is_ok()).select(F.map_keys("class_scores").alias("classes")).first()
    return None if row is None else list(row.classes or [])


def _report_missing(output: Output, contents: Contents) -> None:
    """Report images without bytes; Delta's statistics count them without reading the others."""
    is_missing = F.col("content").isNull()
    missing = at_once(output, lambda table: output.table(table).filter(is_missing).count(), FILTERED)
    if any(missing):
        tables = ", ".join(f"{number:,} of {table}" for number, table in zip(missing, FILTERED, strict=True))
        sys.stderr.write(
            f"nsfw-spark: {sum(missing):,} images have no content ({tables}): {contents.uri} does not hold "
            "them, or holds other bytes than were scored\n"
        )


def _gathered(snapshot: DataFrame, policy: Policy, size: int) -> set[str]:
    """Return the tables whose rows are to be gathered into fewer files than there are tasks.

    A task reads at most 128 MiB of `image_scores` and writes one file. If it keeps few rows, shuffling these
    rows is cheaper than thousands of tiny files for all readers. If it keeps many, the files have a good size
    anyway, and a shuffle would move most of the data. `size` counts the bytes of `image_scores`.
    """
    spark = snapshot.sparkSession
    num_tasks = max(size / _SCAN_BYTES, float(spark.conf.get("spark.sql.files.minPartitionNum", None) or 1))
    shares = {table: F.avg(condition.cast("int")) for table, condition in _conditions(policy).items()}
    row = snapshot.agg(*(share.alias(table) for table, share in shares.items())).collect()[0]
    return {table for table in FILTERED if size * (row[table] or 0) / num_tasks < _GOOD_FILE_BYTES}


def _write_options(now: FilterState, last: _Commit, *, is_gathered: bool) -> dict[str, str]:
    """Return the options of a write; of two jobs whose writes follow one commit, Delta skips the second's."""
    gathered = str(is_gathered).lower()
    return only_once(last.version) | {"userMetadata": json.dumps(asdict(now)), "optimizeWrite": gathered}


def _table_properties(output: Output, policy: Policy) -> dict[str, str]:
    """Return the properties of a filtered table: the model's, the policy, and Delta's."""
    threshold = {} if policy.threshold is None else {"threshold": str(policy.threshold)}
    ours = properties(output) | {"policy": policy.text} | threshold
    return {PROPERTY.format(key): value for key, value in ours.items()} | _COMPACTED
