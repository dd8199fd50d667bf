"""The filtered tables: safe_images, flagged_images, quarantined_images.

They follow `image_scores`. Each commit to one of them says, in the commit itself, which version of
`image_scores` it shows and under which threshold. So a killed job leaves no doubt, and needs no state of ours
beside the tables: what is behind is appended, what is under another threshold is replaced, each in one
atomic commit. Plain SQL on scores: no model is loaded here.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Final

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from nsfw_spark.errors import ConfigError
from nsfw_spark.spark.tables import FILTERED, IMAGE_SCORES, PROPERTY, Output, at_once, history, properties

# What may happen to image_scores without a row of it changing or going.
_HARMLESS: Final = {"STREAMING UPDATE", "OPTIMIZE", "SET TBLPROPERTIES", "VACUUM START", "VACUUM END"}


def keep_safe(scored: DataFrame, threshold: float = 0.5) -> DataFrame:
    """Keep the images that were scored below the threshold; without a score none is safe.

    Args:
        scored: From `score_images`, or a table image_scores.
        threshold: In [0, 1]; strict: a score equal to it is not kept.

    Raises:
        ConfigError: The threshold is not in [0, 1].
    """
    if not 0 <= threshold <= 1:
        raise ConfigError(f"threshold is {threshold}; expected a number from 0 to 1")
    return scored.filter(is_safe(threshold))


def is_safe(threshold: float) -> Column:
    """The policy: scored, and below the threshold. Strict, as LAION's published thresholds are."""
    # A float column compared with a double literal would make 0.3 (float) less than 0.3.
    limit = F.lit(threshold).cast("float")
    return (F.col("status") == "ok") & F.coalesce(F.col("nsfw_score") < limit, F.lit(False))  # noqa: FBT003


def _conditions(threshold: float) -> dict[str, Column]:
    safe, ok = is_safe(threshold), F.col("status") == "ok"
    return {"safe_images": safe, "flagged_images": ok & ~safe, "quarantined_images": ~ok}


@dataclass(frozen=True)
class _Shown:
    """What a filtered table shows; part of each of its commits."""

    image_scores_id: str
    image_scores_version: int
    threshold: float


def update_filtered(spark: SparkSession, output: Output, threshold: float) -> None:
    """Bring the three filtered tables up to date with `image_scores`.

    A table under the same threshold gets what was added since; another is replaced in one commit, from
    one version of `image_scores`. Readers never see half a table.
    """
    commits = history(spark, output, IMAGE_SCORES)
    detail = spark.sql(f"DESCRIBE DETAIL {output.name(IMAGE_SCORES)}").select("id").first()
    now = _Shown(detail.id if detail else "", commits[0].version, threshold)

    def update(table: str) -> None:
        condition = _conditions(threshold)[table]
        shown = _shown(spark, output, table)
        if shown == now:
            return
        if shown is not None and _can_follow(shown, now, commits):
            added = _added(spark, output, shown.image_scores_version + 1, now.image_scores_version)
            writer = added.filter(condition).writeTo(output.name(table))
            writer.option("userMetadata", json.dumps(asdict(now))).append()
        else:
            _replace(spark, output, table, condition, now)

    at_once(update, FILTERED)


def _can_follow(shown: _Shown, now: _Shown, commits: list[Any]) -> bool:
    """Whether a table is what `now` asks for but for rows that were added to image_scores."""
    since = [commit for commit in commits if commit.version > shown.image_scores_version]
    return (
        (shown.image_scores_id, shown.threshold) == (now.image_scores_id, now.threshold)
        and len(since) == now.image_scores_version - shown.image_scores_version  # none cleaned away
        and all(_only_adds(commit) for commit in since)
    )


def _only_adds(commit: Any) -> bool:  # noqa: ANN401 - a Row of DESCRIBE HISTORY
    appends = commit.operation == "WRITE" and commit.operationParameters.get("mode") == "Append"
    return appends or commit.operation in _HARMLESS


def _shown(spark: SparkSession, output: Output, table: str) -> _Shown | None:
    """Return what a filtered table shows; None where it is not there or does not say."""
    if not output.exists(spark, table):
        return None
    for commit in history(spark, output, table):
        if commit.operation in _HARMLESS:
            continue
        try:
            return _Shown(**json.loads(commit.userMetadata or ""))
        except (ValueError, TypeError):  # somebody else's commit: what it did is not known
            return None
    return None


def _added(spark: SparkSession, output: Output, first: int, last: int) -> DataFrame:
    """Return the rows that the versions first…last of image_scores added."""
    changes = (
        spark.read.option("readChangeFeed", "true")
        .option("startingVersion", first)
        .option("endingVersion", last)
        .table(output.name(IMAGE_SCORES))
    )
    return changes.drop("_change_type", "_commit_version", "_commit_timestamp")


def _replace(spark: SparkSession, output: Output, table: str, condition: Column, now: _Shown) -> None:
    snapshot = spark.read.option("versionAsOf", now.image_scores_version).table(output.name(IMAGE_SCORES))
    writer = snapshot.filter(condition).writeTo(output.name(table)).using("delta")
    found = properties(spark, output)
    for key, value in {**found, "threshold": str(now.threshold)}.items():
        writer = writer.tableProperty(PROPERTY.format(key), value)
    writer.option("userMetadata", json.dumps(asdict(now))).createOrReplace()
