"""Opens an image: reads its header and checks all limits before any pixel is decoded.

In: encoded bytes and `Limits`. Out: an `OpenedImage`, or an `ImageError` that names the reason and, for a
limit, the option that raises it.
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

FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""The formats that are decoded. Pillow opens MPO, which many cameras write into a .jpg, as JPEG."""

DEFAULT_MAX_PIXELS: Final = 100_000_000
"""Width x height; 400 MB in Pillow, which keeps RGB in 4 bytes. Pillow itself refuses above 178,956,970."""

DEFAULT_MAX_BYTES: Final = 100_000_000
"""Length of an encoded image. A JPEG of `DEFAULT_MAX_PIXELS` has about half of it. A parser may allocate
several times the length besides the pixels: that stays below a gigabyte."""

BYTES_PER_PIXEL: Final = 10
"""Memory that decoding may take for each of `max_pixels`. Most kinds take 8 (an image and its RGB copy), a
progressive JPEG 10. Kinds that take more, such as WebP, may have fewer pixels. 1 GB by default."""


@dataclass(frozen=True)
class Limits:
    """The largest image that is decoded."""

    max_pixels: int = DEFAULT_MAX_PIXELS
    """Width x height. Decoding may take `BYTES_PER_PIXEL` bytes of memory for each."""
    max_bytes: int = DEFAULT_MAX_BYTES
    """Length of the encoded image."""

    @property
    def pixels(self) -> str:
        """The limit of pixels and its option, for messages."""
        return f"max_pixels = {self.max_pixels} (--max-pixels)"

    def check(self, header: ImageHeader, needed: int) -> None:
        """Refuse an image with too many pixels, or one that needs too many bytes of memory.

        Raises:
            ImageError: `too_large`.
        """
        size = f"{header.width} x {header.height} pixels"
        if header.width * header.height > self.max_pixels:
            raise ImageError("too_large", f"{size}, more than {self.pixels}", header)
        available = BYTES_PER_PIXEL * self.max_pixels
        if needed > available:
            raise ImageError(
                "too_large",
                f"{size} of this kind of {header.format} take {needed} bytes to decode, more than "
                f"{available}: {BYTES_PER_PIXEL} x {self.pixels}",
                header,
            )


@dataclass(frozen=True)
class OpenedImage:
    """An image within the limits; its header is read, its pixels are not decoded."""

    image: Image.Image
    """Pillow's; it may have several frames."""
    header: ImageHeader
    content: bytes
    """The encoded image, without the metadata that is not parsed."""


def open_image(content: bytes | None, limits: Limits) -> OpenedImage:
    """Open an image at its first frame; `content` is None if the file could not be read.

    Raises:
        ImageError: `missing`, `unsupported`, `undecodable` or `too_large`.
    """
    if content is None:
        raise ImageError("missing", "no content: the file could not be read")
    if not content:
        raise ImageError("undecodable", "the file is empty (0 bytes)")
    if len(content) > limits.max_bytes:
        raise too_long(len(content), limits.max_bytes)
    content = bounded(content)
    try:
        return _checked(_open(content), content, limits)
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError("too_large", f"{_words(error)} More than {limits.pixels}") from None
    except UnidentifiedImageError:
        raise _unidentified(content) from None
    except Exception as error:  # noqa: BLE001 - Pillow's parsers raise anything on damaged headers
        raise refused(error, "damaged header") from None


def open_frame(opened: OpenedImage, number: int, limits: Limits) -> OpenedImage:
    """Move to another frame or page, counted from 0, and read its header.

    `opened` moves too: both share Pillow's image. Pillow may have to decode the frames between.

    Raises:
        EOFError: The image has fewer frames.
        ImageError: `undecodable`, `unsupported` or `too_large`.
    """
    try:
        opened.image.seek(number)
        return _checked(opened.image, opened.content, limits)
    except (EOFError, ImageError):
        raise
    except Exception as error:  # noqa: BLE001 - Pillow's parsers raise anything on damaged frames
        raise refused(error, "damaged frame", opened.header) from None


def too_long(length: int, max_bytes: int) -> ImageError:
    """Return the error of an image longer than `max_bytes`; readers that know the length use it too."""
    return ImageError("too_large", f"{length} bytes, more than max_bytes = {max_bytes} (--max-bytes)")


_NOT_SUPPORTED: Final = re.compile(
    r"cannot handle \d+-(bit|layer)|unknown pixel mode|unsupported bmp|unknown filter category|"
    r"unsupported .*compression|decoder .* not available|unsupported (image )?format|"
    r"conversion from \S+ to \S+ not supported",
    re.IGNORECASE,
)
"""Messages of Pillow and libheif about sound images of a kind that they do not decode."""


def refused(error: Exception, stage: str, header: ImageHeader | None = None) -> ImageError:
    """Return the error of an image that Pillow could not decode at a stage, such as `damaged header`."""
    words = _words(error)
    if isinstance(error, MemoryError):
        return ImageError("too_large", "decoding it ran out of memory", header)
    if _NOT_SUPPORTED.search(words):
        return ImageError("unsupported", f"a kind of image that Pillow does not decode: {words}", header)
    return ImageError("undecodable", f"{stage}: {words}", header)


def _checked(image: Image.Image, content: bytes, limits: Limits) -> OpenedImage:
    header = ImageHeader(image.width, image.height, str(image.format))
    limits.check(header, memory_needed(image, content))
    return OpenedImage(image, header, content)


def _open(content: bytes) -> Image.Image:
    try:
        return Image.open(BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError:
        if foreign_format(content, FORMATS) != HEIC:
            raise
    try:
        from pillow_heif import (
            HeifImageFile,
        )  # not registered with Pillow: the importing program may not want it
    except ImportError:
        raise ImageError(
            "unsupported", f"{HEIC}: to decode those, pip install 'nsfw-spark[heic]' on all executors"
        ) from None
    image: Image.Image = HeifImageFile(BytesIO(content))
    return image


def _unidentified(content: bytes) -> ImageError:
    """Tell a format that is not decoded, and a damaged image, from a file that is no image."""
    foreign = foreign_format(content, FORMATS)
    if foreign is not None:
        return ImageError("unsupported", f"{foreign}; decoded formats: {', '.join(FORMATS)}")
    for name in FORMATS:
        factory, accept = Image.OPEN[name]
        if accept is None or accept(content[:16]) is not True:
            continue
        try:
            factory(BytesIO(content), "")  # again: `Image.open` does not pass on the reason
        except Exception as error:  # noqa: BLE001 - Pillow's parsers raise anything on damaged headers
            return refused(error, f"damaged: it begins like {name}, but cannot be read")
    return ImageError("undecodable", "not an image: its first bytes match no known format")


def _words(error: Exception) -> str:
    """Return the library's message: one line, printable, short. A number alone gets the exception's name."""
    words = " ".join(str(error).split()).encode("ascii", "replace").decode()[:200]
    if re.search("[A-Za-z]", words):
        return words
    return f"{type(error.__cause__ or error).__name__} {words}".rstrip()
