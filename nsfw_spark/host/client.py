"""A task's `Predictor`: sends pixels to the model host of its executor, and receives predictions.

It survives one death of the host: it starts another, or connects to the one that another task has started,
and sends the batches in flight again. A task runs this module; it imports no model library.
"""

from __future__ import annotations

import socket
import time
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from nsfw_spark import wire
from nsfw_spark.errors import DeviceError, WeightsError
from nsfw_spark.heads import Predictions
from nsfw_spark.host.directory import HostDirectory, HostSpec
from nsfw_spark.host.protocol import read_scores
from nsfw_spark.host.start import HostUnavailableError, connect, kill
from nsfw_spark.self_check import SelfCheck
from nsfw_spark.wire import MessageError

_MAX_IN_FLIGHT: Final = 2  # batches of a task: one computes while the next waits. More is only memory
_MAX_SCORES: Final = 1 << 26  # bytes of one answer; 64 images of 1,024 dimensions take 2**18


class _HostDiedError(Exception):
    """The connection to the host broke, or the host hung and was killed."""


@dataclass(frozen=True)
class _Channel:
    """One connection to the host, for one batch at a time."""

    connection: socket.socket
    pid: int
    """The host's process id."""
    spec: HostSpec
    directory: HostDirectory

    def send(self, pixels: npt.NDArray[np.uint8]) -> None:
        """Send one batch."""
        try:
            wire.send(self.connection, {"kind": "pixels"}, [np.ascontiguousarray(pixels)])
        except TimeoutError:
            kill(self.directory, self.pid)
            raise _HostDiedError("it took no pixels and was killed") from None
        except OSError as error:
            raise _HostDiedError(str(error)) from error

    def receive(self, kind: str, max_body: int = 0) -> tuple[dict[str, Any], bytes]:
        """Wait for a message of this kind, as long as the host shows that it is alive; raise its errors."""
        try:
            while (message := wire.receive(self.connection, max_body)) is not None:
                received = message[0].get("kind")
                if received == kind:
                    return message
                if received == "error":
                    raise wire.read_error(message[0])
                if received != "beat":
                    raise _HostDiedError(f"expected {kind}, got {received!r:.100}")
        except TimeoutError:
            kill(self.directory, self.pid)
            seconds = self.spec.timeout_seconds
            raise _HostDiedError(f"it gave no sign of life for {seconds:g} s and was killed") from None
        except (OSError, MessageError) as error:
            raise _HostDiedError(str(error)) from error
        raise _HostDiedError("it closed the connection")


@dataclass
class _Batch:
    pixels: npt.NDArray[np.uint8]
    channel: _Channel | None = None
    """The channel on which it was sent; None if it is not in flight."""


class HostedModel:
    """One model of a host, for one task: a context manager, which disconnects at its end.

    Attributes:
        fingerprint: Hash of the model's weights, preprocessing and precision.
        device: `cpu` or `cuda:N`.
        batch_size: Images in one batch, at most; the host joins the batches of several tasks.
        self_check: The model's result for the built-in test image.
    """

    def __init__(self, spec: HostSpec, task: str = "a task", model_index: int = 0) -> None:
        """Connect to the spec's host, start it if there is none, and wait until the model is loaded.

        Args:
            spec: The host's models, owner and limits.
            task: A name for the host's log.
            model_index: Index of a model in the spec.

        Raises:
            HostUnavailableError: No host can be started here.
            WeightsError, ConfigError, DeviceError: The host could not load the model.
        """
        self._spec, self._task, self._model_index = spec, task, model_index
        self._model = spec.models[model_index]
        try:
            self._directory = HostDirectory.of(spec.identity)
        except OSError as error:
            raise HostUnavailableError(str(error)) from error
        self._has_seen_death = False
        self._channels: list[_Channel] = []
        self._free: list[_Channel] = []  # channels without a batch in flight
        ready = None
        while ready is None:
            try:
                first, ready = self._open_channel()
                self._free.append(first)
            except _HostDiedError as death:
                self._survive(death, ())
        self.fingerprint, self.device = str(ready["fingerprint"]), str(ready["device"])
        self.batch_size = int(ready["batch_size"])
        checked = ready["self_check"]
        self.self_check = None if checked is None else SelfCheck.from_json(checked)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Disconnect."""
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
                if len(waiting) == _MAX_IN_FLIGHT:
                    yield self._predictions_of_first(waiting)
                waiting.append(_Batch(pixels))
                self._send(waiting)
            while waiting:
                yield self._predictions_of_first(waiting)
        finally:
            for batch in waiting:  # the caller left the stream, or it broke: its predictions must not arrive
                if batch.channel is not None:
                    batch.channel.connection.close()

    def _predictions_of_first(self, waiting: deque[_Batch]) -> Predictions:
        """Wait for the predictions of the oldest batch, and remove it from the queue."""
        started, first = time.perf_counter(), waiting[0]
        if not len(first.pixels):
            waiting.popleft()
            return Predictions(np.empty(0, np.float32))
        predictions = None
        while predictions is None:
            self._send(waiting)
            predictions = self._receive(first, waiting)
        waiting.popleft()
        return replace(predictions, wait_seconds=time.perf_counter() - started)

    def _receive(self, batch: _Batch, waiting: Collection[_Batch]) -> Predictions | None:
        """Wait for the predictions of a batch; return None if it was not sent, or the host died."""
        if batch.channel is None:
            return None
        try:
            predictions = read_scores(*batch.channel.receive("scores", _MAX_SCORES), len(batch.pixels))
        except (_HostDiedError, MessageError) as death:
            self._survive(death, waiting)
            return None
        self._free.append(batch.channel)
        return predictions

    def _send(self, waiting: Collection[_Batch]) -> None:
        """Send the batches that are not in flight; if the host dies, some stay, to be sent again."""
        try:
            for batch in waiting:
                if len(batch.pixels) and batch.channel is None:
                    batch.channel = self._free.pop() if self._free else self._next_channel()
                    batch.channel.send(batch.pixels)
        except _HostDiedError as death:
            self._survive(death, waiting)

    def _next_channel(self) -> _Channel:
        """Open another channel, to the same host or to the one after it."""
        try:
            channel, ready = self._open_channel()
        except HostUnavailableError as error:  # there was a host before
            raise self._second_death(error) from None
        if ready["fingerprint"] != self.fingerprint:
            raise WeightsError(
                f"the model host was started again, and its {self._model.card.name} now has the fingerprint "
                f"{ready['fingerprint']}, before: {self.fingerprint}. Do not change weights while a job runs"
            )
        return channel

    def _open_channel(self) -> tuple[_Channel, Mapping[str, Any]]:
        """Connect, and wait until the model is loaded."""
        connection, pid = connect(self._spec, self._directory, self._task, self._model_index)
        channel = _Channel(connection, pid, self._spec, self._directory)
        try:
            ready, _ = channel.receive("ready")
        except BaseException:
            connection.close()
            raise
        self._channels.append(channel)
        return channel, ready

    def _survive(self, death: Exception, waiting: Iterable[_Batch]) -> None:
        """Prepare to send everything again after the host's death; raise after the second one."""
        self.close()
        for batch in waiting:
            batch.channel = None
        if self._has_seen_death:
            raise self._second_death(death) from None
        self._has_seen_death = True

    def _second_death(self, death: Exception) -> DeviceError:
        log_end = self._directory.log_end() or (
            "empty, so another process killed it. If the kernel did so because memory ran out, raise "
            "spark.executor.memoryOverhead"
        )
        return DeviceError(
            f"the model host on {self._model.device} died twice in this task ({death}). The end of its log: "
            f"{log_end}"
        )
