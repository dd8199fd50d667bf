"""Damaged tables: found before a run writes anything.

Delta Lake trusts its log. An entry that is cut or missing makes a table unreadable, with a Java stack trace;
one that a machine lost when its power failed (the last one, or its content) makes rows disappear without a
word, while Spark's checkpoint goes on to say that they are written. Here both are looked for, and each is a
sentence that names the table and says how to have it back.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any, Final

from pyspark.sql import SparkSession

from nsfw_spark.errors import TableError
from nsfw_spark.spark.checkpoints import checkpoint_id, last_committed_batch
from nsfw_spark.spark.faults import RAISED, reason, text_of
from nsfw_spark.spark.hadoop import file_system
from nsfw_spark.spark.output import FILTERED, IMAGE_SCORES, RUNS, Output
from nsfw_spark.spark.tables import at_once, history

_DAMAGE: Final = re.compile(
    r"MALFORMED_RECORD_IN_PARSING|DELTA_TRUNCATED_TRANSACTION_LOG|DELTA_VERSIONS_NOT_CONTIGUOUS"
    r"|DELTA_STATE_RECOVER_ERROR|DELTA_\w*CHECKPOINT\w*|ChecksumException|is not a Parquet file"
)
_MADE_AGAIN: Final = "Its rows are those of image_scores: delete the table, and this command makes it again"
_REPAIRS: Final[Mapping[str, str]] = {
    IMAGE_SCORES: (
        "Restore the files of its _delta_log from a backup; else score all again into another --output"
    ),
    RUNS: "It holds counts alone: delete the table; earlier runs then have the outcome `interrupted`",
    **dict.fromkeys(FILTERED, _MADE_AGAIN),
}


def check_readable(spark: SparkSession, output: Output) -> None:
    """Make sure that the logs of all tables can be read.

    Raises:
        TableError: Some cannot.
    """
    tables = (IMAGE_SCORES, *FILTERED, RUNS)
    if problems := [problem for problem in at_once(partial(_problem, spark, output), tables) if problem]:
        raise TableError(". ".join(problems))


def check_holds(spark: SparkSession, output: Output, checkpoint: str) -> None:
    """Make sure that image_scores holds what a checkpoint has noted as written.

    Raises:
        TableError: The table is gone, or commits to it are.
    """
    noted = last_committed_batch(spark, checkpoint)
    if noted < 0:
        return
    name = output.name(IMAGE_SCORES)
    if not output.exists(spark, IMAGE_SCORES):
        raise TableError(
            f"there is no table {name}, and the checkpoint {checkpoint} says that images were written to it: "
            "they would not be scored again. Restore the table, or delete the checkpoint too"
        )
    commits = _since_made(history(spark, output, IMAGE_SCORES))
    _check_not_empty(spark, output, commits)
    written = _last_written(commits, checkpoint_id(spark, checkpoint))
    if written is not None and written < noted:
        raise TableError(
            f"{name} ends with micro-batch {written} of {checkpoint}, which says that {noted} was written: "
            "commits to the table were lost, and their images would not be scored again. Restore the last "
            "files of its _delta_log, or score all again with --rescore all"
        )


def _problem(spark: SparkSession, output: Output, table: str) -> str | None:
    """Say what is wrong with a table's log; counting reads all of it, and no data."""
    try:
        if output.exists(spark, table):
            spark.table(output.name(table)).count()
    except RAISED as error:
        if not _DAMAGE.search(text_of(error)):
            raise
        return f"{output.name(table)} cannot be read, its log is damaged: {reason(error)}. {_REPAIRS[table]}"
    return None


def _since_made(commits: list[Any]) -> list[Any]:
    """Return the commits, newest first, down to the one that made the table, or made it anew."""
    found = []
    for commit in commits:
        found.append(commit)
        if (commit.operation or "").startswith(("CREATE", "REPLACE TABLE", "CLONE")):
            break
    return found


def _last_written(commits: list[Any], query: str) -> int | None:
    """Return the last micro-batch of a stream; -1 for none, None where the commits do not tell."""
    parameters = [commit.operationParameters or {} for commit in commits]
    written = [int(each["epochId"]) for each in parameters if each.get("queryId") == query]
    if written:
        return max(written)
    made = commits[-1]
    return -1 if made.version == 0 and str(made.operation).startswith("CREATE") else None


def _check_not_empty(spark: SparkSession, output: Output, commits: list[Any]) -> None:
    """Refuse a table of which a commit is an empty file, which Delta takes for one that adds nothing."""
    for version in (commit.version for commit in commits if commit.operation is None):
        detail = spark.sql(f"DESCRIBE DETAIL {output.name(IMAGE_SCORES)}").collect()[0]
        entry = f"{detail.location}/_delta_log/{version:020}.json"
        files, path = file_system(spark, entry)
        if files.getFileStatus(path).getLen() == 0:
            raise TableError(
                f"{entry} is empty: what version {version} of {output.name(IMAGE_SCORES)} added is lost. "
                "Restore the file from a backup, or score all again with --rescore all"
            )
