"""Faults beneath a job, in words: what failed, what is left, and what to do.

In: what Spark, Delta Lake, Hadoop or the driver's system raise, with stack traces in three languages. Out: a
`StorageError` of a sentence where the fault is a known one, else what was raised. Knows texts, since an
executor's faults reach the driver as nothing else; docs/reliability.md says which test causes each of them.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final
from urllib.parse import unquote

from py4j.protocol import Py4JError
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

from nsfw_spark.errors import StorageError
from nsfw_spark.spark.output import Output

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
def explained(spark: SparkSession, output: Output) -> Iterator[None]:
    """Say of known faults what they are.

    Raises:
        StorageError: Of a fault that is known.
    """
    try:
        yield
    except RAISED as error:
        explanation = _explain(spark, output, error)
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


def _explain(spark: SparkSession, output: Output, error: BaseException) -> str | None:
    text, said = text_of(error), reason(error)
    places = f"{output.location}, its checkpoints {output.checkpoints}"
    if _NO_SPACE.search(text):
        local = spark.conf.get("spark.local.dir", None) or tempfile.gettempdir()
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
