"""Shows how far a run's scoring is: a bar on a terminal, and lines elsewhere.

In: a `State`, which `follow` keeps up to date. Out: text on standard error. Asks Spark nothing.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from nsfw_spark.review.peek import duration
from nsfw_spark.scorer import Timings
from nsfw_spark.spark.progress import Counts

_BAR_WIDTH: Final = 20


@dataclass
class State:
    """What is known of a run's scoring."""

    unit: str = "images"
    """Name of what the source lists: `images`, or `files` with many images each."""
    counts: Counts = field(default_factory=Counts)
    """Of the micro-batches that have ended."""
    done: int = 0
    """Units in the micro-batches that have ended."""
    begun: int = 0
    """Units in the micro-batch that runs; 0 if unknown."""
    total: int | None = None
    """Units that this run will score; None if unknown."""
    batch: int = 0
    """Number of the micro-batch that runs."""
    tasks: tuple[int, int] | None = None
    """Tasks that score the micro-batch, and how many of them have ended; None if unknown."""
    started: float = field(default_factory=time.monotonic)
    batch_started: float = field(default_factory=time.monotonic)

    @property
    def position(self) -> float:
        """Units that are scored, with an estimate for the micro-batch that runs."""
        planned, ended = self.tasks or (0, 0)
        position = self.done + (self.begun * ended / planned if planned else 0)
        return position if self.total is None else min(position, self.total)

    @property
    def seconds_left(self) -> float | None:
        """Estimate of the time until the end; None if unknown, or if all is done."""
        if self.total is None or not 0 < self.position < self.total:
            return None
        return (time.monotonic() - self.started) / self.position * (self.total - self.position)


class Display:
    """A context that shows a `State`: one moving line on a terminal, else a line now and then."""

    def __init__(self, state: State, tell_seconds: float, console: Console | None = None) -> None:
        """Prepare the display.

        Args:
            state: What is shown.
            tell_seconds: Seconds after which a line tells of a micro-batch that runs; not for a terminal.
            console: Where; default: standard error.
        """
        self.console = console or Console(stderr=True)
        self._state, self._tell_seconds, self._told = state, tell_seconds, time.monotonic()
        columns = (
            SpinnerColumn(),
            BarColumn(bar_width=_BAR_WIDTH),
            TextColumn("{task.description}", markup=False),
        )
        self._bar = Progress(*columns, console=self.console, disable=not self.console.is_terminal)
        self._line = self._bar.add_task("scoring: listing what is new", total=None)

    def __enter__(self) -> Self:
        """Start to show."""
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the last line on the terminal."""
        self._bar.stop()

    @property
    def wants_tasks(self) -> bool:
        """Whether the next `refresh` shows the tasks of the micro-batch that runs."""
        return self.console.is_terminal or self._is_due

    def batch_ended(self, number: int, counts: Counts, seconds: float) -> None:
        """Show the counts of a micro-batch that took some seconds; the state includes it already."""
        if not self.console.is_terminal:
            self.say(batch_line(number, counts, seconds, self._state))

    def refresh(self) -> None:
        """Show the state, if it is time."""
        if self.console.is_terminal:
            state = self._state
            self._bar.update(
                self._line, description=bar_text(state), total=state.total, completed=state.position
            )
        elif self._is_due:
            self.say(inside_line(self._state))

    def say(self, words: str) -> None:
        """Write a line, above the bar if there is one."""
        if self.console.is_terminal:
            self._bar.console.print(words, markup=False, highlight=False, soft_wrap=True)
        else:
            sys.stderr.write(f"{words}\n")
            sys.stderr.flush()
        self._told = time.monotonic()

    @property
    def _is_due(self) -> bool:
        return time.monotonic() - self._told >= self._tell_seconds


def bar_text(state: State) -> str:
    """Return what a terminal shows beside the bar; the most important first, since a line may be cut."""
    counts = state.counts
    seconds = time.monotonic() - state.started
    parts = [_amount(state)]
    if counts.images:
        parts.append(f"{counts.images / seconds:,.1f} images/s" if seconds else "")
    if (left := state.seconds_left) is not None:
        parts.append(f"{duration(left)} left")
    if counts.quarantined:
        parts.append(f"{counts.quarantined:,} without a score")
    parts += [bound(counts.timings), _tasks(state)]
    return " · ".join(filter(None, parts))


def batch_line(number: int, counts: Counts, seconds: float, state: State) -> str:
    """Return the line of a micro-batch that has ended."""
    rate = f", {counts.images / seconds:,.0f} images/s" if seconds else ""
    without = f", {counts.quarantined:,} of them without a score" if counts.quarantined else ""
    line = f"micro-batch {number}: {counts.images:,} images{without}{rate}{_limits(counts.timings)}"
    left = state.seconds_left
    return f"{line}; {_amount(state)}{'' if left is None else f', {duration(left)} left'}"


def inside_line(state: State) -> str:
    """Return the line of a micro-batch that still runs."""
    seconds = time.monotonic() - state.batch_started
    tasks = f", {_tasks(state)}" if state.tasks else ""
    return f"still scoring micro-batch {state.batch}, {duration(seconds)}{tasks}; {_amount(state)}"


def bound(timings: Timings) -> str:
    """Return `decoding-bound` or `model-bound`: what the tasks spent most of their time on; else nothing."""
    busy = timings.decode_seconds + timings.wait_seconds
    if not busy or not timings.batch_slots:
        return ""
    return "decoding-bound" if timings.decode_seconds > timings.wait_seconds else "model-bound"


def _amount(state: State) -> str:
    done = f"{round(state.position):,}"
    if state.total is None:
        return f"scored {state.counts.images:,} images so far"
    return f"scored {done} of {state.total:,} {state.unit}"


def _tasks(state: State) -> str:
    return "" if state.tasks is None else f"{state.tasks[1]:,} of {state.tasks[0]:,} tasks"


def _limits(timings: Timings) -> str:
    """Return the tasks' shares of time, which show whether decoding or the model is the limit."""
    busy = timings.decode_seconds + timings.wait_seconds
    if not busy or not timings.batch_slots:
        return ""
    return (
        f"; tasks: {timings.decode_seconds / busy:.0%} decoding, {timings.wait_seconds / busy:.0%} waiting "
        f"for the model ({bound(timings)}); batches {timings.batch_fill:.0%} full"
    )
