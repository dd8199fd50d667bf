"""The model host's side of one connection: greet, wait for the model, then pixels in and scores out."""

from __future__ import annotations

import hmac
import logging
import socket
from collections.abc import Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt

from nsfw_spark.errors import NsfwSparkError
from nsfw_spark.host import frames
from nsfw_spark.host.batcher import Batcher
from nsfw_spark.host.frames import FrameError, Kind
from nsfw_spark.host.spec import HostSpec
from nsfw_spark.model import ModelSpec

T = TypeVar("T")
MAX_PART: Final = 64
"""Images that a task sends at once. Two of them from each of four tasks make two batches of 256 on a GPU;
more would be memory that waits, less is overhead."""
_HELLO_SECONDS: Final = 5.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Connection:
    """A connection of a task to this host."""

    socket: socket.socket
    key: str
    """That the task must know."""
    pid: int
    """Of this host."""
    spec: HostSpec
    batchers: Sequence[Batcher]
    """One for each of the spec's models."""

    def serve(self) -> None:
        """Answer until the task hangs up."""
        try:
            hello = self._greet()
            if hello is not None:
                place = _place(hello, len(self.batchers))
                model, batcher = self.spec.models[place], self.batchers[place]
                _Service(self.socket, model, batcher, self.spec.timeout_seconds).serve(_task(hello))
        except (OSError, FrameError) as error:  # the task died, or is none of ours
            _log.debug("a connection ended: %s", error)
        finally:
            self.socket.close()

    def _greet(self) -> dict[str, Any] | None:
        """Return what a task says of itself; None for somebody who does not know the key."""
        self.socket.settimeout(_HELLO_SECONDS)
        header = frames.receive_header(self.socket)
        if header is None or header[0] != Kind.HELLO:
            return None
        hello = frames.read_json(frames.receive_payload(self.socket, header[1], frames.MAX_JSON))
        said = str(hello.get("key")).encode(errors="replace")
        has_key = hmac.compare_digest(said, self.key.encode())
        if not has_key or hello.get("version") != frames.VERSION:
            _log.warning("a connection was refused: another key, or another version of nsfw-spark")
            return None
        self.socket.settimeout(None)
        frames.send_json(self.socket, Kind.WELCOME, pid=self.pid)
        return hello


def _task(hello: dict[str, Any]) -> str:
    """Return who connected, for the log."""
    return str(hello.get("task")).encode("ascii", "backslashreplace").decode()[:100]


def _place(hello: dict[str, Any], num_models: int) -> int:
    """Return which model a task wants."""
    place = hello.get("model")
    if type(place) is not int or not 0 <= place < num_models:
        raise FrameError(f"expected a model from 0 to {num_models - 1}, got {place!r}")
    return place


@dataclass(frozen=True)
class _Service:
    """One model, for one task."""

    socket: socket.socket
    model: ModelSpec
    batcher: Batcher
    timeout_seconds: float

    def serve(self, task: str) -> None:
        """Say what the model is, then pixels in and scores out until the task hangs up."""
        try:
            model = self._wait(self.batcher.loaded)
        except Exception as error:  # noqa: BLE001 - whatever it was, the task must hear of it
            frames.send_error(self.socket, error)
            return
        part_size = min(model.batch_size, MAX_PART)
        frames.send_json(
            self.socket,
            Kind.READY,
            fingerprint=model.fingerprint,
            device=model.device,
            batch_size=part_size,
            self_check=model.self_check and model.self_check.as_json(),
        )
        size = self.model.card.preprocessing.size
        buffer = model.buffer((part_size, size, size, 3))
        num_images = 0
        self.batcher.count_connection(1)
        try:
            while (header := frames.receive_header(self.socket)) is not None:
                num_received = self._num_images(*header)
                if num_received > len(buffer):  # the task asked before a batch did not fit and was halved
                    buffer = model.buffer((num_received, size, size, 3))
                self._answer(buffer[:num_received])
                num_images += num_received
        finally:
            self.batcher.count_connection(-1)
            _log.debug("%s: %d images on %s", task, num_images, self.model.device)

    def _num_images(self, kind: Kind, length: int) -> int:
        """Return how many images a frame announces."""
        bytes_per_image = 3 * self.model.card.preprocessing.size**2
        num_images, rest = divmod(length, bytes_per_image)
        if kind != Kind.PIXELS or rest or not 1 <= num_images <= MAX_PART:
            raise FrameError(
                f"expected 1 to {MAX_PART} images of {bytes_per_image} bytes, got {kind.name} of {length}"
            )
        return num_images

    def _answer(self, pixels: npt.NDArray[np.uint8]) -> None:
        """Receive one part, and send its scores."""
        frames.receive_into(self.socket, pixels.data.cast("B"))
        submitted = self.batcher.submit(pixels)
        try:
            predictions = self._wait(submitted)
        except NsfwSparkError as error:
            frames.send_error(self.socket, error)
        except OSError:
            submitted.cancel()  # nobody waits for it any more
            raise
        else:
            frames.send_scores(self.socket, predictions)

    def _wait(self, future: Future[T]) -> T:
        """Wait, and meanwhile show that this host is alive, unless the model is stuck."""
        beat_seconds = min(1.0, self.timeout_seconds / 4)
        while not wait([future], timeout=beat_seconds).done:
            if self.batcher.busy_seconds() < self.timeout_seconds:
                frames.send(self.socket, Kind.BEAT)
        return future.result()
