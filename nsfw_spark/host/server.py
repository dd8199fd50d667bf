"""The model host's process: accepts tasks, gives their pixels to the batcher, and decides when to end.

It ends, and removes its directory, when its owner ends, when no task came for a while, when it receives
SIGTERM, or when a model cannot be loaded, or not in time. After an unexpected error it ends at once.
"""

from __future__ import annotations

import contextlib
import hmac
import logging
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError, wait
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NoReturn, TypeVar

import numpy as np
import numpy.typing as npt

from nsfw_spark import wire
from nsfw_spark.errors import DeviceError, NsfwSparkError
from nsfw_spark.host.batcher import Batcher
from nsfw_spark.host.directory import HostDirectory, HostSpec, remove_abandoned_directories
from nsfw_spark.host.protocol import MAX_IMAGES, VERSION, scores_message
from nsfw_spark.host.start import LISTENING
from nsfw_spark.model import Model, ModelSpec, load_model
from nsfw_spark.redact import redact
from nsfw_spark.weights import obtain_missing
from nsfw_spark.wire import MessageError

T = TypeVar("T")
_HELLO_SECONDS: Final = 5.0
_WATCH_SECONDS: Final = 0.5
_LAST_ANSWER_SECONDS: Final = 2.0  # within which tasks receive the reason why a model cannot be loaded
_BACKLOG: Final = 256  # tasks that connect at once

_log = logging.getLogger(__name__)


