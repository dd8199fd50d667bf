"""Who holds a lock, and how another run is told."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Final, Self

import psutil
from py4j.protocol import Py4JError, Py4JJavaError
from pyspark.sql import SparkSession

from nsfw_spark.errors import TableError
from nsfw_spark.host.directory import is_running
from nsfw_spark.spark.hadoop import delete, local_path, modified_ms, read_text, write_text
from nsfw_spark.spark.tables import Output

POLL_SECONDS: Final = 0.2
"""So often one looks whether a lock has become free."""


@dataclass(frozen=True)
class Holder:
    """Who holds a lock; its content."""

    token: str
    """Tells two holders apart, even two in one process."""
    since: str
    host: str
    pid: int
    started: float
    """When the process started, seconds since 1970: a process id is used again one day."""
    machine: str
    """Where the process id means something: in one boot of one machine, in one container."""

    @classmethod
    def this_process(cls) -> Self:
        """Return a new holder."""
        since = datetime.now(UTC).isoformat(timespec="seconds")
        pid = os.getpid()
        started = psutil.Process(pid).create_time()
        return cls(uuid.uuid4().hex, since, socket.gethostname(), pid, started, _machine())

    @classmethod
    def from_json(cls, text: str) -> Self | None:
        """Return the holder that a lock's content names; None where it is being written, or damaged."""
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError):
            return None

    def as_json(self) -> str:
        """Return what `from_json` reads."""
        return json.dumps(asdict(self))

    def is_gone(self) -> bool:
        """Whether the process is known to have ended; False where it runs elsewhere."""
        return self.machine == _machine() and not is_running(self.pid, self.started)


def _machine() -> str:
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):  # where there is no /proc, the name must do
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(parts)


def refusal(where: str, holder: Holder | None) -> TableError:
    """Return the error of a run that finds another's lock; `holder` is None where that is being written."""
    who = f"since {holder.since}, on host {holder.host}, process {holder.pid}" if holder else "just now"
    return TableError(
        f"another run writes to this output: {who}; it holds {where}. Only one can: wait for it, or stop it, "
        "and run this one again"
    )


_NO_FLOCK: Final = {errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK}  # Lustre and FUSE, as they may be mounted


def has_flock(path: Path) -> bool:
    """Whether the file system knows `flock`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            return error.errno not in _NO_FLOCK
    return True


@contextmanager
def locked_file(path: Path, *, patience_seconds: float = 5.0) -> Iterator[None]:
    """Hold a file's lock. The file stays; that it is there means nothing.

    Args:
        path: The file; it is made, and its directory too.
        patience_seconds: For so long another holder may take to go, as a process that is being killed does.

    Raises:
        TableError: Another holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Python opens files so that programs it starts (Java, model hosts) do not inherit them, and the lock.
    with path.open("a+", encoding="utf-8") as file:
        _lock(file, path, patience_seconds)
        try:
            file.truncate(0)
            file.write(Holder.this_process().as_json())
            file.flush()
            yield
        finally:
            file.truncate(0)
            fcntl.flock(file, fcntl.LOCK_UN)  # closing would not do where a forked child has the file too


def _lock(file: IO[str], path: Path, patience_seconds: float) -> None:
    deadline = time.monotonic() + patience_seconds
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise refusal(str(path), Holder.from_json(path.read_text(encoding="utf-8"))) from None
            time.sleep(POLL_SECONDS)
        else:
            return


_NUM_READS: Final = 5


@dataclass(frozen=True)
class _Found:
    """A lease that is there."""

    holder: Holder | None
    """None while it is being written."""
    modified_ms: int


