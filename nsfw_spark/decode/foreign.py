"""Names the format of a file that is not decoded: a video, a document, an image of another format.

In: the file. Out: a name such as `a PDF document`, or None. Compares bytes only and parses nothing.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from PIL import Image

HEIC: Final = "a HEIC image"

_SIGNATURES: Final = {
    "a PDF document": (b"%pdf",),
    "a PostScript document": (b"%!ps",),
    "an SVG drawing": (b"<svg",),
    "an XML or SVG document": (b"<?xml",),
    "an XML, SVG or HTML document": (b"<!--",),
    "an HTML page": (b"<!doctype", b"<html", b"<head", b"<body", b"<script"),
    "a JSON document": (b'{"',),
    "a ZIP archive": (b"pk\x03\x04",),
    "a RAR archive": (b"rar!\x1a\x07",),
    "a 7z archive": (b"7z\xbc\xaf\x27\x1c",),
    "a gzip archive": (b"\x1f\x8b",),
    "an OLE file (a FlashPix image or an Office document)": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",),
    "a PSD image": (b"8bps",),
    "a JPEG 2000 image": (b"\x00\x00\x00\x0cjp  ", b"\xff\x4f\xff\x51"),
    "a JPEG XL image": (b"\x00\x00\x00\x0cjxl ", b"\xff\x0a"),
    "a JPEG XR image": (b"ii\xbc\x01",),
    "an ICO image": (b"\x00\x00\x01\x00",),
    "an OpenEXR image": (b"\x76\x2f\x31\x01",),
    "a Radiance HDR image": (b"#?radiance",),
    "a BPG image": (b"bpg\xfb",),
    "a QOI image": (b"qoif",),
    "an IM image": (b"image type: ",),
    "a camera's raw image": (b"fujifilmccd-raw",),
    "a Matroska or WebM video": (b"\x1ae\xdf\xa3",),
    "an FLV video": (b"flv\x01",),
    "an Ogg video or sound": (b"oggs",),
    "an MP3 sound": (b"id3",),
    "a program": (b"\x7felf", b"mz\x90\x00"),
}
"""First bytes, in lower case, of files that lie in image directories."""
_RIFF: Final = {b"AVI ": "an AVI video", b"WAVE": "a WAV sound"}
_AVIF_BRANDS: Final = frozenset({b"avif", b"avis"})
_HEIF_BRANDS: Final = frozenset({b"hei", b"hev", b"mif", b"msf"})
_TARGA: Final = struct.Struct("<3B2HB4H2B")
_SPIDER: Final = 27  # floats


def foreign_format(content: bytes, decoded: tuple[str, ...]) -> str | None:
    """Return the name of a file's format, such as `a PDF document`; None for `decoded` and unknown ones."""
    return next(_names(content, decoded), None)


def is_image(start: bytes) -> bool:
    """Whether a file's first 16 bytes are those of an image; for names without a suffix."""
    return (
        start.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*"))
        or (start[:4], start[8:12]) == (b"RIFF", b"WEBP")
        or (start[:2], start[6:10]) == (b"BM", bytes(4))
        or (start[4:8] == b"ftyp" and (start[8:12] in _AVIF_BRANDS or start[8:11] in _HEIF_BRANDS))
    )


def _names(content: bytes, decoded: tuple[str, ...]) -> Iterator[str]:
    """Yield the names of the formats that match; the first counts."""
    head = content[:64].removeprefix(b"\xef\xbb\xbf").lstrip().lower()  # UTF-8's byte order mark
    yield from (name for name, signatures in _SIGNATURES.items() if head.startswith(signatures))
    if content[4:8] == b"ftyp" and content[8:12] not in _AVIF_BRANDS:
        # ISO base media: the brand tells an image from a video.
        yield HEIC if content[8:11] in _HEIF_BRANDS else "an MP4 or QuickTime video"
    if content[:4] == b"RIFF" and content[8:12] in _RIFF:
        yield _RIFF[content[8:12]]
    if content.startswith(b"ustar", 257):
        yield "a tar archive"
    if content.startswith(b"PCD_", 2048):
        yield "a Kodak PhotoCD image"
    if re.match(rb"(\*[^\n]{,99}\n)*width +\d+\n", content[:4096]):
        yield "an IM Tools image"
    if _is_targa(content):
        yield "a TGA image"
    if _is_spider(content):
        yield "a SPIDER image"
    for name in Image.ID:  # Pillow's other plugins get the first bytes and no others
        accept = Image.OPEN[name][1]
        with suppress(Exception):  # some expect more bytes than there are
            if name not in decoded and accept is not None and accept(content[:16]) is True:
                yield f"an image of the format {name}"


def _is_targa(content: bytes) -> bool:
    """Tell whether the header's numbers are plausible: a Targa has no signature, only newer ones a footer."""
    if len(content) < _TARGA.size:
        return False
    _, has_map, kind, *colour_map, _, _, width, height, depth, flags = _TARGA.unpack_from(content)
    return content.endswith(b"TRUEVISION-XFILE.\0") or (
        kind in {1, 2, 3, 9, 10, 11}
        and has_map == (kind in {1, 9})
        and (colour_map[2] in {8, 15, 16, 24, 32} if has_map else not any(colour_map))
        and min(width, height) > 0
        and depth in {1, 8, 15, 16, 24, 32}
        and flags < 1 << 6
    )


def _is_spider(content: bytes) -> bool:
    from PIL.SpiderImagePlugin import isSpiderHeader

    if len(content) < 4 * _SPIDER:
        return False
    return any(isSpiderHeader(struct.unpack_from(f"{order}{_SPIDER}f", content)) for order in "<>")
