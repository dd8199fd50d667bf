"""Connects a task to its model host, and starts the host if there is none. A task runs this module.

The holder of the directory's lock greets the host; if none answers, it starts one. So if many tasks begin at
once, or see the same host die, exactly one of them starts the next host and the others greet it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from nsfw_spark import wire
from nsfw_spark.host.directory import HostDirectory, HostSpec, is_running
from nsfw_spark.host.protocol import VERSION
from nsfw_spark.wire import MessageError

LISTENING: Final = b"listening\n"
"""The line that a host prints when tasks can connect."""
_MAX_STARTS: Final = 2  # something may kill a host while it starts, but hardly twice

_log = logging.getLogger(__name__)


class HostUnavailableError(Exception):
    """No host can start here: child processes, sockets or a directory for them are not possible."""


def connect(spec: HostSpec, directory: HostDirectory, task: str, model: int) -> tuple[socket.socket, int]:
    """Return a connection to the spec's host, and the host's process id. Start the host if there is none.

    `task` is a name for the host's log, and `model` the index of a model in the spec.

    Raises:
        HostUnavailableError: There is no host and none can be started.
    """
    try:
        with directory.locked() as lock:
            try:
                for _ in range(_MAX_STARTS):
                    if (greeted := _greet(spec, directory, task, model)) is not None:
                        return greeted
                    directory.forget_host()
                    _start(spec, directory, lock)
                if (greeted := _greet(spec, directory, task, model)) is not None:
                    return greeted
                log_end = directory.log_end() or "empty"
            except OSError:
                directory.remove()
                raise
            directory.remove()
    except OSError as error:
        raise HostUnavailableError(f"{type(error).__name__}: {error}") from error
    raise HostUnavailableError(f"it did not start. The end of its log: {log_end}")


def kill(directory: HostDirectory, pid: int) -> None:
    """Kill a host that hangs, if it is still the one of this directory."""
    host = None
    with contextlib.suppress(OSError):
        host = directory.read_host()
    if host is not None and host["pid"] == pid and is_running(pid, host["started"]):
        _log.warning("the model host %d hangs: killed it", pid)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _greet(
    spec: HostSpec, directory: HostDirectory, task: str, model: int
) -> tuple[socket.socket, int] | None:
    """Connect to the host that runs; return None if none answers.

    Raises:
        HostUnavailableError: This task cannot try it, as when too many files are open.
    """
    try:
        if (host := directory.read_host()) is None:
            return None
        connection = socket.socket(socket.AF_UNIX)
    except OSError as error:
        raise HostUnavailableError(f"{type(error).__name__}: {error}") from error
    connection.settimeout(spec.timeout_seconds)
    hello = {"kind": "hello", "version": VERSION, "key": host["key"], "task": task, "model": model}
    try:
        connection.connect(str(directory.socket))
        wire.send(connection, hello)
        if (answer := wire.receive(connection)) is not None and answer[0].get("kind") == "welcome":
            return connection, host["pid"]
    except TimeoutError:
        kill(directory, host["pid"])
    except (OSError, MessageError) as error:
        _log.debug("no model host in %s: %s", directory.path, error)
    connection.close()
    return None


def _start(spec: HostSpec, directory: HostDirectory, lock: int) -> None:
    """Start a host; return when it listens, which is before it loads its model, or when it has failed.

    The host holds the lock until it listens. So no task starts another if the one that starts it dies.
    """
    with directory.log.open("ab") as log, _executor_log() as executor_log:
        process = subprocess.Popen(  # noqa: S603 - our own module
            [sys.executable, "-m", "nsfw_spark.host", str(directory.path), str(lock), str(executor_log)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=wire.child_environment(
                # Spark allows each Python worker one thread; the host computes for all of them.
                OMP_NUM_THREADS=str(spec.num_threads or _num_cores()),
                # Threads that wait for work must not use the cores that decode.
                OMP_WAIT_POLICY="PASSIVE",
                OPENBLAS_NUM_THREADS="1",  # numpy's; it computes only the head, and has no such policy
            ),
            cwd="/",
            pass_fds=[lock] if executor_log < 0 else [lock, executor_log],
            start_new_session=True,  # at its end Spark's daemon signals its whole process group
        )
    try:
        if not _is_listening(process, spec):
            process.kill()
    finally:
        # This process is the parent: it must wait for the host's end, or a zombie is left.
        threading.Thread(target=process.wait, name="wait for model host", daemon=True).start()


def _is_listening(process: subprocess.Popen[bytes], spec: HostSpec) -> bool:
    """Send a new host its spec; return whether it answers that it listens."""
    assert process.stdin is not None  # noqa: S101 - both are pipes
    assert process.stdout is not None  # noqa: S101
    with process.stdout, contextlib.suppress(BrokenPipeError):
        with process.stdin:
            process.stdin.write(spec.as_json().encode())
        if select.select([process.stdout], [], [], spec.timeout_seconds)[0]:
            return os.read(process.stdout.fileno(), len(LISTENING)) == LISTENING
    return False


@contextmanager
def _executor_log() -> Iterator[int]:
    """Yield a copy of this process's standard error, for the host to write to; -1 if it is closed."""
    try:
        copy = os.dup(2)
    except OSError:
        yield -1
        return
    try:
        yield copy
    finally:
        os.close(copy)


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
