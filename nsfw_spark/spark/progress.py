"""Follows a streaming query to its end: shows its progress and counts its images.

The counts come from `DataFrame.observe`: Spark counts the rows while it writes them, without an extra pass.
"""

from __future__ import annotations

import re
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any, Final

from pyspark.errors import PySparkException, StreamingQueryException
from pyspark.sql import Column
from pyspark.sql import functions as F
from pyspark.sql.streaming.query import StreamingQuery
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from nsfw_spark import errors
from nsfw_spark.errors import STORAGE_FAILED
from nsfw_spark.scorer import Timings
from nsfw_spark.spark.fence import Fence
from nsfw_spark.spark.policy import Policy
from nsfw_spark.spark.schema import TIMINGS

OBSERVATION: Final = "images"
_POLL_SECONDS: Final = 0.5


@dataclass(frozen=True)
class Counts:
    """Images of a run, or of a micro-batch."""

    images: int = 0
    ok: int = 0
    safe: int | None = None
    """None without a policy."""
    timings: Timings = field(default_factory=Timings)
    """Seconds that the tasks spent."""
    files_lost: int = 0
    """Of the images without a score: files, or parts of files, that storage failed to give."""

    @property
    def flagged(self) -> int | None:
        """Images with a score that are not safe; None without a policy."""
        return None if self.safe is None else self.ok - self.safe

    @property
    def quarantined(self) -> int:
        """Images without a score."""
        return self.images - self.ok

    def __add__(self, other: Counts) -> Counts:
        known = [counts.safe for counts in (self, other) if counts.safe is not None]
        safe, timings = sum(known) if known else None, self.timings + other.timings
        lost = self.files_lost + other.files_lost
        return Counts(self.images + other.images, self.ok + other.ok, safe, timings, lost)


def counting_columns(policy: Policy | None) -> list[Column]:
    """Return the aggregates of image_scores' rows that `follow` reads as an observation."""
    return [
        *row_counts(policy),
        *(F.sum(F.col(TIMINGS.name)[i]).alias(timing.name) for i, timing in enumerate(fields(Timings))),
    ]


def row_counts(policy: Policy | None) -> list[Column]:
    """Return `images`, `ok`, `files_lost` and, with a policy, `safe` as aggregates of image_scores' rows."""
    safe = [] if policy is None else [F.count(F.when(policy.is_safe(), 1)).alias("safe")]
    ok = F.count(F.when(F.col("status") == "ok", 1)).alias("ok")
    is_lost = (F.col("status") == "missing") & F.col("error").startswith(STORAGE_FAILED)
    lost = F.count(F.when(is_lost, 1)).alias("files_lost")
    return [F.count(F.lit(1)).alias("images"), ok, *safe, lost]


def follow(query: StreamingQuery, fence: Fence) -> Counts:
    """Wait for the query's end; return the counts of the rows that it wrote.

    On a terminal one line shows progress; elsewhere standard error gets a line for each micro-batch.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed; the query is stopped.
        NsfwSparkError: A task raised it on an executor.
        StreamingQueryException: The query failed otherwise.
        TableError: Another run may have taken over the output; the query is stopped.
    """
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    total, seen = Counts(), -1
    with (
        Progress(*columns, console=console, disable=not console.is_terminal) as bar,
        _interrupt_noted() as interrupted,
    ):
        line = bar.add_task("scoring", total=None)
        while not (interrupted.is_set() or fence.is_closed):
            is_over = _wait(query)
            for progress in query.recentProgress:
                if progress.batchId <= seen or not progress.numInputRows:
                    continue
                seen = progress.batchId
                counts = _counts(progress)
                total += counts
                bar.update(line, description=_sentence("scored", total, None))
                if not console.is_terminal:
                    seconds = progress.batchDuration / 1000
                    sys.stderr.write(_sentence(f"micro-batch {seen}:", counts, seconds) + "\n")
            if is_over:
                return total
    query.stop()
    fence.check()
    raise KeyboardInterrupt


def _wait(query: StreamingQuery) -> bool:
    """Wait for `_POLL_SECONDS`; return whether the query has ended."""
    try:
        return bool(query.awaitTermination(_POLL_SECONDS))  # type: ignore[arg-type]
    except StreamingQueryException as error:
        raise from_executor(error) from error


@contextmanager
def _interrupt_noted() -> Iterator[threading.Event]:
    """Let Ctrl-C set an event: the caller then stops between two calls to Java, not within one."""
    interrupted = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only the main thread gets signals
        yield interrupted
        return
    before = signal.signal(signal.SIGINT, lambda *_: interrupted.set())
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)


def _counts(progress: Any) -> Counts:  # noqa: ANN401 - StreamingQueryProgress, or a dict before Spark 4
    observed = progress.observedMetrics.get(OBSERVATION)
    if observed is None:
        return Counts()
    timings = Timings(*(observed[timing.name] or 0.0 for timing in fields(Timings)))
    safe = observed.asDict().get("safe")
    return Counts(observed.images, observed.ok, safe, timings, observed.files_lost)


def _sentence(verb: str, counts: Counts, seconds: float | None) -> str:
    rate = "" if not seconds else f", {counts.images / seconds:,.0f} images/s"
    without = f", {counts.quarantined:,} of them without a score" if counts.quarantined else ""
    return f"{verb} {counts.images:,} images{without}{rate}{_limits(counts.timings)}"


def _limits(timings: Timings) -> str:
    """Return the tasks' shares of time, which show whether decoding or the model is the limit."""
    busy = timings.decode_seconds + timings.wait_seconds
    if not busy or not timings.batch_slots:
        return ""
    return (
        f"; tasks: {timings.decode_seconds / busy:.0%} decoding, {timings.wait_seconds / busy:.0%} waiting "
        f"for the model; batches {timings.batch_fill:.0%} full"
    )


def from_executor(error: PySparkException) -> Exception:
    """Return the error of this package that a task raised, or else `error` itself."""
    # If the task was writing rows, only the chain of causes names the error, not the message.
    text = f"{error}\n{getattr(error, '_stackTrace', '')}"
    raised = re.search(r"nsfw_spark\.errors\.(\w+Error): (.*)", text)
    if raised is None:
        return error
    return getattr(errors, raised[1], errors.NsfwSparkError)(raised[2])
