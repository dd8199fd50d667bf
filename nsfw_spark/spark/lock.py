"""One run at a time: the lock of an output, with a message for the run that comes second.

Two runs of one output would score the same images twice. On a local disk the kernel's `flock` is the lock; it
ends with its process. On other file systems a lease is the lock: a file that its holder renews. A holder that
could not renew it may have lost it: it cancels its Spark jobs, and its `Fence` lets no further write begin.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Final, Self

import psutil
from py4j.protocol import Py4JError, Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

from nsfw_spark.errors import TableError
from nsfw_spark.host.directory import is_running
from nsfw_spark.spark.fence import Fence, Times
from nsfw_spark.spark.hadoop import delete, local_path, modified_ms, read_text, write_text
from nsfw_spark.spark.tables import Output
from nsfw_spark.uris import in_sql

POLL_SECONDS: Final = 0.2
"""Time between two looks at a lock."""

_NAME: Final = "run.lock"
_NO_FLOCK: Final = {errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK}  # Lustre and FUSE, with some mount options
_FORBIDDEN: Final = {errno.EACCES, errno.EPERM, errno.EROFS}
_NO_DIRECTORY: Final = {errno.ENOENT, errno.ENOTDIR, errno.EEXIST}
_NUM_READS: Final = 5
_SAFE: Final = 5 / 6
"""Share of a lease's time after which its holder stops: it must be silent before another run begins."""
_GO_ON: Final = "Nothing of this run is lost: run the same command again"


@contextmanager
def one_run_at_a_time(output: Output) -> Iterator[bool]:
    """Hold the output's lock for this run.

    Yields:
        Whether the lock is held. A catalog schema may have no place for it: neither a directory to which
        this user may write, nor one for checkpoints; only `filter` works without a lock.

    Raises:
        TableError: Another run holds the lock, or took it while this process was suspended. Or this user
            cannot write to the output.
    """
    # The lock lies with the tables, wherever the checkpoints of each job are.
    beside = _directory_of_schema(output) if output.is_schema else f"{output.location}/_checkpoints"
    directory = beside or output.checkpoints
    if directory is None:
        yield False
        return
    uri = f"{directory}/{_NAME}"
    path = local_path(output.spark, uri)
    lock = locked_file(path) if path is not None and has_flock(path) else None
    with lock or Lease(output.spark, uri, output.fence).held():
        yield True


def _directory_of_schema(output: Output) -> str | None:
    """Return a directory beside a schema's tables; None if this user may not write there."""
    try:
        described = output.spark.sql(f"DESCRIBE SCHEMA {in_sql(output.location)}").collect()
        location = dict(map(tuple, described)).get("Location")
        if not location:
            return None
        probe = f"{location}/_nsfw_spark/probe-{uuid.uuid4().hex}"
        write_text(output.spark, probe, "", overwrite=True)
        delete(output.spark, probe)
    except (PySparkException, Py4JError):
        return None
    return f"{location}/_nsfw_spark"


def has_flock(path: Path) -> bool:
    """Whether the file system supports `flock`; creates the file and its directory.

    Raises:
        TableError: They cannot be created.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    except OSError as error:
        if error.errno not in _FORBIDDEN | _NO_DIRECTORY:
            raise
        raise TableError(
            f"cannot write {path} ({error.strerror}); expected an output that is a directory, and that this "
            "user may write to. Choose another --output, or give the right to write there"
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            return error.errno not in _NO_FLOCK
    return True


@contextmanager
def locked_file(path: Path, *, patience_seconds: float = 5.0) -> Iterator[None]:
    """Hold a file's lock; the file is created and stays, and its existence means nothing.

    A holder that is being killed gets `patience_seconds` to end.

    Raises:
        TableError: Another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Programs that Python starts (Java, model hosts) do not inherit its open files, nor the lock.
    with path.open("a+", encoding="utf-8") as file:
        _lock(file, path, patience_seconds)
        try:
            file.truncate(0)
            file.write(Holder.this_process().as_json())
            file.flush()
            yield
        finally:
            file.truncate(0)
            fcntl.flock(file, fcntl.LOCK_UN)  # closing is not enough if a forked child has the file too


