"""Why Pillow did not decode an image: its words, and the status that they mean.

In: the exception of a plugin, or bytes that no plugin took. Out: an `ImageError`.
"""

from __future__ import annotations

import re
from io import BytesIO
from typing import Final

from PIL import Image

from nsfw_spark.decode.foreign import foreign_format
from nsfw_spark.errors import ImageError, ImageHeader

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
