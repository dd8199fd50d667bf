"""`decode` in a child process. The parent, a process that scores, runs this module.

In: an image's bytes. Out: its pixels, or an `ImageError`, also for an image that ended the child. This module
starts the child, `python -m nsfw_spark.isolation`, replaces it after its death, and ends it.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import socket
import subprocess
import sys
import weakref
from typing import Final, Self, Unpack

from nsfw_spark import wire
from nsfw_spark.decode import MOST_VIEWS, DecodedImage, DecodeOptions, decode
from nsfw_spark.errors import ImageError
from nsfw_spark.isolation.guarded import DECODE_TIMEOUT_SECONDS
from nsfw_spark.isolation.replies import read_reply
from nsfw_spark.model_card import Preprocessing
from nsfw_spark.wire import MessageError

_START_SECONDS: Final = 120.0  # within which a child is ready, however busy the machine is
_MAX_STARTS: Final = 2  # another process may kill a child while it starts, but hardly twice
_PATIENCE: Final = 2  # times its timeout: a child that lives longer was stopped by another process


class IsolatedDecoder:
    """`decode` in a child process: a context manager, with the same call.

    Without `with`, the first image starts the child, which ends with the decoder or its process.
    """

    def __init__(self, timeout_seconds: float = DECODE_TIMEOUT_SECONDS) -> None:
        """Prepare. An image that takes longer than `timeout_seconds` is `crashed`."""
        self._timeout_seconds = timeout_seconds
        self._child: _Child | None = None

    def __enter__(self) -> Self:
        """Start the child, or raise an `OSError` if no child process can start here."""
        self._usable_child()
        return self

    def __exit__(self, *_: object) -> None:
        if self._child is not None:
            self._child.end()

    def __call__(
        self, content: bytes | None, preprocessing: Preprocessing, **options: Unpack[DecodeOptions]
    ) -> DecodedImage:
        """Decode one image: see `decode`.

        Raises:
            ImageError: As from `decode`; also `too_large` if it needs too much memory, and `crashed`.
            OSError: No child process can be started here.
        """
        if not content:
            return decode(content, preprocessing, **options)  # raises the error for no content
        try:
            return self._usable_child().decode(content, preprocessing, options)
        except _OtherCauseError:
            return self._usable_child().decode(content, preprocessing, options)  # the child is new

    def _usable_child(self) -> _Child:
        if self._child is None or not self._child.is_usable:
            self._child = _Child(self._timeout_seconds)
        return self._child


class _OtherCauseError(Exception):
    """The child died, perhaps because of an earlier image or of another process."""


class _Child:
    """A running child.

    Attributes:
        end: Ends the child. It is called at the latest when this object or this process ends.
    """

    def __init__(self, timeout_seconds: float) -> None:
        """Start a child, and wait until it is ready.

        Raises:
            OSError: It cannot be started, or ends at once.
        """
        self._timeout_seconds = timeout_seconds
        self._parent = os.getpid()
        self._num_decoded = 0
        for _ in range(_MAX_STARTS):
            self._process, self._connection = _start(timeout_seconds)
            self.end = weakref.finalize(self, _end, self._process, self._connection, self._parent)
            with contextlib.suppress(OSError, MessageError):
                if wire.receive(self._connection) is not None:
                    self._connection.settimeout(_PATIENCE * timeout_seconds)
                    return
            self.end()
        raise ChildProcessError(
            f"the process that decodes images does not start: {sys.executable} ended with status "
            f"{self._process.returncode}. Its standard error says why"
        )

    @property
    def is_usable(self) -> bool:
        """Whether the child runs and belongs to this process, not to the parent of a fork."""
        return self.end.alive and self._parent == os.getpid()

    def decode(self, content: bytes, preprocessing: Preprocessing, options: DecodeOptions) -> DecodedImage:
        """Have the child decode one image; raise an `ImageError` also if the image ended the child."""
        head = {"preprocessing": preprocessing.model_dump(mode="json"), "options": options}
        shape = (preprocessing.size, preprocessing.size, 3)
        max_views = MOST_VIEWS if options.get("strict") else 1
        try:
            wire.send(self._connection, head, [content])
            reply = wire.receive(self._connection, max_views * math.prod(shape))
            outcome = None if reply is None else read_reply(*reply, shape)
        except TimeoutError:
            raise self._death(is_late=True) from None
        except (OSError, MessageError):
            outcome = None
        if outcome is None:
            raise self._death()
        self._num_decoded += 1
        if isinstance(outcome, ImageError):
            raise outcome
        return outcome

    def _death(self, *, is_late: bool = False) -> ImageError | _OtherCauseError:
        """End the child if it still runs; return the error for the image that it decoded last."""
        self.end()
        status = self._process.returncode
        if is_late or status == -signal.SIGALRM:
            limit = f"decode_timeout_seconds = {self._timeout_seconds:g} (--decode-timeout-seconds)"
            return ImageError("crashed", f"decoding it takes longer than {limit}")
        # An earlier image may have damaged a child; the first image of a child has no such excuse.
        return _OtherCauseError() if self._num_decoded else ImageError("crashed", _cause(status))


def _start(timeout_seconds: float) -> tuple[subprocess.Popen[bytes], socket.socket]:
    ours, theirs = socket.socketpair()
    ours.settimeout(_START_SECONDS)
    arguments = ["-m", "nsfw_spark.isolation", str(theirs.fileno()), str(timeout_seconds)]
    # The child inherits the mask, so that a terminal's Ctrl-C does not end it while it starts.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    with theirs:
        try:
            process = subprocess.Popen(  # noqa: S603 - our own module
                [sys.executable, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=wire.child_environment(OPENBLAS_NUM_THREADS="1"),
                cwd="/",
                pass_fds=[theirs.fileno()],
            )
        except BaseException:
            ours.close()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return process, ours


def _end(process: subprocess.Popen[bytes], connection: socket.socket, parent: int) -> None:
    connection.close()
    if os.getpid() == parent:
        process.kill()  # a dead process keeps its exit status
        process.wait()


def _cause(status: int) -> str:
    """Return a sentence on how a process died, from its exit status in the form of `subprocess`."""
    if status == -signal.SIGKILL:
        return "decoding it was killed (SIGKILL), as the kernel does when memory runs out"
    if status < 0:
        return f"decoding it crashes the image library ({signal.Signals(-status).name})"
    return f"decoding it ends the process, with exit status {status}"
