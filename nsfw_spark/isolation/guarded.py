"""`decode` in this process, with a limit on memory and a deadline.

The interpreter cannot stop native code that never returns to it. So the deadline is a timer of the kernel,
and its signal ends the process: only a process that its parent starts again may use this module.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import resource
import signal
from typing import Final, Self, Unpack

from nsfw_spark.decode import DEFAULT_MAX_PIXELS, DecodedImage, DecodeOptions, decode
from nsfw_spark.errors import ImageError, ImageHeader
from nsfw_spark.model_card import Preprocessing

DECODE_TIMEOUT_SECONDS: Final = 30.0
"""An image of 100 megapixels takes 1 to 6 seconds, depending on its format."""

_BYTES_PER_PIXEL: Final = 20  # measured: docs/design.md
_BASE_BYTES: Final = 1 << 28  # for any image: threads of the AVIF decoder, buffers beside the pixels
_STATM: Final = "/proc/self/statm"
_DATA: Final = 5  # the column that RLIMIT_DATA limits (proc(5)), in pages
_PAGE: Final = resource.getpagesize()
_STDERR: Final = 2


class GuardedDecoder:
    """`decode` with limits: a context manager, with the same call.

    An image that needs more memory than an image of `max_pixels` is `too_large`. The process ends if the
    library does not survive the limit, or at the deadline. Without /proc there is no limit on memory; with
    another handler for SIGALRM there is no deadline.
    """

    def __init__(self, timeout_seconds: float = DECODE_TIMEOUT_SECONDS) -> None:
        """Prepare. An image that takes longer makes the kernel end this process, with SIGALRM."""
        self._timeout_seconds = timeout_seconds
        self._has_timer = False
        self._statm: int | None = None

    def __enter__(self) -> Self:
        self._has_timer = signal.getsignal(signal.SIGALRM) is signal.SIG_DFL
        if self._has_timer:
            # Logs the stack without the interpreter's help; then the signal's default action follows.
            faulthandler.register(signal.SIGALRM, file=_STDERR, all_threads=False, chain=True)
        with contextlib.suppress(OSError):
            self._statm = os.open(_STATM, os.O_RDONLY | os.O_CLOEXEC)
        return self

    def __exit__(self, *_: object) -> None:
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
            ImageError: As from `decode`; also `too_large` if it needs too much memory.
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
    """Return how many bytes of memory decoding one image may add to the process."""
    return _BASE_BYTES + _BYTES_PER_PIXEL * max_pixels


def _too_much(allowed: int, max_pixels: int, header: ImageHeader | None) -> ImageError:
    memory = f"decoding it takes more than {allowed / 1e9:.1f} GB of memory"
    return ImageError("too_large", f"{memory}, the limit of max_pixels = {max_pixels} (--max-pixels)", header)
