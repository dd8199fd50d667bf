"""The child process as its parent sees it: its start, a request, how it died, and its end.

Nothing that it says is believed without looking: an image may have taken it over.
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
from types import TracebackType
from typing import BinaryIO, Final, Self, Unpack

from nsfw_spark import interpreter
from nsfw_spark.decode import MOST_VIEWS, DecodedImage, DecodeOptions, decode
from nsfw_spark.errors import ImageError
from nsfw_spark.isolation import messages
from nsfw_spark.isolation.guarded import DECODE_TIMEOUT_SECONDS
from nsfw_spark.isolation.messages import MessageError
from nsfw_spark.model_card import Preprocessing

_START_SECONDS: Final = 120.0  # within which a child is ready, however busy the machine is
_STARTS: Final = 2  # a child may be killed from outside while it starts, but hardly twice
_PATIENCE: Final = 2  # after its deadline a child is gone, unless somebody has stopped it


class ChildDiedError(Exception):
    """The child ended while it decoded an image; the message says how.

    Attributes:
        is_certain: Whether it was this image that ended it.
    """

    def __init__(self, message: str, *, is_certain: bool) -> None:
        super().__init__(message)
        self.is_certain = is_certain


class ChildProcess:
    """A running child.

    Attributes:
        end: Call it to end the child; it is called at the latest when this object or this process ends.
    """

    def __init__(self, timeout_seconds: float) -> None:
        """Start a child, and wait until it is ready.

        Args:
            timeout_seconds: For each image.

        Raises:
            OSError: It cannot be started, or ends at once.
        """
        self._timeout_seconds = timeout_seconds
        self._parent = os.getpid()
        self._num_decoded = 0
        for _ in range(_STARTS):
            self._process, self._connection = _start(timeout_seconds)
            self._stream = self._connection.makefile("rb")
            self.end = weakref.finalize(
                self, _end, self._process, self._connection, self._stream, self._parent
            )
            with contextlib.suppress(OSError, MessageError):
                if messages.receive(self._stream, 0) is not None:
                    self._connection.settimeout(_PATIENCE * timeout_seconds)
                    return
            self.end()
        raise ChildProcessError(
            f"the process that decodes images does not start: {sys.executable} ended with status "
            f"{self._process.returncode}. Why, it has said on standard error"
        )

    @property
    def is_usable(self) -> bool:
        """Whether it has not ended, and was started by this process, not by one of which this is a fork."""
        return self.end.alive and self._parent == os.getpid()

    def decode(self, content: bytes, preprocessing: Preprocessing, options: DecodeOptions) -> DecodedImage:
        """Have it decode one image.

        Raises:
            ImageError: The image cannot be decoded.
            ChildDiedError: It ended, or had to be ended.
        """
        head = {"preprocessing": preprocessing.model_dump(mode="json"), "options": options}
        shape = (preprocessing.size, preprocessing.size, 3)
        most_views = MOST_VIEWS if options.get("strict") else 1
        try:
            messages.send(self._connection, head, content)
            reply = messages.receive(self._stream, most_views * math.prod(shape))
            outcome = None if reply is None else messages.read_reply(*reply, shape)
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

    def _death(self, *, is_late: bool = False) -> ChildDiedError:
        self.end()
        status = self._process.returncode
        if is_late or status == -signal.SIGALRM:
            limit = f"decode_timeout_seconds = {self._timeout_seconds:g} (--decode-timeout-seconds)"
            return ChildDiedError(f"decoding it takes longer than {limit}", is_certain=True)
        return ChildDiedError(_cause(status), is_certain=self._num_decoded == 0)


def _start(timeout_seconds: float) -> tuple[subprocess.Popen[bytes], socket.socket]:
    ours, theirs = socket.socketpair()
    ours.settimeout(_START_SECONDS)
    arguments = ["-m", "nsfw_spark.isolation", str(theirs.fileno()), str(timeout_seconds)]
    with theirs:
        try:
            process = subprocess.Popen(  # noqa: S603 - our own module
                [sys.executable, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=interpreter.environment(OPENBLAS_NUM_THREADS="1"),
                cwd="/",
                pass_fds=[theirs.fileno()],
            )
        except BaseException:
            ours.close()
            raise
    return process, ours


def _end(process: subprocess.Popen[bytes], connection: socket.socket, stream: BinaryIO, parent: int) -> None:
    stream.close()
    connection.close()
    if os.getpid() == parent:
        process.kill()  # changes nothing in how it died, if it did
        process.wait()


def _cause(status: int) -> str:
    """Say how a process died, by its exit status as `subprocess` tells it."""
    if status == -signal.SIGKILL:
        return "decoding it was killed (SIGKILL), as the kernel does where memory runs out"
    if status < 0:
        return f"decoding it crashes the image library ({signal.Signals(-status).name})"
    return f"decoding it ends the process, with exit status {status}"


class IsolatedDecoder:
    """`decode` in a child process: a context manager, with the same call.

    Without `with` the child starts with the first image, and ends with the decoder or its process.
    """

    def __init__(self, timeout_seconds: float = DECODE_TIMEOUT_SECONDS) -> None:
        """Prepare; nothing is started yet.

        Args:
            timeout_seconds: An image that takes longer is `crashed`.
        """
        self._timeout_seconds = timeout_seconds
        self._child: ChildProcess | None = None

    def __enter__(self) -> Self:
        """Start the child.

        Raises:
            OSError: No child process can be started here.
        """
        self._running_child()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._child is not None:
            self._child.end()

    def __call__(
        self, content: bytes | None, preprocessing: Preprocessing, **options: Unpack[DecodeOptions]
    ) -> DecodedImage:
        """Decode one image: see `decode`.

        Raises:
            ImageError: As from `decode`; `too_large` also where it wants too much memory; `crashed`.
            OSError: No child process can be started here.
        """
        if not content:
            return decode(content, preprocessing, **options)  # which says why not
        try:
            return self._decode(content, preprocessing, options)
        except ChildDiedError as death:
            if death.is_certain:
                raise ImageError("crashed", str(death)) from None
        try:
            return self._decode(content, preprocessing, options)
        except ChildDiedError as death:
            raise ImageError("crashed", str(death)) from None

    def _decode(self, content: bytes, preprocessing: Preprocessing, options: DecodeOptions) -> DecodedImage:
        return self._running_child().decode(content, preprocessing, options)

    def _running_child(self) -> ChildProcess:
        if self._child is None or not self._child.is_usable:
            self._child = ChildProcess(self._timeout_seconds)
        return self._child
