"""Forms batches across tasks and has the model compute them, one after the other.

In: parts of at most `batch_size` images from any number of connections. Out: the predictions of each part.
One thread loads the model and runs it; on a GPU it begins a batch before it waits for the one before.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from nsfw_spark.errors import NsfwSparkError
from nsfw_spark.heads import Predictions
from nsfw_spark.model import Model

_LINGER_SECONDS: Final = 0.005  # that a short batch waits for more; decoding an image takes a task 1 to 5 ms

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Part:
    """Pixels of one task, and who waits for them."""

    pixels: npt.NDArray[np.uint8]
    done: Future[Predictions] = field(default_factory=Future)


@dataclass(frozen=True)
class _Running:
    """A batch that the model has begun."""

    parts: list[_Part]
    finish: Callable[[], Predictions]
    started: float


class Batcher:
    """The queue in front of the model, and the thread behind it.

    Attributes:
        loaded: The model, or why it could not be loaded.
        num_connections: How many may send a part; when all of them wait, none is waited for.
    """

    def __init__(self, load: Callable[[], Model]) -> None:
        self._load = load
        self.loaded: Future[Model] = Future()
        self.num_connections = 0
        self._waiting: deque[_Part] = deque()
        self._changed = threading.Condition()
        self._num_running = 0  # parts
        self._ended: float | None = None
        self._begun: float | None = None

    def submit(self, pixels: npt.NDArray[np.uint8]) -> Future[Predictions]:
        """Queue pixels, uint8, shape (N, S, S, 3); they must not change until their predictions are there."""
        part = _Part(pixels)
        with self._changed:
            self._waiting.append(part)
            self._changed.notify_all()
        return part.done

    def count_connection(self, change: int) -> None:
        """Note that a task connected (1) or left (-1)."""
        with self._changed:
            self.num_connections += change
            self._changed.notify_all()

    def busy_seconds(self) -> float:
        """Return for how long the model has been at the same batch; 0 if it is idle."""
        begun = self._begun
        return 0.0 if begun is None else time.monotonic() - begun

    def run(self) -> None:
        """Load the model, then compute what is queued, for ever.

        Raises:
            Exception: What the model raised and was not made for; nothing can be trusted after it.
        """
        try:
            model = self._load()
        except Exception as error:  # noqa: BLE001 - whatever it was, the tasks hear of it
            if not isinstance(error, NsfwSparkError):
                _log.exception("the model could not be loaded")
            self.loaded.set_exception(error)
            return
        self.loaded.set_result(model)
        running: _Running | None = None
        while True:
            parts = self._next_batch(model.batch_size, may_wait=running is None)
            begun = self._start(model, parts) if parts else None
            if running is not None:
                self._finish(running)
            running = begun

    def _next_batch(self, batch_size: int, *, may_wait: bool) -> list[_Part]:
        """Take parts for one batch; none if there are none and there is no time to wait."""
        with self._changed:
            while may_wait and not self._waiting:
                self._changed.wait()
            deadline = time.monotonic() + _LINGER_SECONDS
            while self._waiting and self._num_waiting() < batch_size and not self._all_are_here():
                if (seconds := deadline - time.monotonic()) <= 0:
                    break
                self._changed.wait(seconds)
            parts: list[_Part] = []
            num_images = 0
            while self._waiting and (not parts or num_images + len(self._waiting[0].pixels) <= batch_size):
                part = self._waiting.popleft()
                if part.done.set_running_or_notify_cancel():
                    parts.append(part)
                    num_images += len(part.pixels)
            return parts

    def _num_waiting(self) -> int:
        return sum(len(part.pixels) for part in self._waiting)

    def _all_are_here(self) -> bool:
        """Whether nobody is left who could send more: a connection has one part on its way at a time."""
        return len(self._waiting) + self._num_running >= self.num_connections

    def _start(self, model: Model, parts: list[_Part]) -> _Running | None:
        started = time.monotonic()
        self._begun = self._begun or started
        self._num_running += len(parts)
        try:
            return _Running(parts, model.start([part.pixels for part in parts]), started)
        except NsfwSparkError as error:  # not even one image fits, or not this one
            self._settle(parts)
            if len(parts) == 1:
                parts[0].done.set_exception(error)
            else:
                self._run_apart(model, parts)
            return None

    def _run_apart(self, model: Model, parts: list[_Part]) -> None:
        """Compute parts one by one: what is wrong with one of them is not the others' error."""
        for part in parts:
            if (running := self._start(model, [part])) is not None:
                self._finish(running)

    def _finish(self, running: _Running) -> None:
        predictions = running.finish()
        ended = time.monotonic()
        # Batches overlap on a GPU: the time of one begins where the one before ended.
        seconds = ended - max(running.started, self._ended or 0.0)
        self._ended = ended
        self._settle(running.parts)
        predictions, at = replace(predictions, encode_seconds=seconds), 0
        for part in running.parts:
            part.done.set_result(predictions.rows(at, at + len(part.pixels)))
            at += len(part.pixels)

    def _settle(self, parts: list[_Part]) -> None:
        with self._changed:
            self._num_running -= len(parts)
            self._begun = time.monotonic() if self._num_running else None
