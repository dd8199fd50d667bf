"""The model host as a process: its beginning, its watch over the executor that it serves, and its end.

It ends by itself: when its executor ends (which it looks for twice a second), when no task came for a while,
when its home is gone or another host lives there, when the model cannot be loaded, and when the model breaks.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import wait
from functools import partial
from typing import Final, NoReturn

import psutil

from nsfw_spark.host.batcher import Batcher
from nsfw_spark.host.connection import Connection
from nsfw_spark.host.home import Home, homes
from nsfw_spark.host.lifecycle import LISTENING
from nsfw_spark.host.spec import HostSpec, Owner, is_running
from nsfw_spark.model import Model, ModelSpec, load_model
from nsfw_spark.redact import redact

_WATCH_SECONDS: Final = 0.5
_FAREWELL_SECONDS: Final = 2.0  # in which tasks hear why the model could not be loaded
_BACKLOG: Final = 256  # tasks that connect at once

_log = logging.getLogger(__name__)


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