def _lock(file: IO[str], path: Path, patience_seconds: float) -> None:
    deadline = time.monotonic() + patience_seconds
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise _refusal(str(path), Holder.from_json(path.read_text(encoding="utf-8"))) from None
            time.sleep(POLL_SECONDS)
        else:
            return


@dataclass
class Lease:
    """A lock for file systems without locks: a file that its holder renews as long as it lives.

    A second run waits until the file is renewed (its holder is alive) or is stale.
    """

    spark: SparkSession
    uri: str
    """URI of the file."""
    fence: Fence = field(default_factory=Fence)
    """Closed once this run may have lost the lease."""
    renew_seconds: float = 15.0
    """Time between two writes by the holder."""
    stale_seconds: float = 90.0
    """Age at which the file has no holder any more."""
    settle_seconds: float = 1.0
    """Time between taking the lease and checking that it is still ours: some object stores let two runs
    create one file, and the last one holds it."""

    def __post_init__(self) -> None:
        self._holder = Holder.this_process()
        self._is_over = threading.Event()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Take the lease, renew it in a thread, and release it at the end.

        Raises:
            TableError: Another run holds it, or has taken it over.
        """
        steps = (self._renew, self._cancel)
        threads = [threading.Thread(target=step, name="nsfw-spark: lease", daemon=True) for step in steps]
        jobs = self.spark.sparkContext
        try:
            self._take()
            jobs.addJobTag(self._holder.token)
            for thread in threads:
                thread.start()
            yield
        except Exception as error:
            try:
                self.fence.check()
            except TableError as lost:
                raise lost from error
            raise
        finally:
            self._is_over.set()
            jobs.removeJobTag(self._holder.token)
            if not self.fence.is_closed:
                for thread in threads:
                    if thread.ident is not None:
                        thread.join()
                self._release()

    def _take(self) -> None:
        first_ms = None
        while True:
            since, written_ms = self.fence.now(), self._modified_ms()
            if written_ms is None or self._is_stale(written_ms):
                if self._write_own(overwrite=written_ms is not None):
                    self._guard(since)
                    return
            elif first_ms is None:
                first_ms = written_ms
                sys.stderr.write(
                    f"nsfw-spark: {self.uri} is held: waiting to see whether that run still lives\n"
                )
            elif written_ms != first_ms:
                raise self._refusal()
            time.sleep(POLL_SECONDS)

    def _modified_ms(self) -> int | None:
        """Return when the lease was written; None without a lease."""
        try:
            return modified_ms(self.spark, self.uri)
        except Py4JJavaError as error:
            if _is_java(error, "FileNotFoundException"):
                return None
            raise

    def _read(self) -> Holder | None:
        """Return the lease's holder; None if the file is being written, or was just deleted."""
        try:
            return Holder.from_json(read_text(self.spark, self.uri))
        except Py4JJavaError:
            return None

    def _is_stale(self, written_ms: int) -> bool:
        holder = self._read()
        if holder is not None and holder.is_gone():
            return True
        return self._now_ms() - written_ms > 1000 * self.stale_seconds

    def _now_ms(self) -> int:
        """Return the file system's own time: the time of a file written now."""
        probe = f"{self.uri}-{self._holder.token}"
        write_text(self.spark, probe, "", overwrite=True)
        try:
            return modified_ms(self.spark, probe)
        finally:
            delete(self.spark, probe)

    def _write_own(self, *, overwrite: bool) -> bool:
        """Write the lease; return whether this run holds it."""
        try:
            write_text(self.spark, self.uri, self._holder.as_json(), overwrite=overwrite)
        except Py4JJavaError as error:
            if _is_java(error, "FileAlreadyExistsException", "AlreadyBeingCreatedException"):
                return False  # another run was faster
            raise
        time.sleep(self.settle_seconds)
        return self._read() == self._holder

    def _guard(self, since: Times) -> None:
        seconds = self.stale_seconds * _SAFE
        too_late = (
            f"this run could not renew its lock {self.uri} for {seconds:.0f} s: it was suspended, or the "
            f"store did not answer. Another run may write to this output now. {_GO_ON}"
        )
        self.fence.guard(since, seconds, too_late, self._look)

    def _look(self) -> None:
        """Close the fence if another run has taken the lease over."""
        try:
            holder = Holder.from_json(read_text(self.spark, self.uri))
        except Py4JJavaError as error:
            if not _is_java(error, "FileNotFoundException"):
                return  # the store may answer the next time
            who = "and has ended"
        else:
            if holder in (None, self._holder):  # None: it is being renewed
                return
            who = f"({_who(holder)})"
        self.fence.close(
            f"another run took over this output {who}, while this process was suspended or could not renew "
            f"its lock {self.uri}. {_GO_ON}"
        )

    def _renew(self) -> None:
        while not self._is_over.wait(self.renew_seconds) and not self.fence.is_closed:
            since = self.fence.now()
            with contextlib.suppress(Py4JError, OSError):  # the store may answer the next time
                self._look()
                if not self.fence.is_closed:
                    write_text(self.spark, self.uri, self._holder.as_json(), overwrite=True)
                    self.fence.renew(since)

    def _cancel(self) -> None:
        """Once the lease is lost, cancel this run's Spark jobs, until it has ended."""
        while not self._is_over.wait(POLL_SECONDS):
            if self.fence.is_closed:
                with contextlib.suppress(Py4JError):
                    self.spark.sparkContext.cancelJobsWithTag(self._holder.token)

    def _release(self) -> None:
        # If this fails, the lease becomes stale; on this machine at once, because its process is gone.
        with contextlib.suppress(Py4JError, OSError):
            if self._read() == self._holder:
                delete(self.spark, self.uri)

    def _refusal(self) -> TableError:
        for _ in range(_NUM_READS):
            if (holder := self._read()) is not None:
                break
            time.sleep(POLL_SECONDS)  # it is being renewed
        return _refusal(self.uri, holder)


