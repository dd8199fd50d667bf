"""Faults beneath a job, in words: what failed, what is left, and what to do.

In: what Spark, Delta Lake, Hadoop or the driver's system raise, with stack traces in three languages. Out: a
`StorageError` of a sentence where the fault is a known one, else what was raised. Knows texts, since an
executor's faults reach the driver as nothing else; docs/reliability.md says which test causes each of them.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Final
from urllib.parse import unquote

from py4j.protocol import Py4JError
from pyspark.errors import PySparkException

from nsfw_spark.errors import StorageError, TableError
from nsfw_spark.spark.checkpoints import checkpoint_id, last_committed_batch
from nsfw_spark.spark.hadoop import file_system
from nsfw_spark.spark.tables import FILTERED, IMAGE_SCORES, RUNS, Output, at_once, history

RAISED: Final = (PySparkException, Py4JError, OSError)
"""What Spark and this machine raise."""

_NO_SPACE: Final = re.compile(r"No space left on device|Disk quota exceeded|[DN]SQuotaExceeded")
_UNREADABLE: Final = re.compile(
    r"\[FAILED_READ_FILE\.?\w*\] Encountered error while reading file (\S+?)\.?\s"
)
_FORBIDDEN: Final = re.compile(
    r"Permission denied|AccessControlException|AccessDeniedException|403 Forbidden"
)
_IO: Final = re.compile(
    r"\b(?:java\.io|java\.net|java\.nio|org\.apache\.hadoop)\.[\w.]*(?:Exception|Error)\b|FAILED_READ_FILE"
)
_IN_PYTHON: Final = re.compile(r"Python worker|PythonException")
_CAUSE: Final = re.compile(
    r"^(?:Caused by: )?(?:[a-z]\w*\.)+[A-Z][\w$]*(?:Exception|Error): (.+)$", re.MULTILINE
)
_NOTHING_LOST: Final = "What was committed is whole, and the same command does the rest"
_MAX_CAUSES: Final = 20
_MAX_REASON: Final = 300  # characters


@contextmanager
def explained(output: Output) -> Iterator[None]:
    """Say of known faults what they are.

    Raises:
        StorageError: Of a fault that is known.
    """
    try:
        yield
    except RAISED as error:
        explanation = _explain(output, error)
        if explanation is None:
            raise
        raise StorageError(explanation) from error


def is_of_a_file(error: BaseException, directory: str) -> bool:
    """Whether a task failed since it could not read a file in a directory, by its URI."""
    found = _UNREADABLE.search(text_of(error))
    return found is not None and _one_slash(unquote(found[1])).startswith(_one_slash(directory))


def _one_slash(uri: str) -> str:
    """Return a URI as Hadoop's paths have it: where there is no host, with one slash for three."""
    return uri.replace(":///", ":/", 1)


def text_of(error: BaseException) -> str:
    """Return all that an error says, with what caused it in Java."""
    said = [str(error)]
    java: Any = getattr(error, "java_exception", None) or getattr(error, "_origin", None)
    while java is not None and len(said) < _MAX_CAUSES:
        said.append(str(java.toString()))
        java = java.getCause()
    return "\n".join(said)


def reason(error: BaseException) -> str:
    """Return what is at the bottom of an error: the file that was read, and what the last cause says."""
    text = text_of(error)
    causes = _CAUSE.findall(text) or [text.strip().splitlines()[0]]
    said, file = " ".join(str(causes[-1]).split())[:_MAX_REASON], _UNREADABLE.search(text)
    return said if file is None or unquote(file[1]) in said else f"{unquote(file[1])}: {said}"


def _explain(output: Output, error: BaseException) -> str | None:
    text, said = text_of(error), reason(error)
    places = f"{output.location}, its checkpoints {output.checkpoints}"
    if _NO_SPACE.search(text):
        local = output.spark.conf.get("spark.local.dir", None) or tempfile.gettempdir()
        return (
            f"no space is left, or a quota is used up, where this run writes: {places}, or Spark's own files "
            f"on each machine (spark.local.dir, {local}). {_NOTHING_LOST}: make room first"
        )
    if _FORBIDDEN.search(text):
        return (
            f"permission denied: {said}. This run reads its input, and writes to {places}. {_NOTHING_LOST}: "
            "give its user the right first"
        )
    if _IO.search(text) and not _IN_PYTHON.search(text):
        return (
            f"what this run reads or writes failed: {said}. {_NOTHING_LOST}: if it fails again, mend that "
            "first, or move it away"
        )
    return None


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


def check_readable(output: Output) -> None:
    """Make sure that the logs of all tables can be read.

    Raises:
        TableError: Some cannot.
    """
    tables = (IMAGE_SCORES, *FILTERED, RUNS)
    if problems := [problem for problem in at_once(partial(_problem, output), tables) if problem]:
        raise TableError(". ".join(problems))


def check_holds(output: Output, checkpoint: str) -> None:
    """Make sure that image_scores holds what a checkpoint has noted as written.

    Raises:
        TableError: The table is gone, or commits to it are.
    """
    noted = last_committed_batch(output.spark, checkpoint)
    if noted < 0:
        return
    name = output.name(IMAGE_SCORES)
    if not output.exists(IMAGE_SCORES):
        raise TableError(
            f"there is no table {name}, and the checkpoint {checkpoint} says that images were written to it: "
            "they would not be scored again. Restore the table, or delete the checkpoint too"
        )
    commits = _since_made(history(output, IMAGE_SCORES))
    _check_not_empty(output, commits)
    written = _last_written(commits, checkpoint_id(output.spark, checkpoint))
    if written is not None and written < noted:
        raise TableError(
            f"{name} ends with micro-batch {written} of {checkpoint}, which says that {noted} was written: "
            "commits to the table were lost, and their images would not be scored again. Restore the last "
            "files of its _delta_log, or score all again with --rescore all"
        )


def _problem(output: Output, table: str) -> str | None:
    """Say what is wrong with a table's log; counting reads all of it, and no data."""
    try:
        if output.exists(table):
            output.table(table).count()
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


def _check_not_empty(output: Output, commits: list[Any]) -> None:
    """Refuse a table of which a commit is an empty file, which Delta takes for one that adds nothing."""
    for version in (commit.version for commit in commits if commit.operation is None):
        detail = output.spark.sql(f"DESCRIBE DETAIL {output.name(IMAGE_SCORES)}").collect()[0]
        entry = f"{detail.location}/_delta_log/{version:020}.json"
        files, path = file_system(output.spark, entry)
        if files.getFileStatus(path).getLen() == 0:
            raise TableError(
                f"{entry} is empty: what version {version} of {output.name(IMAGE_SCORES)} added is lost. "
                "Restore the file from a backup, or score all again with --rescore all"
            )
