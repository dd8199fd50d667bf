"""Follows a streaming query to its end and shows how far it is.

Counts come from `DataFrame.observe`: they are those of the rows that were written, at no extra pass.
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
from nsfw_spark.scorer import Timings
from nsfw_spark.spark.policy import Policy
from nsfw_spark.spark.schema import TIMINGS

OBSERVATION: Final = "images"
_POLL_SECONDS: Final = 0.5


@dataclass(frozen=True)
class Counts:
    """Images of a run, or of a micro-batch."""

    images: int = 0
    ok: int = 0
    safe: int = 0
    timings: Timings = field(default_factory=Timings)
    """Where the tasks' time went."""

    @property
    def flagged(self) -> int:
        """Scored and not safe."""
        return self.ok - self.safe

    @property
    def quarantined(self) -> int:
        """Without a score."""
        return self.images - self.ok

    def __add__(self, other: Counts) -> Counts:
        timings = self.timings + other.timings
        return Counts(self.images + other.images, self.ok + other.ok, self.safe + other.safe, timings)


def counting_columns(policy: Policy) -> list[Column]:
    """Return what to observe of image_scores' rows, for `follow` to read."""
    return [
        *row_counts(policy),
        *(F.sum(F.col(TIMINGS.name)[i]).alias(timing.name) for i, timing in enumerate(fields(Timings))),
    ]


def row_counts(policy: Policy) -> list[Column]:
    """Return the first three fields of `Counts`, as aggregates of image_scores' rows."""
    return [
        F.count(F.lit(1)).alias("images"),
        F.count(F.when(F.col("status") == "ok", 1)).alias("ok"),
        F.count(F.when(policy.is_safe(), 1)).alias("safe"),
    ]


def follow(query: StreamingQuery) -> Counts:
    """Wait for the query's end; return what it wrote.

    On a terminal a line shows progress; elsewhere each micro-batch leaves one on standard error.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed; the query is stopped.
        NsfwSparkError: A task raised it on an executor.
        StreamingQueryException: Anything else went wrong there.
    """
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    total, seen = Counts(), -1
    with (
        Progress(*columns, console=console, disable=not console.is_terminal) as bar,
        _interrupt_noted() as interrupted,
    ):
        line = bar.add_task("scoring", total=None)
        while not interrupted.is_set():
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
    raise KeyboardInterrupt


def _wait(query: StreamingQuery) -> bool:
    """Wait a little; return whether the query is over."""
    try:
        return bool(query.awaitTermination(_POLL_SECONDS))  # type: ignore[arg-type]
    except StreamingQueryException as error:
        raise from_executor(error) from error


@contextmanager
def _interrupt_noted() -> Iterator[threading.Event]:
    """Make Ctrl-C set an event, so that it is acted upon between two calls to Java and not within one."""
    interrupted = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only that one gets signals
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
    return Counts(observed.images, observed.ok, observed.safe, timings)


def _sentence(verb: str, counts: Counts, seconds: float | None) -> str:
    rate = "" if not seconds else f", {counts.images / seconds:,.0f} images/s"
    without = f", {counts.quarantined:,} of them without a score" if counts.quarantined else ""
    return f"{verb} {counts.images:,} images{without}{rate}{_limits(counts.timings)}"


def _limits(timings: Timings) -> str:
    """Say where the tasks' time went, so that one sees whether decoding or the model is the limit."""
    busy = timings.decode_seconds + timings.wait_seconds
    if not busy or not timings.batch_slots:
        return ""
    return (
        f"; tasks: {timings.decode_seconds / busy:.0%} decoding, {timings.wait_seconds / busy:.0%} waiting "
        f"for the model; batches {timings.batch_fill:.0%} full"
    )


def from_executor(error: PySparkException) -> Exception:
    """Return the project's own error that a task raised, or the error itself."""
    # Of a task that was writing rows, the message does not say what it raised; the chain of causes does.
    said = f"{error}\n{getattr(error, '_stackTrace', '')}"
    raised = re.search(r"nsfw_spark\.errors\.(\w+Error): (.*)", said)
    if raised is None:
        return error
    return getattr(errors, raised[1], errors.NsfwSparkError)(raised[2])
