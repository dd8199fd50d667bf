"""The model host's side of one connection: greet, wait for the model, then pixels in and scores out."""

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
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NoReturn, TypeVar

import numpy as np
import numpy.typing as npt
import psutil

from nsfw_spark.errors import NsfwSparkError
from nsfw_spark.host import wire
from nsfw_spark.host.batcher import Batcher
from nsfw_spark.host.directory import Home, HostSpec, Owner, homes, is_running
from nsfw_spark.host.start import LISTENING
from nsfw_spark.host.wire import FrameError, Kind
from nsfw_spark.model import Model, ModelSpec, load_model
from nsfw_spark.redact import redact

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
        header = wire.receive_header(self.socket)
        if header is None or header[0] != Kind.HELLO:
            return None
        hello = wire.read_json(wire.receive_payload(self.socket, header[1], wire.MAX_JSON))
        said = str(hello.get("key")).encode(errors="replace")
        has_key = hmac.compare_digest(said, self.key.encode())
        if not has_key or hello.get("version") != wire.VERSION:
            _log.warning("a connection was refused: another key, or another version of nsfw-spark")
            return None
        self.socket.settimeout(None)
        wire.send_json(self.socket, Kind.WELCOME, pid=self.pid)
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
            wire.send_error(self.socket, error)
            return
        part_size = min(model.batch_size, MAX_PART)
        wire.send_json(
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
            while (header := wire.receive_header(self.socket)) is not None:
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
        wire.receive_into(self.socket, pixels.data.cast("B"))
        submitted = self.batcher.submit(pixels)
        try:
            predictions = self._wait(submitted)
        except NsfwSparkError as error:
            wire.send_error(self.socket, error)
        except OSError:
            submitted.cancel()  # nobody waits for it any more
            raise
        else:
            wire.send_scores(self.socket, predictions)

    def _wait(self, future: Future[T]) -> T:
        """Wait, and meanwhile show that this host is alive, unless the model is stuck."""
        beat_seconds = min(1.0, self.timeout_seconds / 4)
        while not wait([future], timeout=beat_seconds).done:
            if self.batcher.busy_seconds() < self.timeout_seconds:
                wire.send(self.socket, Kind.BEAT)
        return future.result()


_WATCH_SECONDS: Final = 0.5
_FAREWELL_SECONDS: Final = 2.0  # in which tasks hear why the model could not be loaded
_BACKLOG: Final = 256  # tasks that connect at once


class HostProcess:
    """This process."""

    def __init__(self, home: Home, spec: HostSpec) -> None:
        self._home, self._spec = home, spec
        self._batchers: list[Batcher] = []
        for model in spec.models:
            self._batchers.append(Batcher(partial(self._load, model, after=self._batchers[-1:])))
        self._listener = socket.socket(socket.AF_UNIX)
        self._key = secrets.token_hex(32)
        self._connections: set[threading.Thread] = set()
        self._last_task = time.monotonic()
        self._wake = threading.Event()
        self._has_failed = self._is_told_to_end = False

    def run(self, lock: int) -> NoReturn:
        """Listen, say so, and serve until the end.

        Args:
            lock: The home's, which this process holds until it listens.
        """
        self._listener.bind(str(self._home.socket))
        self._listener.listen(_BACKLOG)
        pid = os.getpid()
        started = psutil.Process(pid).create_time()
        owner = self._spec.owner
        self._home.write_host(
            {"pid": pid, "started": started, "key": self._key, "owner": [owner.pid, owner.started]}
        )
        signal.signal(signal.SIGTERM, self._end)
        for batcher, model in zip(self._batchers, self._spec.models, strict=True):
            _in_background(partial(self._compute, batcher), f"compute {model.card.name}")
        _in_background(self._accept, "accept")
        _in_background(_clear_abandoned_homes, "clear abandoned homes")
        os.close(lock)
        with contextlib.suppress(BrokenPipeError):  # the task that started this is dead: others will come
            os.write(1, LISTENING)
        os.dup2(2, 1)  # what a library prints goes to the log; nobody reads the pipe any more
        self._watch()
        # Not sys.exit: threads may be stuck in a driver, and there is nothing to save.
        os._exit(1 if self._has_failed else 0)

    def _load(self, model: ModelSpec, *, after: Sequence[Batcher]) -> Model:
        for batcher in after:  # two at once would time each other's batches, where batch_size is auto
            wait([batcher.loaded])
        started = time.monotonic()
        loaded = load_model(model)
        _log.info(
            "loaded %s on %s (asked for: %s) in %.1f s; batches of %d images (batch_size: %s)",
            model.card.name,
            loaded.device,
            model.device,
            time.monotonic() - started,
            loaded.batch_size,
            model.batch_size,
        )
        return loaded

    def _compute(self, batcher: Batcher) -> None:
        try:
            batcher.run()  # returns only where the model cannot be loaded
        except BaseException:  # noqa: BLE001 - nothing can be trusted after it: this process ends
            _log.exception("the model broke")
            self._has_failed = True
        self._wake.set()

    def _end(self, *_: object) -> None:
        self._is_told_to_end = True
        self._wake.set()

    def _accept(self) -> None:
        while True:
            accepted, _ = self._listener.accept()
            connection = Connection(accepted, self._key, os.getpid(), self._spec, self._batchers)
            thread = threading.Thread(target=connection.serve, name="connection", daemon=True)
            self._connections = {each for each in self._connections if each.is_alive()} | {thread}
            thread.start()

    def _watch(self) -> None:
        """Return when it is time to end; the home is cleared away then, unless it is another host's."""
        while True:
            self._wake.wait(_WATCH_SECONDS)
            if self._has_failed or not self._is_at_home():
                return None  # the log tells the tasks of this death; or the home is the next host's
            if self._cannot_load():
                self._clear_home()  # first: whom this host greets after its farewell would hear nothing
                return self._say_farewell()
            if self._is_told_to_end or not self._spec.owner.is_alive():
                return self._clear_home()
            if self._is_idle():
                with self._home.locked():  # no task can be greeting this host meanwhile
                    if self._is_idle():
                        return self._home.remove()

    def _is_idle(self) -> bool:
        if any(thread.is_alive() for thread in self._connections):
            self._last_task = time.monotonic()
        return time.monotonic() - self._last_task > self._spec.idle_seconds

    def _clear_home(self) -> None:
        with contextlib.suppress(FileNotFoundError), self._home.locked(make=False):
            if self._is_at_home():
                self._home.remove()

    def _is_at_home(self) -> bool:
        host = self._home.read_host()
        return host is not None and host["key"] == self._key

    def _cannot_load(self) -> bool:
        return any(True for _ in self._load_errors())

    def _load_errors(self) -> Iterator[BaseException]:
        for batcher in self._batchers:
            if batcher.loaded.done() and (error := batcher.loaded.exception()) is not None:
                yield error

    def _say_farewell(self) -> None:
        for error in self._load_errors():
            _log.error("the model could not be loaded: %s", error)
        deadline = time.monotonic() + _FAREWELL_SECONDS
        for thread in self._connections:
            thread.join(max(0.0, deadline - time.monotonic()))


def _in_background(work: Callable[[], None], name: str) -> None:
    threading.Thread(target=work, name=name, daemon=True).start()


def log_to(executor_log: int) -> None:
    """Log to standard error, which is this host's log, and what matters to the executor's log as well."""
    level = os.environ.get("NSFW_SPARK_LOG", "INFO").upper()
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if executor_log >= 0:
        handlers.append(logging.StreamHandler(os.fdopen(executor_log, "w", buffering=1)))
    for handler in handlers:
        handler.setFormatter(_Redacted(f"model host {os.getpid()}: %(message)s"))
    logging.basicConfig(handlers=handlers)
    logging.getLogger("nsfw_spark").setLevel(level)


class _Redacted(logging.Formatter):
    """Says nothing of the credentials in URIs, which a library's error may name."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


def _clear_abandoned_homes() -> None:
    """Remove what killed hosts of ended executors left on this machine."""
    for home in homes():
        # Somebody else may do it first, or may have written nonsense there.
        with contextlib.suppress(OSError, TypeError, ValueError, OverflowError):
            if _is_abandoned(home):
                with home.locked(make=False):
                    if _is_abandoned(home):
                        home.remove()


def _is_abandoned(home: Home) -> bool:
    host = home.read_host()
    if host is None or is_running(host["pid"], host["started"]):
        return False
    owner = Owner("", *host["owner"])
    return owner.pid is not None and not owner.is_alive()
