"""The filtered tables: safe_images, flagged_images, quarantined_images.

They follow `image_scores`. Each commit to one of them says, in the commit itself, which version of
`image_scores` it shows and under which policy. So a killed job leaves no doubt, and needs no state of ours
beside the tables: what is behind is appended, what is under another policy is replaced, each in one
atomic commit. Plain SQL on scores: no model is loaded here.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any, Final, NamedTuple

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from nsfw_spark.errors import ConfigError, InputError
from nsfw_spark.spark.content import Contents
from nsfw_spark.spark.policy import Policy, check_policy, is_ok
from nsfw_spark.spark.tables import (
    FILTERED,
    IMAGE_SCORES,
    PROPERTY,
    Output,
    at_once,
    changes_no_row,
    history,
    may_lack_additions,
    only_adds,
    properties,
)

_SCAN_BYTES: Final = 128 << 20  # Spark's default for what a task reads
_GOOD_FILE_BYTES: Final = 64 << 20  # Delta's compaction leaves files of this size alone
_COMPACTED: Final = {"delta.autoOptimize.autoCompact": "true"}  # what nightly runs append, now and then


def keep_safe(scored: DataFrame, threshold: float | None = None, policy: str | None = None) -> DataFrame:
    """Keep the images that are safe; an image without a score never is.

    Args:
        scored: From `score_images`, or a table image_scores.
        threshold: In [0, 1]; an image is safe if its score is below, not equal. Default: 0.5.
        policy: In place of a threshold, SQL that is true for safe images, such as
            `nsfw_score < 0.3 AND class_scores['high'] < 0.1`; or a file with it.

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
    parsed = Policy.parse(policy)
    check_policy(parsed, scored.sparkSession.createDataFrame([], scored.schema))
    return scored.filter(parsed.is_safe())


def _conditions(policy: Policy) -> dict[str, Column]:
    safe, ok = policy.is_safe(), is_ok()
    return {"safe_images": safe, "flagged_images": ok & ~safe, "quarantined_images": ~ok}


@dataclass(frozen=True)
class Shown:
    """What a filtered table shows; part of each of its commits."""

    image_scores_id: str
    image_scores_version: int
    policy: str
    content_from: str | None = None
    """URI of the images that were joined in."""


def check_filter(output: Output, policy: Policy, columns: StructType) -> None:
    """Check a policy before anything runs.

    Args:
        output: Where the tables lie; there may be none yet.
        policy: Any.
        columns: Of `image_scores`, for where it is not there yet.

    Raises:
        ConfigError: The policy cannot be applied, or lets an image without a score pass.
    """
    if policy.threshold is not None:
        return
    if not output.exists(IMAGE_SCORES):
        check_policy(policy, output.spark.createDataFrame([], columns))
        return
    scores, shown = output.table(IMAGE_SCORES), shown_by(output, "safe_images")
    if shown is not None and shown.policy == policy.text:  # so these rows were tried before
        scores = output.spark.createDataFrame([], scores.schema)
    check_policy(policy, scores)


def update_filtered(output: Output, policy: Policy, contents: Contents | None = None) -> None:
    """Bring the three filtered tables up to date with `image_scores`.

    A table under the same policy gets what was added since; another is replaced in one commit, from
    one version of `image_scores`. Readers never see half a table.

    Args:
        output: Where the tables lie.
        policy: Decides which image belongs into which of them.
        contents: Joined to what is written, as the column `content`; other ones replace the tables too.
    """
    commits = history(output, IMAGE_SCORES)
    detail = output.spark.sql(f"DESCRIBE DETAIL {output.name(IMAGE_SCORES)}").collect()[0]
    uri = None if contents is None else contents.uri
    now = Shown(detail.id, commits[0].version, policy.text, uri)
    snapshot = output.spark.read.option("versionAsOf", now.image_scores_version).table(
        output.name(IMAGE_SCORES)
    )
    said = dict(zip(FILTERED, at_once(lambda table: _last_said(output, table), FILTERED), strict=True))
    shown = {table: None if last is None else last.shown for table, last in said.items()}
    replaced = [table for table in FILTERED if not _can_follow(said[table], now, commits)]
    gathered = set()
    if replaced and contents is None:  # images are dealt out well already
        gathered = _gathered(snapshot, policy, detail.sizeInBytes)

    def rows(table: str, scores: DataFrame) -> DataFrame:
        kept = scores.filter(_conditions(policy)[table])
        return kept if contents is None else contents.add_to(kept)

    def update(table: str) -> None:
        before = shown[table]
        if before is None or table in replaced:
            writer = rows(table, snapshot).writeTo(output.name(table)).using("delta")
            for key, value in _settings(output, policy).items():
                writer = writer.tableProperty(key, value)
            writer.options(**_options(now, is_gathered=table in gathered)).createOrReplace()
        elif before != now:
            added = _added(output, before.image_scores_version + 1, now.image_scores_version)
            writer = rows(table, added).writeTo(output.name(table))
            writer.options(**_options(now, is_gathered=contents is None), mergeSchema="true").append()

    at_once(update, FILTERED)
    if contents is not None and any(before != now for before in shown.values()):
        _tell_lacking(output, contents)


