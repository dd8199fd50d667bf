"""A task's `Predictor`: sends pixels to the model host of its executor and receives predictions.

Survives the host's death once in its life: starts another, or finds the one that another task has started,
and sends again what was on its way. Imports no model library.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from nsfw_spark.errors import DeviceError, WeightsError
from nsfw_spark.heads import Predictions
from nsfw_spark.host import wire
from nsfw_spark.host.directory import Home, HostSpec
from nsfw_spark.host.start import HostUnavailableError, connect, kill
from nsfw_spark.host.wire import FrameError, Kind
from nsfw_spark.self_check import SelfCheck

IN_FLIGHT: Final = 2
"""Batches of a task on their way: one computes while the next waits. More is only memory."""
_MAX_SCORES: Final = 1 << 26  # bytes of one reply; 64 images of 1,024 dimensions are 2**18


class _HostDiedError(Exception):
    """The connection to the host broke, or the host was stuck and was killed."""


@dataclass
class _Channel:
    """One connection to the host: one batch at a time."""

    connection: socket.socket
    spec: HostSpec
    home: Home
    pid: int
    """Of the host."""
    ready: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, spec: HostSpec, home: Home, task: str, place: int) -> Self:
        """Connect, and wait until the model is loaded."""
        connection, pid = connect(spec, home, task, place)
        channel = cls(connection, spec, home, pid)
        try:
            channel.ready = wire.read_json(channel.receive(Kind.READY, wire.MAX_JSON))
        except BaseException:
            channel.connection.close()
            raise
        return channel

    def receive(self, kind: Kind, limit: int) -> bytes:
        """Wait for a frame, however long the host shows that it is alive.

        Raises:
            NsfwSparkError: The host sent it as an error.
        """
        try:
            while (header := wire.receive_header(self.connection)) is not None:
                payload = wire.receive_payload(self.connection, header[1], limit)
                if header[0] == Kind.ERROR:
                    raise wire.read_error(payload)
                if header[0] == kind:
                    return payload
                if header[0] != Kind.BEAT:
                    raise _HostDiedError(f"expected {kind.name}, got {header[0].name}")
        except TimeoutError:
            kill(self.home, self.pid)
            seconds = self.spec.timeout_seconds
            raise _HostDiedError(f"it gave no sign of life for {seconds:g} s and was killed") from None
        except (OSError, FrameError) as error:
            raise _HostDiedError(str(error)) from error
        raise _HostDiedError("it hung up")

    def send(self, pixels: npt.NDArray[np.uint8]) -> None:
        """Send one batch."""
        try:
            wire.send(self.connection, Kind.PIXELS, [np.ascontiguousarray(pixels)])
        except TimeoutError:
            kill(self.home, self.pid)
            raise _HostDiedError("it took no pixels and was killed") from None
        except OSError as error:
            raise _HostDiedError(str(error)) from error


@dataclass
class _Batch:
    pixels: npt.NDArray[np.uint8]
    channel: _Channel | None = None
    """On which it was sent."""

    def withdraw(self) -> None:
        """Hang up on the channel that would bring its predictions."""
        if self.channel is not None:
            self.channel.connection.close()
            self.channel = None


class HostedModel:
    """The model of a host, for one task: a context manager, whose end hangs up.

    Attributes:
        fingerprint: Hash of the model's weights, preprocessing and precision.
        device: `cpu` or `cuda:N`.
        batch_size: Images that it wants at once; the host puts those of several tasks together.
        self_check: What the model made of the built-in test image.
    """

    def __init__(self, spec: HostSpec, task: str = "a task", place: int = 0) -> None:
        """Connect to the spec's host, start it if need be, and wait until its model is loaded.

        Args:
            spec: What the host holds.
            task: Who connects, for the host's log.
            place: Which of the spec's models this is.

        Raises:
            HostUnavailableError: No host can be started here.
            WeightsError, ConfigError, DeviceError: The host could not load the model.
        """
        try:
            self._home = Home.of(spec.identity)
        except OSError as error:
            raise HostUnavailableError(str(error)) from error
        self._spec, self._task, self._place = spec, task, place
        self._has_seen_death = False
        first = self._first_channel()
        self._channels = [first]
        self._free = [first]  # those on which nothing is on its way
        self.fingerprint, self.device = str(first.ready["fingerprint"]), str(first.ready["device"])
        self.batch_size = int(first.ready["batch_size"])
        checked = first.ready["self_check"]
        self.self_check = None if checked is None else SelfCheck.from_json(checked)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Hang up."""
        for channel in self._channels:
            channel.connection.close()
        self._channels, self._free = [], []

    def predict_each(self, batches: Iterable[npt.NDArray[np.uint8]]) -> Iterator[Predictions]:
        """Predict batch after batch: see `Predictor.predict_each`.

        Raises:
            DeviceError: The host died for the second time in this task.
        """
        waiting: deque[_Batch] = deque()
        try:
            for pixels in batches:
                if len(waiting) == IN_FLIGHT:
                    yield self._predictions_of_first(waiting)
                waiting.append(_Batch(pixels))
                self._send(waiting)
            while waiting:
                yield self._predictions_of_first(waiting)
        finally:
            for batch in waiting:  # of a stream that was left, or broke
                batch.withdraw()

    def _predictions_of_first(self, waiting: deque[_Batch]) -> Predictions:
        """Wait for the predictions of the oldest batch, and take it off the queue."""
        started, first = time.perf_counter(), waiting[0]
        if not len(first.pixels):
            waiting.popleft()
            return Predictions(np.empty(0, np.float32))
        while first.channel is None or (predictions := self._receive(first, waiting)) is None:
            self._send(waiting)
        self._free.append(first.channel)
        waiting.popleft()
        return replace(predictions, wait_seconds=time.perf_counter() - started)

    def _receive(self, batch: _Batch, waiting: deque[_Batch]) -> Predictions | None:
        """Wait for the predictions of a batch; None where the host died instead."""
        assert batch.channel is not None  # noqa: S101 - the caller looked
        try:
            payload = batch.channel.receive(Kind.SCORES, _MAX_SCORES)
            return wire.read_scores(payload, len(batch.pixels))
        except (_HostDiedError, FrameError) as death:
            self._outlive(death, waiting)
            return None

    def _send(self, waiting: deque[_Batch]) -> None:
        """Send what is not on its way; what a dying host did not take stays, to be sent again."""
        try:
            for batch in waiting:
                if len(batch.pixels) and batch.channel is None:
                    batch.channel = self._free.pop() if self._free else self._open_channel()
                    batch.channel.send(batch.pixels)
        except _HostDiedError as death:
            self._outlive(death, waiting)

    def _open_channel(self) -> _Channel:
        """Connect once more: to the same host, or to the next one."""
        try:
            channel = _Channel.open(self._spec, self._home, self._task, self._place)
        except HostUnavailableError as error:  # there was one before
            raise self._second_death(error) from None
        if channel.ready["fingerprint"] != self.fingerprint:
            channel.connection.close()
            name = self._spec.models[self._place].card.name
            raise WeightsError(
                f"the model host was started again, and its {name} now has the "
                f"fingerprint {channel.ready['fingerprint']}, before: {self.fingerprint}. Do not change "
                "weights while a job runs"
            )
        self._channels.append(channel)
        return channel

    def _first_channel(self) -> _Channel:
        with contextlib.suppress(_HostDiedError):
            return _Channel.open(self._spec, self._home, self._task, self._place)
        self._has_seen_death = True
        try:
            return _Channel.open(self._spec, self._home, self._task, self._place)
        except _HostDiedError as death:
            raise self._second_death(death) from None

    def _outlive(self, death: Exception, waiting: deque[_Batch]) -> None:
        """Go on after the host's death, once."""
        self.close()
        for batch in waiting:
            batch.withdraw()
        if self._has_seen_death:
            raise self._second_death(death) from None
        self._has_seen_death = True

    def _second_death(self, death: Exception) -> DeviceError:
        last_words = self._home.last_words() or (
            "none: it was killed from outside. If the kernel did that for want of memory, raise "
            "spark.executor.memoryOverhead"
        )
        return DeviceError(
            f"the model host on {self._spec.model.device} died twice in this task ({death}). Its last words: "
            f"{last_words}"
        )
