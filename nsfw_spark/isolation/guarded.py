"""`decode` under a limit on memory and a deadline, in this process.

Native code that never returns to the interpreter cannot be stopped from within it, so the deadline is a timer
of the kernel, whose signal ends the process. Only a process that somebody starts again may use this.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import resource
import signal
from types import TracebackType
from typing import Final, Self, Unpack

from nsfw_spark.decode import DEFAULT_MAX_PIXELS, DecodedImage, DecodeOptions, decode
from nsfw_spark.errors import ImageError, ImageHeader
from nsfw_spark.model_card import Preprocessing

DECODE_TIMEOUT_SECONDS: Final = 30.0
"""100 megapixels take 1 to 6, by format."""

_BYTES_PER_PIXEL: Final = 20  # measured: docs/design.md
_BYTES_FOR_ANY: Final = 1 << 28  # threads of the AVIF decoder, chunks beside the pixels
_STATM: Final = "/proc/self/statm"
_DATA: Final = 5  # the column with what RLIMIT_DATA counts (proc(5)), in pages
_PAGE: Final = resource.getpagesize()
_STDERR: Final = 2


class GuardedDecoder:
    """`decode`, guarded: a context manager, with the same call.

    An image that wants more memory than one of `max_pixels` needs is `too_large`; where the library does not
    survive that, or the deadline passes, this process ends. Memory has no limit where there is no /proc, time
    none where SIGALRM has a handler already.
    """

    def __init__(self, timeout_seconds: float = DECODE_TIMEOUT_SECONDS) -> None:
        """Prepare.

        Args:
            timeout_seconds: After so long the kernel ends this process, with SIGALRM.
        """
        self._timeout_seconds = timeout_seconds
        self._has_timer = False
        self._statm: int | None = None

    def __enter__(self) -> Self:
        self._has_timer = signal.getsignal(signal.SIGALRM) is signal.SIG_DFL
        if self._has_timer:
            # Says where it was, in the log, without the interpreter's help; then the default action follows.
            faulthandler.register(signal.SIGALRM, file=_STDERR, all_threads=False, chain=True)
        with contextlib.suppress(OSError):
            self._statm = os.open(_STATM, os.O_RDONLY | os.O_CLOEXEC)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._has_timer:
            faulthandler.unregister(signal.SIGALRM)
            self._has_timer = False
        if self._statm is not None:
            os.close(self._statm)
            self._statm = None

    def __call__(
        self, content: bytes | None, preprocessing: Preprocessing, **options: Unpack[DecodeOptions]
    ) -> DecodedImage:
        """Decode one image: see `decode`.

        Raises:
            ImageError: As from `decode`; `too_large` also where it wants too much memory.
        """
        max_pixels = options.get("max_pixels", DEFAULT_MAX_PIXELS)
        allowed, before = memory_bytes(max_pixels), resource.getrlimit(resource.RLIMIT_DATA)
        self._begin(allowed, before)
        try:
            return decode(content, preprocessing, **options)
        except MemoryError:
            raise _too_much(allowed, max_pixels, None) from None
        except ImageError as error:
            if isinstance(error.__context__, MemoryError):
                raise _too_much(allowed, max_pixels, error.header) from None
            raise
        finally:
            if self._has_timer:
                signal.setitimer(signal.ITIMER_REAL, 0)
            if self._statm is not None:
                resource.setrlimit(resource.RLIMIT_DATA, before)

    def _begin(self, allowed: int, before: tuple[int, int]) -> None:
        if self._statm is not None:
            held = int(os.pread(self._statm, 128, 0).split()[_DATA]) * _PAGE
            stricter = [held + allowed, *(limit for limit in before if limit != resource.RLIM_INFINITY)]
            resource.setrlimit(resource.RLIMIT_DATA, (min(stricter), before[1]))
        if self._has_timer:
            signal.setitimer(signal.ITIMER_REAL, self._timeout_seconds)


def memory_bytes(max_pixels: int) -> int:
    """Return how much memory decoding one image may take, beyond what the process holds."""
    return _BYTES_FOR_ANY + _BYTES_PER_PIXEL * max_pixels


def _too_much(allowed: int, max_pixels: int, header: ImageHeader | None) -> ImageError:
    taken = f"decoding it takes more than {allowed / 1e9:.1f} GB of memory"
    return ImageError("too_large", f"{taken}, what max_pixels = {max_pixels} (--max-pixels) allows", header)