def _can_follow(last: _Said | None, now: Shown, commits: list[Any]) -> bool:
    """Whether a table is what `now` asks for but for rows that were added to image_scores."""
    if last is None:
        return False
    shown = last.shown
    # A version that is younger than what shows it is another: the one of its number was lost.
    if any(each.version == shown.image_scores_version and each.timestamp > last.at for each in commits):
        return False
    since = [commit for commit in commits if commit.version > shown.image_scores_version]
    return (
        replace(shown, image_scores_version=0) == replace(now, image_scores_version=0)
        and len(since) == now.image_scores_version - shown.image_scores_version  # none cleaned away
        and all(only_adds(commit) for commit in since)
        and not may_lack_additions(since)
    )


def shown_by(output: Output, table: str) -> Shown | None:
    """Return what a filtered table shows; None where it is not there or does not say."""
    last = _last_said(output, table)
    return None if last is None else last.shown


class _Said(NamedTuple):
    """What a filtered table shows, and when it said so."""

    shown: Shown
    at: datetime


def _last_said(output: Output, table: str) -> _Said | None:
    if not output.exists(table):
        return None
    for commit in history(output, table):
        if changes_no_row(commit):
            continue
        try:
            return _Said(Shown(**json.loads(commit.userMetadata or "")), commit.timestamp)
        except (ValueError, TypeError):  # somebody else's commit: what it did is not known
            return None
    return None


def _added(output: Output, first: int, last: int) -> DataFrame:
    """Return the rows that the versions first…last of image_scores added."""
    changes = (
        output.spark.read.option("readChangeFeed", "true")
        .option("startingVersion", first)
        .option("endingVersion", last)
        .table(output.name(IMAGE_SCORES))
    )
    return changes.drop("_change_type", "_commit_version", "_commit_timestamp")


def _tell_lacking(output: Output, contents: Contents) -> None:
    """Say of how many images no bytes were found; Delta's statistics know it without reading the others."""
    is_lacking = F.col("content").isNull()
    found = at_once(lambda table: output.table(table).filter(is_lacking).count(), FILTERED)
    if any(found):
        tables = ", ".join(f"{number:,} of {table}" for number, table in zip(found, FILTERED, strict=True))
        sys.stderr.write(
            f"nsfw-spark: {sum(found):,} images have no content ({tables}): {contents.uri} does not hold "
            "them, or not as they were scored\n"
        )


def _gathered(snapshot: DataFrame, policy: Policy, size: int) -> set[str]:
    """Return the tables whose rows are to be gathered into fewer files than there are tasks.

    A task reads at most 128 MiB of `image_scores` and writes what it keeps into one file. Where that is
    little, a shuffle of these few rows is cheaper than thousands of tiny files for all who read the table;
    where it is much, files are of a good size without, and a shuffle would move most of the data.

    Args:
        snapshot: `image_scores`.
        policy: Decides how many rows each table gets.
        size: Bytes of `image_scores`.
    """
    spark = snapshot.sparkSession
    num_tasks = max(size / _SCAN_BYTES, float(spark.conf.get("spark.sql.files.minPartitionNum", None) or 1))
    shares = {table: F.avg(condition.cast("int")) for table, condition in _conditions(policy).items()}
    row = snapshot.agg(*(share.alias(table) for table, share in shares.items())).collect()[0]
    return {table for table in FILTERED if size * (row[table] or 0) / num_tasks < _GOOD_FILE_BYTES}


def _options(now: Shown, *, is_gathered: bool) -> dict[str, str]:
    """Return how to write what a table shows from now on."""
    return {"userMetadata": json.dumps(asdict(now)), "optimizeWrite": str(is_gathered).lower()}


def _settings(output: Output, policy: Policy) -> dict[str, str]:
    """Return the properties of a filtered table: those of image_scores, and the policy."""
    threshold = {} if policy.threshold is None else {"threshold": str(policy.threshold)}
    said = properties(output) | {"policy": policy.text} | threshold
    return {PROPERTY.format(key): value for key, value in said.items()} | _COMPACTED
