"""The lock of a file system that has none: a small file, written anew as long as its holder lives."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from py4j.protocol import Py4JError, Py4JJavaError
from pyspark.sql import SparkSession

from nsfw_spark.errors import TableError
from nsfw_spark.spark.hadoop import delete, modified_ms, read_text, write_text
from nsfw_spark.spark.lock.holder import POLL_SECONDS, Holder, refusal

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
