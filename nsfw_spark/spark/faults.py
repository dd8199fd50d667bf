"""Faults of storage and damaged tables, in words: what failed, what is left, and what to do.

In: exceptions of Spark, Delta Lake, Hadoop and the driver's system, with stack traces in three languages.
Out: a `StorageError` of one sentence for a known fault, else the exception itself; a `TableError` for a
damaged table. This module matches texts, because an executor's fault reaches the driver as text alone.
docs/reliability.md names the test that causes each fault.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from typing import Any, Final
from urllib.parse import unquote

from py4j.protocol import Py4JError
from pyspark.errors import PySparkException
from pyspark.sql import functions as F

from nsfw_spark.errors import StorageError, TableError
from nsfw_spark.spark.checkpoints import checkpoint_id, last_committed_batch
from nsfw_spark.spark.hadoop import file_system
from nsfw_spark.spark.tables import FILTERED, IMAGE_SCORES, RUNS, Output, at_once, history

RAISED: Final = (PySparkException, Py4JError, OSError)
"""Exceptions of Spark and of this machine."""

_NO_SPACE: Final = re.compile(r"No space left on device|Disk quota exceeded|[DN]SQuotaExceeded")
_FORBIDDEN: Final = re.compile(
    r"Permission denied|AccessControlException|AccessDeniedException|403 Forbidden"
)
_IO: Final = re.compile(
    r"\b(?:java\.(?:io|net|nio)|org\.apache\.(?:hadoop|http|hc)|software\.amazon\.awssdk)"
    r"\.[\w.]*(?:Exception|Error)\b|FAILED_READ_FILE"
)
_IN_PYTHON: Final = re.compile(r"Python worker|PythonException")
_UNREADABLE: Final = re.compile(
    r"\[FAILED_READ_FILE\.?\w*\] Encountered error while reading file (\S+?)\.?\s"
)
_CAUSE: Final = re.compile(
    r"^(?:Caused by: )?(?:[a-z]\w*\.)+[A-Z][\w$]*(?:Exception|Error): (.+)$", re.MULTILINE
)
_DAMAGE: Final = re.compile(
    r"MALFORMED_RECORD_IN_PARSING|DELTA_TRUNCATED_TRANSACTION_LOG|DELTA_VERSIONS_NOT_CONTIGUOUS"
    r"|DELTA_STATE_RECOVER_ERROR|DELTA_\w*CHECKPOINT\w*|ChecksumException|is not a Parquet file"
)
_MAX_CAUSES: Final = 20
_MAX_REASON: Final = 300  # characters
_NOTHING_LOST: Final = "All commits so far are complete, and the same command does the rest"
_MADE_AGAIN: Final = "Its rows are those of image_scores: delete the table, and this command makes it again"
_REPAIRS: Final[Mapping[str, str]] = {
    IMAGE_SCORES: (
        "Restore the files of its _delta_log from a backup; else score all again into another --output"
    ),
    RUNS: "It holds inputs and counts: delete the table; earlier runs then have the outcome `interrupted`",
    **dict.fromkeys(FILTERED, _MADE_AGAIN),
}


@contextmanager
def explained(output: Output) -> Iterator[None]:
    """Raise known faults as a sentence.

    Raises:
        StorageError: A known fault.
    """
    try:
        yield
    except RAISED as error:
        explanation = _explain(output, error)
        if explanation is None:
            raise
        raise StorageError(explanation) from error


def _explain(output: Output, error: BaseException) -> str | None:
    text, cause = text_of(error), reason(error)
    places = f"{output.location}, its checkpoints {output.checkpoints}"
    if _NO_SPACE.search(text):
        local = output.spark.conf.get("spark.local.dir", None) or tempfile.gettempdir()
        return (
            f"no space is left, or a quota is used up, where this run writes: {places}, or Spark's own files "
            f"on each machine (spark.local.dir, {local}). {_NOTHING_LOST}: make room first"
        )
    if _FORBIDDEN.search(text):
        return (
            f"permission denied: {cause}. This run reads its input, and writes to {places}. {_NOTHING_LOST}: "
            "give its user the right first"
        )
    if _IO.search(text) and not _IN_PYTHON.search(text):
        return (
            f"reading or writing failed: {cause}. {_NOTHING_LOST}. If it fails again, repair that file or "
            "store first"
        )
    return None


def may_be_of_files(error: BaseException) -> bool:
    """Whether a micro-batch may have failed because Spark could not list or read one of its files."""
    text = text_of(error)
    is_of_storage = _FORBIDDEN.search(text) or _IO.search(text)
    return bool(is_of_storage) and not (_NO_SPACE.search(text) or _IN_PYTHON.search(text))


def is_forbidden(error: BaseException) -> bool:
    """Whether a file system refused to give something to this user."""
    return bool(_FORBIDDEN.search(text_of(error)))


def reason(error: BaseException) -> str:
    """Return the last cause of an error, and the file that was being read."""
    text = text_of(error)
    causes = _CAUSE.findall(text) or [text.strip().splitlines()[0]]
    cause, file = " ".join(str(causes[-1]).split())[:_MAX_REASON], _UNREADABLE.search(text)
    return cause if file is None or unquote(file[1]) in cause else f"{unquote(file[1])}: {cause}"


def text_of(error: BaseException) -> str:
    """Return an error's message, and the messages of its causes in Java."""
    messages = [str(error)]
    java: Any = getattr(error, "java_exception", None) or getattr(error, "_origin", None)
    while java is not None and len(messages) < _MAX_CAUSES:
        messages.append(str(java.toString()))
        java = java.getCause()
    return "\n".join(messages)


