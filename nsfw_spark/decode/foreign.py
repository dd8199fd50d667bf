"""Says what a file is that is not decoded on purpose: a video, a document, an image of another format.

From its first bytes alone: nothing of it is parsed.
"""

from __future__ import annotations

from typing import Final

from PIL import Image

HEIC: Final = "a HEIC image"

_SIGNATURES: Final = {
    b"%pdf": "a PDF document",
    b"%!ps": "a PostScript document",
    b"<svg": "an SVG drawing",
    b"<?xml": "an XML or SVG document",
    b"<!--": "an XML, SVG or HTML document",
    b"<!doctype": "an HTML page",
    b"<html": "an HTML page",
    b"<head": "an HTML page",
    b"<body": "an HTML page",
    b"<script": "an HTML page",
    b'{"': "a JSON document",
    b"pk\x03\x04": "a ZIP archive",
    b"rar!\x1a\x07": "a RAR archive",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"\x1f\x8b": "a gzip archive",
    b"8bps": "a PSD image",
    b"\x00\x00\x00\x0cjp  ": "a JPEG 2000 image",
    b"\xff\x4f\xff\x51": "a JPEG 2000 image",
    b"\x00\x00\x00\x0cjxl ": "a JPEG XL image",
    b"\xff\x0a": "a JPEG XL image",
    b"ii\xbc\x01": "a JPEG XR image",
    b"\x00\x00\x01\x00": "an ICO image",
    b"\x76\x2f\x31\x01": "an OpenEXR image",
    b"#?radiance": "a Radiance HDR image",
    b"bpg\xfb": "a BPG image",
    b"fujifilmccd-raw": "a camera's raw image",
    b"\x1ae\xdf\xa3": "a Matroska or WebM video",
    b"flv\x01": "an FLV video",
    b"oggs": "an Ogg video or sound",
    b"id3": "an MP3 sound",
    b"\x7felf": "a program",
    b"mz\x90\x00": "a program",
}
"""First bytes, in lower case, of what lies in image directories."""
_RIFF: Final = {b"AVI ": "an AVI video", b"WAVE": "a WAV sound"}
_HEIF_BRANDS: Final = frozenset({b"hei", b"hev", b"mif", b"msf"})


def foreign_format(content: bytes, decoded: tuple[str, ...]) -> str | None:
    """Return what the file is, `a PDF document`, or None where that is not known.

    Args:
        content: The file.
        decoded: Pillow's names of the formats that are decoded.
    """
    head = content[:64].removeprefix(b"\xef\xbb\xbf").lstrip().lower()  # UTF-8's byte order mark
    for signature, name in _SIGNATURES.items():
        if head.startswith(signature):
            return name
    if content[4:8] == b"ftyp" and content[8:12] not in {b"avif", b"avis"}:
        # ISO base media: the brand says whether it is an image or a video.
        return HEIC if content[8:11] in _HEIF_BRANDS else "an MP4 or QuickTime video"
    if content[:4] == b"RIFF" and content[8:12] in _RIFF:
        return _RIFF[content[8:12]]
    return _known_to_pillow(content[:16], decoded)


def _known_to_pillow(prefix: bytes, decoded: tuple[str, ...]) -> str | None:
    """Ask Pillow's other plugins whether the file begins as theirs do; they get no more than that."""
    for name in Image.ID:
        accept = Image.OPEN[name][1]
        try:
            known = name not in decoded and accept is not None and accept(prefix) is True
        except Exception:  # noqa: BLE001, S112 - some expect more bytes than there are
            continue
        if known:
            return f"an image of the format {name}"
    return None
