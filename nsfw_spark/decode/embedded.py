"""Finds the small pictures that lie within an encoded image: what file managers and cameras show of it.

In: an image that Pillow has opened. Out: encoded images, of which nothing is known yet.
"""

from __future__ import annotations

from typing import Any, Final

from PIL import Image

from nsfw_spark.decode.directories import Directories
from nsfw_spark.decode.opening import OpenedImage

MOST_THUMBNAILS: Final = 2
"""One in EXIF, one of Photoshop's."""

_START, _LENGTH = 0x0201, 0x0202  # EXIF tags: JPEGInterchangeFormat, JPEGInterchangeFormatLength
_RESOURCE, _RESOURCE_HEADER = 0x040C, 28  # Photoshop's thumbnail, and bytes before its JPEG
_MP_HEADER: Final = b"MPF\0"
_MP_ENTRIES: Final = 0xB002


def thumbnails(image: Image.Image) -> list[bytes]:
    """Return the thumbnails in an image's metadata.

    Args:
        image: At its first frame; further ones have metadata of their own.

    Source:
        EXIF 2.32, 4.5.5 and 4.6.4; Adobe Photoshop File Formats Specification, Thumbnail Resource Format.
    """
    exif, resources = image.info.get("exif"), image.info.get("photoshop")
    found = [_in_exif(exif) if isinstance(exif, bytes) else None]
    if isinstance(resources, dict) and isinstance(resources.get(_RESOURCE), bytes):
        found.append(resources[_RESOURCE][_RESOURCE_HEADER:])
    return [thumbnail for thumbnail in found if thumbnail]


def _in_exif(exif: bytes) -> bytes | None:
    """Return what the second directory points at."""
    directories = Directories.of(exif.removeprefix(b"Exif\0\0"))
    if directories is None or (second := directories.after(directories.first)) is None:
        return None
    values = {tag: value for tag, _, _, value in directories.entries(second)}
    start, length = values.get(_START, 0), values.get(_LENGTH, 0)
    return directories.content[start : start + length]


def pictures(opened: OpenedImage) -> list[int]:
    """Return where the pictures of an MPO begin in its content, bytes; the first included.

    A JPEG says itself where it ends: what the MPO says of its size is not asked for, as it need not be true.

    Source:
        CIPA DC-007, 5.2.3.3: offsets count from the header of the MP extensions, the first picture's is 0.
    """
    entries: list[dict[str, Any]] = opened.image.mpinfo[_MP_ENTRIES]  # type: ignore[attr-defined]
    origin = opened.content.find(_MP_HEADER + opened.image.info["mp"]) + len(_MP_HEADER)
    return [0, *(origin + entry["DataOffset"] for entry in entries[1:])]