class HostProcess:
    """This process: one batcher and its thread for each model, one thread for each connection."""

    def __init__(self, directory: HostDirectory, spec: HostSpec) -> None:
        self._directory, self._spec = directory, spec
        self._batchers = [Batcher(partial(self._load, model)) for model in spec.models]
        self._listener = socket.socket(socket.AF_UNIX)
        self._key = secrets.token_hex(32)
        self._connections: set[threading.Thread] = set()
        self._loading = threading.Lock()
        self._last_task = time.monotonic()
        self._wake = threading.Event()
        self._load_since: tuple[float, ModelSpec] | None = None
        self._has_failed = self._has_sigterm = False

    def run(self, lock: int) -> NoReturn:
        """Listen, serve, and end this process, which holds the directory's lock until it listens."""
        self._listener.bind(str(self._directory.socket))
        self._listener.listen(_BACKLOG)
        self._directory.write_host(self._key, self._spec.owner)
        signal.signal(signal.SIGTERM, self._on_sigterm)
        for batcher in self._batchers:  # returns only if the model cannot be loaded
            _in_background(partial(self._guard, batcher.run, "the model broke"), "compute")
        _in_background(partial(self._guard, self._accept, "no task can be accepted"), "accept")
        _in_background(remove_abandoned_directories, "remove abandoned directories")
        os.close(lock)
        with contextlib.suppress(BrokenPipeError):  # the task that started this host is dead: others come
            os.write(1, LISTENING)
        os.dup2(2, 1)  # nobody reads the pipe any more: prints of libraries go to the log
        self._watch()
        # Not sys.exit: threads may hang in a driver, and there is nothing to save.
        os._exit(1 if self._has_failed else 0)

    def _load(self, model: ModelSpec) -> Model:
        with self._loading:  # two at once would disturb each other's timing, if batch_size is auto
            if model.model_dir is None:  # a download may take long, and has its own time limits
                obtain_missing(model.card)
            started = time.monotonic()
            self._load_since = (started, model)
            loaded = load_model(model)
            self._load_since = None
            _log.info(
                "loaded %s on %s (requested: %s) in %.1f s; batches of %d images (batch_size: %s)",
                model.card.name,
                loaded.device,
                model.device,
                time.monotonic() - started,
                loaded.batch_size,
                model.batch_size,
            )
        return loaded

    def _guard(self, work: Callable[[], None], problem: str) -> None:
        try:
            work()
        except BaseException:  # noqa: BLE001 - the process cannot be trusted after it, and ends
            _log.exception(problem)
            self._has_failed = True
        self._wake.set()

    def _on_sigterm(self, *_: object) -> None:
        self._has_sigterm = True
        self._wake.set()

    def _accept(self) -> None:
        while True:
            try:
                accepted, _ = self._listener.accept()
            except OSError as error:  # too many open files: the task waits until some are closed
                _log.warning("cannot accept a task now: %s", error)
                time.sleep(_WATCH_SECONDS)
                continue
            arguments = (accepted, self._key, self._spec, self._batchers)
            thread = threading.Thread(target=serve, args=arguments, name="connection", daemon=True)
            self._connections = {each for each in self._connections if each.is_alive()} | {thread}
            thread.start()

    def _watch(self) -> None:
        """Return when it is time to end, with the directory removed if nobody needs it."""
        while True:
            self._wake.wait(_WATCH_SECONDS)
            self._end_hung_load()
            if self._has_failed or not self._owns_directory():
                return None  # tasks read in the log why it failed; or the directory is another host's
            if load_errors := self._load_errors():
                self._remove_directory()  # first: tasks that connect from now on must start another host
                return self._report(load_errors)
            if self._has_sigterm or not self._spec.owner.is_alive():
                return self._remove_directory()
            if self._is_idle():
                with self._directory.locked():  # no task can greet this host meanwhile
                    if self._is_idle():
                        return self._directory.remove()

    def _is_idle(self) -> bool:
        if any(thread.is_alive() for thread in self._connections):
            self._last_task = time.monotonic()
        return time.monotonic() - self._last_task > self._spec.idle_seconds

    def _remove_directory(self) -> None:
        with contextlib.suppress(FileNotFoundError), self._directory.locked(create=False):
            if self._owns_directory():
                self._directory.remove()

    def _owns_directory(self) -> bool:
        try:
            host = self._directory.read_host()
        except OSError:  # nothing says that it is another's
            return True
        return host is not None and host["key"] == self._key

    def _end_hung_load(self) -> None:
        """Make a load that takes too long the error of its tasks, and so the end of this process."""
        if self._load_since is None:
            return
        started, model = self._load_since
        if time.monotonic() - started < self._spec.load_seconds:
            return
        where = "the cache of weights" if model.model_dir is None else f"--model-dir {model.model_dir}"
        error = DeviceError(
            f"{model.card.name} was not loaded on {model.device} within {self._spec.load_seconds:g} s: a "
            f"file system ({where}) or the device's driver hangs on this machine. Repair it, then run again"
        )
        for batcher in self._batchers:
            with contextlib.suppress(InvalidStateError):  # it is loaded
                batcher.loaded.set_exception(error)

    def _load_errors(self) -> list[BaseException]:
        loads = [batcher.loaded for batcher in self._batchers if batcher.loaded.done()]
        return [error for load in loads if (error := load.exception()) is not None]

    def _report(self, load_errors: Sequence[BaseException]) -> None:
        """Log the errors, and give the connections time to send them to their tasks."""
        for error in load_errors:
            _log.error("the model could not be loaded: %s", error)
        deadline = time.monotonic() + _LAST_ANSWER_SECONDS
        for thread in self._connections:
            thread.join(max(0.0, deadline - time.monotonic()))


def serve(connection: socket.socket, key: str, spec: HostSpec, batchers: Sequence[Batcher]) -> None:
    """Serve one task until it disconnects; there is one batcher for each of the spec's models."""
    with connection:
        try:
            if (hello := _greet(connection, key, len(batchers))) is not None:
                task, index = hello
                _Service(connection, spec.models[index], batchers[index], spec.timeout_seconds).run(task)
        except (OSError, MessageError) as error:  # the task died, or another program connected
            _log.debug("a connection ended: %s", error)


def _greet(connection: socket.socket, key: str, num_models: int) -> tuple[str, int] | None:
    """Return a task's name and the index of its model; None if its key or version is another.

    Only this user can read the key: it is in the host's directory.
    """
    connection.settimeout(_HELLO_SECONDS)
    message = wire.receive(connection)
    if message is None or message[0].get("kind") != "hello":
        return None
    hello = message[0]
    has_key = hmac.compare_digest(str(hello.get("key")).encode(errors="replace"), key.encode())
    if not has_key or hello.get("version") != VERSION:
        _log.warning("refused a connection: another key, or another version of nsfw-spark")
        return None
    index = hello.get("model")
    if type(index) is not int or not 0 <= index < num_models:
        raise MessageError(f"expected a model from 0 to {num_models - 1}, got {index!r:.100}")
    connection.settimeout(None)
    wire.send(connection, {"kind": "welcome"})
    return str(hello.get("task")).encode("ascii", "backslashreplace").decode()[:100], index