class Lease:
    """A lock for file systems that have none: a file, renewed as long as its holder lives.

    Whoever finds one waits until it is renewed, and so alive, or stale.
    """

    def __init__(
        self,
        spark: SparkSession,
        uri: str,
        *,
        renew_seconds: float = 15.0,
        stale_seconds: float = 90.0,
        settle_seconds: float = 1.0,
    ) -> None:
        """Prepare a lease; `held` takes it.

        Args:
            spark: The session.
            uri: Of the file.
            renew_seconds: So often the holder writes it.
            stale_seconds: Not written for so long, it is nobody's.
            settle_seconds: So long after taking it one looks whether it still is one's own. Not all object
                stores refuse to create a file twice: of two that do it at once, the last has it.
        """
        self._spark, self._uri = spark, uri
        self._renew_seconds, self._stale_seconds = renew_seconds, stale_seconds
        self._settle_seconds = settle_seconds
        self._holder = Holder.this_process()
        self._is_over, self._is_lost = threading.Event(), threading.Event()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Take the lease, renew it in a thread, and give it back at the end, whatever that is.

        Raises:
            TableError: Another run holds it, or has taken it over.
        """
        thread = threading.Thread(target=self._renew, name="nsfw-spark: lease", daemon=True)
        try:
            self._take()
            thread.start()
            yield
        except KeyboardInterrupt:
            if self._is_lost.is_set():
                raise self._refusal() from None
            raise
        finally:
            self._is_over.set()
            if thread.ident is not None:
                thread.join()
            self._give_back()

    def _take(self) -> None:
        first = None
        while True:
            found = self._look()
            if found is None or self._is_stale(found):
                if self._write_own(overwrite=found is not None):
                    return
            elif first is None:
                first = found
                sys.stderr.write(f"{self._uri} is held: waiting to see whether that run still lives\n")
            elif found.modified_ms != first.modified_ms:
                raise self._refusal()
            time.sleep(POLL_SECONDS)

    def _look(self) -> _Found | None:
        """Return the lease that is there; None: there is none."""
        try:
            modified = modified_ms(self._spark, self._uri)
        except Py4JJavaError as error:
            if _is_java(error, "FileNotFoundException"):
                return None
            raise
        return _Found(self._read(), modified)

    def _read(self) -> Holder | None:
        try:
            return Holder.from_json(read_text(self._spark, self._uri))
        except Py4JJavaError:  # it is being written, or was just given back
            return None

    def _is_stale(self, found: _Found) -> bool:
        if found.holder is not None and found.holder.is_gone():
            return True
        return self._now_ms() - found.modified_ms > 1000 * self._stale_seconds

    def _now_ms(self) -> int:
        """Return the file system's own time: that of a file written now."""
        probe = f"{self._uri}-{self._holder.token}"
        write_text(self._spark, probe, "", overwrite=True)
        try:
            return modified_ms(self._spark, probe)
        finally:
            delete(self._spark, probe)

    def _write_own(self, *, overwrite: bool) -> bool:
        """Write the lease; return whether it is this run's."""
        try:
            write_text(self._spark, self._uri, self._holder.as_json(), overwrite=overwrite)
        except Py4JJavaError as error:
            if _is_java(error, "FileAlreadyExistsException", "AlreadyBeingCreatedException"):
                return False  # another was faster
            raise
        time.sleep(self._settle_seconds)
        return self._read() == self._holder

    def _renew(self) -> None:
        while not self._is_over.wait(self._renew_seconds):
            try:
                holder = self._read()
                if holder not in (None, self._holder):
                    self._is_lost.set()
                    # As Ctrl-C: the run stops in order.
                    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
                    return
                write_text(self._spark, self._uri, self._holder.as_json(), overwrite=True)
            except (Py4JError, OSError):
                continue  # out of reach: perhaps not the next time

    def _give_back(self) -> None:
        # If this fails, the lease goes stale: sooner or later, and here at once, its process is gone.
        with contextlib.suppress(Py4JError, OSError):
            if self._read() == self._holder:
                delete(self._spark, self._uri)

    def _refusal(self) -> TableError:
        for _ in range(_NUM_READS):
            if (holder := self._read()) is not None:
                break
            time.sleep(POLL_SECONDS)  # it is being renewed
        return refusal(self._uri, holder)


def _is_java(error: Py4JJavaError, *names: str) -> bool:
    """Whether Java raised one of these exceptions."""
    return str(error.java_exception.getClass().getSimpleName()) in names


_NAME: Final = "run.lock"


@contextmanager
def one_run_at_a_time(output: Output) -> Iterator[bool]:
    """Hold the output for this run.

    Yields:
        Whether it is held. A catalog schema without a directory for checkpoints, as `filter` may be given,
        has no place for a lock.

    Raises:
        TableError: Another run holds it, or has taken it over while this process was suspended.
    """
    uri = _uri(output)
    if uri is None:
        yield False
        return
    path = local_path(output.spark, uri)
    lock = locked_file(path) if path is not None and has_flock(path) else Lease(output.spark, uri).held()
    with lock:
        yield True


def _uri(output: Output) -> str | None:
    """Return where an output's lock lies: for a directory the same, wherever its checkpoints are."""
    directory = output.checkpoints if output.is_schema else f"{output.location}/_checkpoints"
    return None if directory is None else f"{directory}/{_NAME}"
