"""How large an image may be: bytes of its file, pixels, and memory while it is decoded.

Each limit is checked before the work that it bounds; each error names the limit and the option that moves it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from nsfw_spark.errors import ImageError, ImageHeader

DEFAULT_MAX_PIXELS: Final = 100_000_000
"""Width x height; 400 MB in Pillow, which keeps RGB in 4 bytes. It refuses above 178,956,970 itself."""

DEFAULT_MAX_BYTES: Final = 100_000_000
"""Of the encoded image. A JPEG of `DEFAULT_MAX_PIXELS` has about half of that; and what a file can have
its parser allocate besides pixels, several times its own length, stays within a gigabyte."""

BYTES_PER_PIXEL: Final = 10
"""Of `max_pixels`: what decoding may take. 8 for most (an image, and its copy in RGB), 10 for a progressive
JPEG; formats that take more, such as WebP, have fewer pixels for it. 1 GB by default."""


def too_long(length: int, max_bytes: int) -> ImageError:
    """Return what the row of an encoded image says that is longer than `max_bytes`, whoever notices it."""
    return ImageError("too_large", f"{length} bytes, more than max_bytes = {max_bytes} (--max-bytes)")


@dataclass(frozen=True)
class Limits:
    """What is decoded at most."""

    max_pixels: int = DEFAULT_MAX_PIXELS
    """Width x height; with it grows the memory that decoding may take, `BYTES_PER_PIXEL` each."""
    max_bytes: int = DEFAULT_MAX_BYTES
    """Of the encoded image."""

    def check_bytes(self, content: bytes) -> None:
        """Refuse a file that is too long.

        Raises:
            ImageError: `too_large`.
        """
        if len(content) > self.max_bytes:
            raise too_long(len(content), self.max_bytes)

    def check_pixels(self, header: ImageHeader) -> None:
        """Refuse an image with too many pixels.

        Raises:
            ImageError: `too_large`.
        """
        if header.width * header.height > self.max_pixels:
            size = f"{header.width} x {header.height} pixels"
            raise ImageError("too_large", f"{size}, more than {self.said_of_pixels}", header)

    def check_memory(self, needed: int, header: ImageHeader) -> None:
        """Refuse an image that takes too many bytes of memory to decode.

        Raises:
            ImageError: `too_large`.
        """
        available = BYTES_PER_PIXEL * self.max_pixels
        if needed > available:
            raise ImageError(
                "too_large",
                f"{header.width} x {header.height} pixels of this kind of {header.format} take {needed} "
                f"bytes to decode, more than {available}: {BYTES_PER_PIXEL} x {self.said_of_pixels}",
                header,
            )

    @property
    def said_of_pixels(self) -> str:
        """The limit of pixels, for messages."""
        return f"max_pixels = {self.max_pixels} (--max-pixels)"