def check_readable(output: Output) -> None:
    """Make sure that the logs of all tables can be read.

    Raises:
        TableError: Some logs are damaged; it names all of them.
    """
    tables = (IMAGE_SCORES, *FILTERED, RUNS)
    if problems := [problem for problem in at_once(output, partial(_problem, output), tables) if problem]:
        raise TableError(". ".join(problems))


def _problem(output: Output, table: str) -> str | None:
    """Return a sentence about a damaged log. Counting reads all of the log, and no data."""
    try:
        if output.exists(table):
            output.table(table).count()
    except RAISED as error:
        if not _DAMAGE.search(text_of(error)):
            raise
        return f"{output.name(table)} cannot be read, its log is damaged: {reason(error)}. {_REPAIRS[table]}"
    return None


def check_holds(output: Output, checkpoint: str, *, is_repair: bool) -> None:
    """Make sure that image_scores holds all that a checkpoint has noted as written.

    `is_repair` says whether this run scores files that have no row, such as those that a RESTORE undid.

    Raises:
        TableError: The table is gone, or commits to it are.
    """
    noted = last_committed_batch(output.spark, checkpoint)
    if noted < 0:
        return
    name, query = output.name(IMAGE_SCORES), checkpoint_id(output.spark, checkpoint)
    if not output.exists(IMAGE_SCORES):
        raise TableError(
            f"there is no table {name}, and the checkpoint {checkpoint} says that images were written to it: "
            "they would not be scored again. Restore the table, or delete the checkpoint too"
        )
    commits = _in_effect(history(output, IMAGE_SCORES))
    _check_no_empty_commit(output, commits)
    written = _last_written(commits, query)
    if written is None or written >= noted:
        return
    restored = next((commit.version for commit in commits if commit.operation == "RESTORE"), None)
    if restored is not None and (is_repair or _ended_since(output, query, restored)):
        return
    lost, advice = "commits to the table were lost", "Restore the last files of its _delta_log"
    if restored is not None:
        lost = f"its version {restored} is a RESTORE to an earlier one"
        advice = f"RESTORE it to version {restored - 1}, score files again with --rescore changed"
    raise TableError(
        f"{name} ends with micro-batch {written} of {checkpoint}, which says that {noted} was written: "
        f"{lost}, and images would not be scored again. {advice}, or score all again with --rescore all"
    )


def _ended_since(output: Output, query: str, version: int) -> bool:
    """Whether a run of this stream, and so a repair, has ended since a version of image_scores."""
    is_ended = F.col("last_batch").isNotNull() & (F.col("image_scores_version") > version)
    runs = output.table(RUNS) if output.exists(RUNS) else None
    return runs is not None and not runs.filter(F.col("checkpoint").endswith(query) & is_ended).isEmpty()


def _in_effect(commits: list[Any]) -> list[Any]:
    """Return the commits, newest first, since the table was created, without those that a RESTORE undid."""
    found, last = [], commits[0].version
    for commit in (each for each in commits if each.version <= last):
        found.append(commit)
        if (commit.operation or "").startswith(("CREATE", "REPLACE TABLE", "CLONE")):
            break
        if commit.operation == "RESTORE":
            version, at = (commit.operationParameters.get(key) for key in ("version", "timestamp"))
            times = [each.version for each in commits if at and each.timestamp <= datetime.fromisoformat(at)]
            last = int(version) if version else max(times, default=-1)
    return found


def _last_written(commits: list[Any], query: str) -> int | None:
    """Return the last micro-batch of a stream; -1 for none, None if the commits do not tell."""
    parameters = [{**_own(commit), **(commit.operationParameters or {})} for commit in commits]
    written = [int(each["epochId"]) for each in parameters if each.get("queryId") == query]
    if written:
        return max(written)
    first = commits[-1]
    return -1 if first.version == 0 and str(first.operation).startswith("CREATE") else None


def written_batch(output: Output, checkpoint: str) -> int:
    """Return the last micro-batch of a checkpoint that image_scores holds; -1 for none."""
    commits = _in_effect(history(output, IMAGE_SCORES))
    written = _last_written(commits, checkpoint_id(output.spark, checkpoint))
    return -1 if written is None else written


def _own(commit: Any) -> dict[str, Any]:  # noqa: ANN401 - a Row
    """Return `queryId` and `epochId` of a micro-batch that this package wrote in place of Spark."""
    text = commit.userMetadata or ""
    return dict(json.loads(text)) if text.startswith('{"queryId"') else {}


def _check_no_empty_commit(output: Output, commits: list[Any]) -> None:
    """Refuse a table with an empty file as a commit; Delta takes it for a commit that adds nothing."""
    for version in (commit.version for commit in commits if commit.operation is None):
        detail = output.spark.sql(f"DESCRIBE DETAIL {output.name(IMAGE_SCORES)}").collect()[0]
        entry = f"{detail.location}/_delta_log/{version:020}.json"
        files, path = file_system(output.spark, entry)
        if files.getFileStatus(path).getLen() == 0:
            raise TableError(
                f"{entry} is empty: the rows that version {version} of {output.name(IMAGE_SCORES)} added are "
                "lost. Restore the file from a backup, or score all again with --rescore all"
            )
