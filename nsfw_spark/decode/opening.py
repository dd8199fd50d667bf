"""How large an image may be: bytes of its file, pixels, and memory while it is decoded.

Each limit is checked before the work that it bounds; each error names the limit and the option that moves it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from io import BytesIO
from typing import Final

from PIL import Image, UnidentifiedImageError

from nsfw_spark.decode.foreign import HEIC, foreign_format
from nsfw_spark.decode.memory import memory_needed
from nsfw_spark.decode.metadata import bounded
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


_NOT_SUPPORTED: Final = re.compile(
    r"cannot handle \d+-(bit|layer)|unknown pixel mode|unsupported bmp|unknown filter category|"
    r"unsupported .*compression|decoder .* not available|unsupported (image )?format",
    re.IGNORECASE,
)
"""Pillow's and libheif's words for an image that may well be sound, of a kind that they do not know."""


def refused(error: Exception, stage: str, header: ImageHeader | None = None) -> ImageError:
    """Return what the row of an image says that Pillow began to parse.

    Args:
        error: What its plugin raised.
        stage: Where: `damaged header`, `damaged`.
        header: Where it could be read.
    """
    words = in_one_line(error)
    if isinstance(error, MemoryError):
        return ImageError("too_large", "decoding it ran out of memory", header)
    if _NOT_SUPPORTED.search(words):
        return ImageError("unsupported", f"a kind of image that Pillow does not decode: {words}", header)
    return ImageError("undecodable", f"{stage}: {words}", header)


def unidentified(content: bytes, formats: tuple[str, ...]) -> ImageError:
    """Tell a format that is not decoded on purpose, and a damaged image, from something that is no image."""
    foreign = foreign_format(content, formats)
    if foreign is not None:
        return ImageError("unsupported", f"{foreign}; decoded are {', '.join(formats)}")
    for name in formats:
        factory, accept = Image.OPEN[name]
        if accept is None or accept(content[:16]) is not True:
            continue
        try:
            factory(BytesIO(content), "")  # again: `Image.open` keeps to itself what was wrong
        except Exception as error:  # noqa: BLE001 - Pillow's parsers raise anything on damaged headers
            return refused(error, f"damaged: it begins like {name}, and then")
    return ImageError("undecodable", "not an image: it begins like no image format")


def in_one_line(error: Exception) -> str:
    """Return the library's own words: one line, printable, short."""
    words = " ".join(str(error).split()) or type(error).__name__
    return words.encode("ascii", "replace").decode()[:200]


FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""Formats that are decoded. What many cameras write into a .jpg, MPO, is opened as JPEG."""


@dataclass(frozen=True)
class OpenedImage:
    """An image whose header is read and within the limits, and whose pixels are not."""

    image: Image.Image
    """Pillow's; it may have several frames."""
    header: ImageHeader
    content: bytes
    """The encoded image, less what is not parsed."""


def open_image(content: bytes | None, limits: Limits) -> OpenedImage:
    """Read an image's header.

    Args:
        content: The encoded image; None where it could not be read.
        limits: What is decoded at most.

    Raises:
        ImageError: `missing`, `unsupported`, `undecodable` or `too_large`.
    """
    if not content:
        if content is None:
            raise ImageError("missing", "no content: the file could not be read")
        raise ImageError("undecodable", "the file is empty (0 bytes)")
    limits.check_bytes(content)
    content = bounded(content)
    try:
        image = _opened(content)
        header = ImageHeader(image.width, image.height, str(image.format))
        needed = memory_needed(image, content)
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError("too_large", f"{in_one_line(error)} More than {limits.said_of_pixels}") from None
    except UnidentifiedImageError:
        raise unidentified(content, FORMATS) from None
    except Exception as error:  # noqa: BLE001 - Pillow's parsers raise anything on damaged headers
        raise refused(error, "damaged header") from None
    return _within(limits, OpenedImage(image, header, content), needed)


def open_frame(opened: OpenedImage, number: int, limits: Limits) -> OpenedImage:
    """Go on to another frame or page, and read its header.

    Args:
        opened: Its image goes on too: it is one and the same.
        number: Of the frame, from 0 on; those before it may have to be decoded.
        limits: What is decoded at most.

    Raises:
        EOFError: There are fewer.
        ImageError: `undecodable`, `unsupported` or `too_large`.
    """
    image = opened.image
    try:
        image.seek(number)
        header = ImageHeader(image.width, image.height, str(image.format))
        needed = memory_needed(image, opened.content)
    except EOFError:
        raise
    except Exception as error:  # noqa: BLE001 - Pillow's parsers raise anything on damaged frames
        raise refused(error, "damaged frame", opened.header) from None
    return _within(limits, OpenedImage(image, header, opened.content), needed)


def _within(limits: Limits, opened: OpenedImage, needed: int) -> OpenedImage:
    limits.check_pixels(opened.header)
    limits.check_memory(needed, opened.header)
    return opened


def _opened(content: bytes) -> Image.Image:
    try:
        return Image.open(BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError:
        if foreign_format(content, FORMATS) != HEIC:
            raise
    return _opened_heic(content)


def _opened_heic(content: bytes) -> Image.Image:
    """Open a HEIC image without registering its plugin: the importing program may not want it."""
    try:
        from pillow_heif import HeifImageFile
    except ImportError:
        raise ImageError(
            "unsupported", f"{HEIC}: to decode those, pip install 'nsfw-spark[heic]' on all executors"
        ) from None
    image: Image.Image = HeifImageFile(BytesIO(content))
    return image
