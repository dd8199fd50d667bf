"""Starts Spark quietly: holds back what its JVM prints until it runs, and then passes everything on.

The JVM inherits standard error for its whole life, and nobody can take it away later. So the JVM gets a pipe.
A thread of this process reads it: first into memory, later to the real standard error. A start that fails
shows all that was held back.
"""

from __future__ import annotations

import atexit
import os
import select
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

PATIENCE_SECONDS: Final = 4.0
"""Time after which a start that downloads jars says so."""

_STDERR: Final = 2
_ERROR: Final = b" ERROR "


@contextmanager
def quiet_start(downloads: str | None, patience: float = PATIENCE_SECONDS) -> Iterator[None]:
    """Hold back what a JVM prints that starts in this context; show it if the context fails.

    Once the context has ended, all that the JVM prints reaches standard error. From the start only lines of
    Spark's log with the level ERROR do.

    Args:
        downloads: The jars that this start may have to download, for a message; None for none.
        patience: Seconds until that message.
    """
    sys.stderr.flush()
    try:
        stderr = os.dup(_STDERR)
    except OSError:  # standard error is closed
        yield
        return
    source, sink = os.pipe()
    relay = _Relay(source, stderr)
    os.dup2(sink, _STDERR)
    os.close(sink)
    words = f"nsfw-spark: downloading the jars of {downloads}, once…\n".encode()
    message = threading.Timer(patience, relay.say, [words])
    message.daemon = True
    if downloads is not None:
        message.start()
    is_up = False
    try:
        yield
        is_up = True
    finally:
        message.cancel()
        sys.stderr.flush()
        os.dup2(stderr, _STDERR)
        relay.pass_on(shows_all=not is_up)


class _Relay:
    """Moves bytes from a pipe to standard error, or keeps them until they are wanted."""

    def __init__(self, source: int, target: int) -> None:
        self._source, self._target = source, target
        os.set_blocking(source, False)
        self._held: list[bytes] | None = []
        self._lock = threading.Lock()
        threading.Thread(target=self._run, name="stderr of Spark", daemon=True).start()
        atexit.register(self._move)  # what the JVM printed just before this process ends

    def say(self, words: bytes) -> None:
        """Write to the real standard error."""
        with suppress(OSError):  # closed by its reader; the JVM must go on
            os.write(self._target, words)

    def pass_on(self, *, shows_all: bool) -> None:
        """Stop keeping bytes: write the kept ones, or only the errors of Spark's log, and all later ones."""
        self._move()
        with self._lock:
            text, self._held = b"".join(self._held or ()), None
        lines = text.splitlines(keepends=True)
        if kept := b"".join(line for line in lines if shows_all or _ERROR in line):
            self.say(kept)

    def _run(self) -> None:
        ready = select.poll()  # `select.select` refuses descriptors above 1,023
        ready.register(self._source, select.POLLIN)
        while self._move():
            ready.poll()

    def _move(self) -> bool:
        """Take what is in the pipe; return False at its end, when no process can write to it."""
        with self._lock:
            while True:
                try:
                    data = os.read(self._source, 1 << 16)
                except BlockingIOError:
                    return True
                if not data:
                    return False
                if self._held is None:
                    self.say(data)
                else:
                    self._held.append(data)
