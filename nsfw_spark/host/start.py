"""Finds the model host of a spec, or starts it: a task's side of a host's beginning and end.

Whoever holds the home's lock greets the host that is there; if none answers, it starts one. So of many tasks
that begin at once, or that see the same host die, exactly one starts the next, and the others greet it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from nsfw_spark import interpreter
from nsfw_spark.host import wire
from nsfw_spark.host.directory import Home, HostSpec, is_running
from nsfw_spark.host.wire import FrameError, Kind

_STARTS: Final = 2  # a host may be killed while it starts, but hardly twice
LISTENING: Final = b"listening\n"  # what a host prints when tasks can connect

_log = logging.getLogger(__name__)


class HostUnavailableError(Exception):
    """No host can be started here: no child processes, no sockets, or no directory for them."""


def connect(spec: HostSpec, home: Home, task: str, place: int = 0) -> tuple[socket.socket, int]:
    """Return a connection to the spec's host, which is started if there is none, and the host's process id.

    Args:
        spec: What the host holds.
        home: Where it lives.
        task: Who connects, for the host's log.
        place: Which of the spec's models the connection is for.

    Raises:
        HostUnavailableError: None is there and none can be started.
    """
    try:
        with home.locked() as lock:
            try:
                for _ in range(_STARTS):
                    if (greeted := _greet(spec, home, task, place)) is not None:
                        return greeted
                    home.forget_host()
                    _start(spec, home, lock)
                if (greeted := _greet(spec, home, task, place)) is not None:
                    return greeted
                last_words = home.last_words() or "none"
            except OSError:
                home.remove()
                raise
            home.remove()
    except OSError as error:
        raise HostUnavailableError(f"{type(error).__name__}: {error}") from error
    raise HostUnavailableError(f"it did not start. Its last words: {last_words}")


def kill(home: Home, pid: int) -> None:
    """End a host that is stuck, if it is still the one that lives there."""
    host = home.read_host()
    if host is not None and host["pid"] == pid and is_running(pid, host["started"]):
        _log.warning("the model host %d is stuck: killed", pid)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _greet(spec: HostSpec, home: Home, task: str, place: int) -> tuple[socket.socket, int] | None:
    """Connect to the host that is there; None if none answers."""
    host = home.read_host()
    if host is None:
        return None
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(spec.timeout_seconds)
    try:
        connection.connect(str(home.socket))
        wire.send_json(connection, Kind.HELLO, version=wire.VERSION, key=host["key"], task=task, model=place)
        if (header := wire.receive_header(connection)) is not None and header[0] == Kind.WELCOME:
            wire.receive_payload(connection, header[1], wire.MAX_JSON)
            return connection, host["pid"]
    except TimeoutError:
        kill(home, host["pid"])
    except (OSError, FrameError) as error:
        _log.debug("no model host at %s: %s", home.path, error)
    connection.close()
    return None


def _start(spec: HostSpec, home: Home, lock: int) -> None:
    """Start a host and wait until it listens, which is before it loads its model, or until it failed to.

    The host holds the lock until then, so that no other is started if the task that starts it dies meanwhile.
    """
    with home.log.open("ab") as log, _executor_log() as executor_log:
        process = subprocess.Popen(  # noqa: S603 - our own module
            [sys.executable, "-m", "nsfw_spark.host", str(home.path), str(lock), str(executor_log)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=_environment(spec),
            cwd="/",
            pass_fds=[lock] if executor_log < 0 else [lock, executor_log],
            start_new_session=True,  # Spark's daemon ends with a signal to its whole process group
        )
    try:
        said = _told(process, json.dumps(spec.as_json()).encode(), spec.timeout_seconds)
        if said != LISTENING:
            process.kill()
    finally:
        # Whenever it ends, this process, its parent, must take note, or a zombie is left.
        threading.Thread(target=process.wait, name="model host's end", daemon=True).start()


def _told(process: subprocess.Popen[bytes], settings: bytes, timeout_seconds: float) -> bytes:
    """Tell a new host its settings; return the line that it answers, empty if it does not."""
    assert process.stdin is not None  # noqa: S101 - pipes were asked for
    assert process.stdout is not None  # noqa: S101
    with process.stdout, contextlib.suppress(BrokenPipeError):
        with process.stdin:
            process.stdin.write(settings)
        deadline, said = time.monotonic() + timeout_seconds, b""
        while not said.endswith(b"\n"):
            wait = max(0.0, deadline - time.monotonic())
            if not select.select([process.stdout], [], [], wait)[0]:
                break
            if not (more := os.read(process.stdout.fileno(), len(LISTENING))):
                break
            said += more
        return said
    return b""


@contextmanager
def _executor_log() -> Iterator[int]:
    """Yield a copy of this process's standard error, so that the host can write there too; -1 if closed."""
    try:
        copy = os.dup(2)
    except OSError:
        yield -1
        return
    try:
        yield copy
    finally:
        os.close(copy)


def _environment(spec: HostSpec) -> dict[str, str]:
    """Return the environment of a new host: a fresh interpreter that finds the same packages."""
    return interpreter.environment(
        # Spark allows each Python worker one thread; the host computes for all of them.
        OMP_NUM_THREADS=str(spec.num_threads or _num_cores()),
        # Threads that wait for work must not burn the cores that decode.
        OMP_WAIT_POLICY="PASSIVE",
        OPENBLAS_NUM_THREADS="1",  # numpy's, of which only the head is left; it has no such policy
    )


def _num_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
