"""Forms batches from the requests of all tasks, and runs the model on one batch after the other.

In: requests of at most `batch_size` images, from any number of connections. Out: the predictions of each
request. One thread loads and runs the model; on a GPU it starts a batch before it waits for the one before.
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

_LINGER_SECONDS: Final = 0.005  # a short batch waits so long for more; a task decodes an image in 1 to 5 ms

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Request:
    """Pixels of one task, and the future for which the task waits."""

    pixels: npt.NDArray[np.uint8]
    done: Future[Predictions] = field(default_factory=Future)


@dataclass(frozen=True)
class _Batch:
    """Requests on which the model has started."""

    requests: list[_Request]
    finish: Callable[[], Predictions]
    started: float


class Batcher:
    """The queue in front of a model, and the thread that serves it.

    Attributes:
        loaded: The model, or the error that prevented its loading.
    """

    def __init__(self, load: Callable[[], Model]) -> None:
        self._load = load
        self.loaded: Future[Model] = Future()
        self._num_connections = 0  # that may send a request
        self._queue: deque[_Request] = deque()
        self._changed = threading.Condition()
        self._num_running = 0  # requests
        self._last_end = 0.0
        self._busy_since: float | None = None

    def submit(self, pixels: npt.NDArray[np.uint8]) -> Future[Predictions]:
        """Queue pixels, uint8, shape (N, S, S, 3); they must not change before their predictions exist."""
        request = _Request(pixels)
        with self._changed:
            self._queue.append(request)
            self._changed.notify_all()
        return request.done

    def count_connection(self, change: int) -> None:
        """Count a task that connected (1) or left (-1)."""
        with self._changed:
            self._num_connections += change
            self._changed.notify_all()

    def busy_seconds(self) -> float:
        """Return how long the model has computed the current batch; 0 if it is idle."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    def run(self) -> None:
        """Load the model, then compute requests until it raises an unexpected error, which ends the process.

        It returns only if the model cannot be loaded.
        """
        try:
            model = self._load()
        except Exception as error:  # noqa: BLE001 - the tasks receive any error
            if not isinstance(error, NsfwSparkError):
                _log.exception("the model could not be loaded")
            self.loaded.set_exception(error)
            return
        self.loaded.set_result(model)
        running: _Batch | None = None
        while True:
            requests = self._next_requests(model.batch_size, may_wait=running is None)
            started = self._start(model, requests) if requests else None
            if running is not None:
                self._finish(running)
            running = started

    def _next_requests(self, batch_size: int, *, may_wait: bool) -> list[_Request]:
        """Take the requests of one batch; return none if the queue is empty and may not be waited for."""
        with self._changed:
            while may_wait and not self._queue:
                self._changed.wait()
            deadline = time.monotonic() + _LINGER_SECONDS
            while self._queue and self._may_grow(batch_size) and (now := time.monotonic()) < deadline:
                self._changed.wait(deadline - now)
            requests: list[_Request] = []
            num_images = 0
            while self._queue and (not requests or num_images + len(self._queue[0].pixels) <= batch_size):
                request = self._queue.popleft()
                if request.done.set_running_or_notify_cancel():
                    requests.append(request)
                    num_images += len(request.pixels)
            return requests

    def _may_grow(self, batch_size: int) -> bool:
        """Return whether the batch has room, and a connection without a request in flight may fill it."""
        has_room = sum(len(request.pixels) for request in self._queue) < batch_size
        return has_room and len(self._queue) + self._num_running < self._num_connections

    def _start(self, model: Model, requests: list[_Request]) -> _Batch | None:
        started = time.monotonic()
        self._busy_since = self._busy_since or started
        self._num_running += len(requests)
        try:
            return _Batch(requests, model.start([request.pixels for request in requests]), started)
        except NsfwSparkError as error:  # one of the requests does not fit into memory
            self._settle(requests)
            if len(requests) == 1:
                requests[0].done.set_exception(error)
                return None
            for request in requests:  # separately, so that only the faulty one gets its error
                if (batch := self._start(model, [request])) is not None:
                    self._finish(batch)
            return None

    def _finish(self, batch: _Batch) -> None:
        predictions = batch.finish()
        ended = time.monotonic()
        # Batches overlap on a GPU: the time of one starts when the one before ended.
        seconds = ended - max(batch.started, self._last_end)
        self._last_end = ended
        self._settle(batch.requests)
        predictions, first = replace(predictions, encode_seconds=seconds), 0
        for request in batch.requests:
            end = first + len(request.pixels)
            request.done.set_result(predictions.rows(first, end))
            first = end

    def _settle(self, requests: list[_Request]) -> None:
        with self._changed:
            self._num_running -= len(requests)
            self._busy_since = time.monotonic() if self._num_running else None