@dataclass(frozen=True)
class _Service:
    """One model, for one task."""

    connection: socket.socket
    model: ModelSpec
    batcher: Batcher
    timeout_seconds: float

    def run(self, task: str) -> None:
        """Describe the model, then receive pixels and send scores until the task disconnects."""
        try:
            model = self._wait(self.batcher.loaded)
        except Exception as error:  # noqa: BLE001 - the task must receive any error
            return self._send_error(error)
        batch_size = min(model.batch_size, MAX_IMAGES)
        self_check = model.self_check and model.self_check.as_json()
        ready = {"fingerprint": model.fingerprint, "device": model.device, "batch_size": batch_size}
        wire.send(self.connection, {"kind": "ready", **ready, "self_check": self_check})
        size, num_images = self.model.card.preprocessing.size, 0
        buffer = model.buffer((batch_size, size, size, 3))
        self.batcher.count_connection(1)
        try:
            while (message := wire.receive_head(self.connection)) is not None:
                num_received = self._num_images(*message)
                if num_received > len(buffer):  # the batch size has shrunk since other tasks learned it
                    buffer = model.buffer((num_received, size, size, 3))
                self._answer(buffer[:num_received])
                num_images += num_received
        finally:
            self.batcher.count_connection(-1)
            _log.debug("%s: %d images on %s", task, num_images, self.model.device)

    def _num_images(self, head: dict[str, Any], length: int) -> int:
        """Return how many images a message announces."""
        bytes_per_image = 3 * self.model.card.preprocessing.size**2
        num_images, rest = divmod(length, bytes_per_image)
        kind = head.get("kind")
        if kind != "pixels" or rest or not 1 <= num_images <= MAX_IMAGES:
            raise MessageError(
                f"expected 1 to {MAX_IMAGES} images of {bytes_per_image} bytes, got {kind!r:.100} of {length}"
            )
        return num_images

    def _answer(self, pixels: npt.NDArray[np.uint8]) -> None:
        """Receive the pixels of one request, and send their scores."""
        wire.receive_into(self.connection, pixels.data.cast("B"))
        submitted = self.batcher.submit(pixels)
        try:
            predictions = self._wait(submitted)
        except NsfwSparkError as error:
            self._send_error(error)
        except OSError:
            submitted.cancel()  # the task is gone
            raise
        else:
            wire.send(self.connection, *scores_message(predictions))

    def _send_error(self, error: Exception) -> None:
        wire.send(self.connection, {"kind": "error", **wire.error_head(error, "the model host")})

    def _wait(self, future: Future[T]) -> T:
        """Wait for a result, and meanwhile send signs of life, unless the model hangs."""
        beat_seconds = min(1.0, self.timeout_seconds / 4)
        while not wait([future], timeout=beat_seconds).done:
            if self.batcher.busy_seconds() < self.timeout_seconds:
                wire.send(self.connection, {"kind": "beat"})
        return future.result()


def _in_background(work: Callable[[], None], name: str) -> None:
    threading.Thread(target=work, name=name, daemon=True).start()


def log_to(executor_log: int) -> None:
    """Log to standard error, which is the host's log, and to the executor's log, an open file (-1: none)."""
    level = os.environ.get("NSFW_SPARK_LOG", "INFO").upper()
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if executor_log >= 0:
        handlers.append(logging.StreamHandler(os.fdopen(executor_log, "w", buffering=1)))
    for handler in handlers:
        handler.setFormatter(_Redacted(f"model host {os.getpid()}: %(message)s"))
    logging.basicConfig(handlers=handlers)
    logging.getLogger("nsfw_spark").setLevel(level)


class _Redacted(logging.Formatter):
    """Removes the credentials of URIs, which an error of a library may contain."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))