def _is_java(error: Py4JJavaError, *names: str) -> bool:
    """Whether Java raised one of these exceptions."""
    return str(error.java_exception.getClass().getSimpleName()) in names


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock; the lock file's content."""

    token: str
    """Tells two holders apart, even in one process."""
    since: str
    host: str
    pid: int
    started: float
    """When the process started, seconds since 1970: the system uses a process id again one day."""
    machine: str
    """Where the process id is valid: one boot of one machine, one container."""

    @classmethod
    def this_process(cls) -> Self:
        """Return a new holder."""
        since = datetime.now(UTC).isoformat(timespec="seconds")
        pid = os.getpid()
        started = psutil.Process(pid).create_time()
        return cls(uuid.uuid4().hex, since, socket.gethostname(), pid, started, _machine())

    @classmethod
    def from_json(cls, text: str) -> Self | None:
        """Return the holder in a lock file; None if the file is being written or is damaged."""
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError):
            return None

    def as_json(self) -> str:
        """Return the text that `from_json` reads."""
        return json.dumps(asdict(self))

    def is_gone(self) -> bool:
        """Whether the process is known to have ended; False for a process elsewhere."""
        return self.machine == _machine() and not is_running(self.pid, self.started)


def _machine() -> str:
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):  # without /proc, the host's name must do
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(parts)


def _refusal(where: str, holder: Holder | None) -> TableError:
    """Return the error of the second run; `holder` is None while the lock file is being written."""
    return TableError(
        f"another run writes to this output: {_who(holder)}; it holds {where}. Only one can: wait for it, "
        "or stop it, and run this one again"
    )


def _who(holder: Holder | None) -> str:
    return f"since {holder.since}, on host {holder.host}, process {holder.pid}" if holder else "just now"
