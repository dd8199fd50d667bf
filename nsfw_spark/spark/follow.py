"""Follows a streaming query to its end: keeps the display up to date, counts, and minds Ctrl-C.

The counts come from `DataFrame.observe`: Spark counts the rows while it writes them, without an extra pass.
The total comes from the stream's own listing, without a second one.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from time import monotonic
from typing import Final

from py4j.protocol import Py4JError
from pyspark.errors import StreamingQueryException
from pyspark.sql import SparkSession
from pyspark.sql.streaming.query import StreamingQuery

from nsfw_spark.errors import RunInterruptedError
from nsfw_spark.spark.display import Display, State
from nsfw_spark.spark.fence import Fence
from nsfw_spark.spark.progress import Counts, from_executor, observed_counts
from nsfw_spark.spark.session import num_slots

TELL_SECONDS: Final = 60.0
"""Seconds after which a line tells of a micro-batch that still runs."""

_POLL_SECONDS: Final = 0.5


def follow(
    query: StreamingQuery,
    fence: Fence,
    spark: SparkSession,
    *,
    unit: str | None = "images",
    first_batch: int = 0,
    tell_seconds: float = TELL_SECONDS,
) -> Counts:
    """Wait for the query's end; return the counts of the rows that it wrote.

    On a terminal a bar shows progress. Elsewhere standard error gets a line for each micro-batch, and one a
    minute for a long one. Ctrl-C ends the query after its micro-batch; Ctrl-C twice ends it at once.

    Args:
        query: The query, just started.
        fence: Closed if this run has lost the output's lock.
        spark: The query's session.
        unit: Name of what the stream lists, `images` or `files`; None if it lists rows of a table.
        first_batch: Number of the query's first micro-batch; 0 for a stream that has seen nothing.
        tell_seconds: See `TELL_SECONDS`.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed twice; the query is stopped.
        NsfwSparkError: A task raised it on an executor.
        RunInterruptedError: Ctrl-C was pressed once; a micro-batch has ended, and the query is stopped.
        StreamingQueryException: The query failed otherwise.
        TableError: Another run may have taken over the output; the query is stopped.
    """
    state = State(unit or "images", batch=first_batch)
    totals = _Totals(query if unit else None, is_first=first_batch == 0)
    awaited, slots = None, num_slots(spark)
    with Display(state, tell_seconds) as display, _interrupts_noted() as interrupts:
        while interrupts.number <= 1 and not fence.is_closed:
            is_over = _wait(query)
            _take_ended(query, state, totals, display)
            if interrupts.number and awaited is None:
                awaited = state.batch + 1 if query.status["isDataAvailable"] else state.batch
                display.say("nsfw-spark: ending after this micro-batch; Ctrl-C again ends now")
            if awaited is not None and (is_over or state.batch >= awaited):
                break
            totals.update(state)
            if slots is not None and display.wants_tasks:
                # The largest stage scores. Another one of its size has fewer tasks that have ended.
                found = [*_tasks(query, spark, slots), state.tasks]
                state.tasks = max(found, key=lambda tasks: tasks or (0, 0))
            display.refresh()
            if is_over:
                return state.counts
    query.stop()
    fence.check()
    if interrupts.number > 1:
        raise KeyboardInterrupt
    raise RunInterruptedError(
        f"interrupted after {state.counts.images:,} images; run the same command again to resume"
    )


def _take_ended(query: StreamingQuery, state: State, totals: _Totals, display: Display) -> None:
    """Count and show the micro-batches that have ended since the last call."""
    for progress in query.recentProgress:
        if progress.batchId < state.batch or not progress.numInputRows:
            continue
        counts = observed_counts(progress)
        state.counts += counts
        state.done += progress.numInputRows
        state.batch, state.tasks, state.batch_started = progress.batchId + 1, None, monotonic()
        totals.update(state)
        display.batch_ended(progress.batchId, counts, progress.batchDuration / 1000)


def _wait(query: StreamingQuery) -> bool:
    """Wait for `_POLL_SECONDS`; return whether the query has ended."""
    try:
        return bool(query.awaitTermination(_POLL_SECONDS))  # type: ignore[arg-type]
    except StreamingQueryException as error:
        raise from_executor(error) from error


class _Interrupts:
    """How often Ctrl-C was pressed."""

    number = 0

    def note(self, *_: object) -> None:
        self.number += 1


@contextmanager
def _interrupts_noted() -> Iterator[_Interrupts]:
    """Let Ctrl-C be counted: the caller then stops between two calls to Java, not within one."""
    interrupts = _Interrupts()
    if threading.current_thread() is not threading.main_thread():  # only the main thread gets signals
        yield interrupts
        return
    before = signal.signal(signal.SIGINT, interrupts.note)
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, before)


class _Totals:
    """The number of files that a stream will give to micro-batches, from the listing at its start."""

    def __init__(self, query: StreamingQuery | None, *, is_first: bool) -> None:
        self._query, self._is_first = query, is_first
        self._total: int | None = None
        self._left: int | None = None  # at the first look, for a stream that has seen files before

    def update(self, state: State) -> None:
        """Set the total and the size of the micro-batch that runs, as far as Spark tells."""
        listed = None if self._query is None else _listed(self._query)
        if listed is None:
            return
        num_files, num_seen = listed
        left = max(num_files - num_seen, 0)
        if self._total is None and self._is_first:
            self._total = num_files
        elif self._total is None and state.done:
            # Files that were seen may be gone, so that only the first micro-batch tells how many are new.
            self._total = state.done + (left if self._left is None else self._left)
        elif self._left is None:
            self._left = left
        if self._total is not None:
            state.total = max(self._total, state.done)
            state.begun = max(self._total - left - state.done, 0)


def _listed(query: StreamingQuery) -> tuple[int, int] | None:
    """Return how many files a stream listed when it started, and how many it has seen; None if unknown.

    Source:
        `FileStreamSource` of Spark 4.2, whose fields no interface shows. Spark Connect hides them, and other
        versions may lack them: then there is no total.
    """
    if not hasattr(query, "_jsq"):
        return None
    with suppress(Py4JError, AttributeError, TypeError):
        source = query._jsq.streamingQuery().sources().head()  # noqa: SLF001
        field = source.getClass().getDeclaredField("allFilesForTriggerAvailableNow")
        field.setAccessible(True)
        return int(field.get(source).size()), int(source.seenFiles().size())
    return None


def _tasks(query: StreamingQuery, spark: SparkSession, num_slots: int) -> list[tuple[int, int]]:
    """Return the number of tasks of each stage that may score, and how many of them have ended.

    Delta's own stages have no more tasks than there are slots; listed images are spread over three a slot.
    """
    tracker = spark.sparkContext.statusTracker()
    jobs = set(tracker.getJobIdsForGroup(str(query.runId))) & set(tracker.getActiveJobsIds())
    stages = {stage for job in map(tracker.getJobInfo, jobs) if job for stage in job.stageIds}
    known = [stage for stage in map(tracker.getStageInfo, stages) if stage is not None]
    return [(each.numTasks, each.numCompletedTasks) for each in known if each.numTasks > num_slots]
