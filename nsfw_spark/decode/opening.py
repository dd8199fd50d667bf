"""Opens one encoded image: checks what it is and how large, before any pixel is decoded.

An allow-list decides which of Pillow's parsers may see the bytes. HEIC is opened where the extra `heic` is
installed; without it, it is `unsupported`.
"""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from typing import Final

from PIL import Image, UnidentifiedImageError

from nsfw_spark.decode.foreign import HEIC, foreign_format
from nsfw_spark.decode.limits import Limits
from nsfw_spark.decode.memory import memory_needed
from nsfw_spark.decode.metadata import bounded
from nsfw_spark.decode.reasons import in_one_line, refused, unidentified
from nsfw_spark.errors import ImageError, ImageHeader

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
