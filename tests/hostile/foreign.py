"""Files named like images that are no images, or images of formats that are not decoded."""

from __future__ import annotations

import gzip
import random
import zipfile
from collections.abc import Iterator
from io import BytesIO

from tests.hostile.made import SEEDS, UNDECODABLE, UNSUPPORTED, Hostile

_SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><script>while(1){}</script></svg>'
_ENTITIES = (
    b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;">]><svg/>'
)

_UNSUPPORTED = {
    "drawing.svg": _SVG,
    "entities.svg": _ENTITIES,
    "after-a-mark.svg": b"\xef\xbb\xbf\n " + _SVG,
    "after-a-comment.svg": b"<!-- made by hand -->" + _SVG,
    "drawing.svgz": gzip.compress(_SVG, mtime=0),
    "page.html": b"<!DOCTYPE html><html><body><img src=x></body></html>",
    "error-404.html": b"<HTML><HEAD><TITLE>404 Not Found</TITLE></HEAD></HTML>",
    "answer.json": b'{"error": "rate limited"}',
    "paper.pdf": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj <</Type/Catalog>> endobj\ntrailer<</Root 1 0 R>>",
    "figure.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%id) (w) file\n",
    "film.mp4": b"\x00\x00\x00\x20ftypisom\x00\x00\x02\x00isomiso2avc1mp41" + bytes(100),
    "film.mov": b"\x00\x00\x00\x14ftypqt  \x00\x00\x02\x00qt  " + bytes(100),
    "film.webm": b"\x1aE\xdf\xa3\x9fB\x86\x81\x01" + bytes(100),
    "film.avi": b"RIFF\x00\x01\x00\x00AVI LIST" + bytes(100),
    "sound.wav": b"RIFF\x00\x01\x00\x00WAVEfmt " + bytes(100),
    "film.ogv": b"OggS\x00\x02" + bytes(100),
    "icon.ico": b"\x00\x00\x01\x00\x01\x00\x10\x10" + bytes(100),
    "layers.psd": b"8BPS\x00\x01" + bytes(100),
    "picture.jp2": b"\x00\x00\x00\x0cjP  \r\n\x87\n" + bytes(100),
    "picture.jxl": b"\xff\x0a" + bytes(100),
    "picture.jxr": b"II\xbc\x01" + bytes(100),
    "picture.exr": b"\x76\x2f\x31\x01\x02\x00\x00\x00" + bytes(100),
    "picture.ppm": b"P6 2000000000 2000000000 255\n",
    "drawing.wmf": b"\xd7\xcd\xc6\x9a\x00\x00" + bytes(100),
    "program.elf": b"\x7fELF\x02\x01\x01" + bytes(100),
    "archive.rar": b"Rar!\x1a\x07\x01\x00" + bytes(100),
}

_UNDECODABLE = {
    "empty": b"",
    "one-byte": b"\xff",
    "zeros": bytes(5000),
    "text.txt": b"https://example.org/photo.jpg\n" * 10,
    "only-a-jpeg-marker": b"\xff\xd8\xff",
    "jpeg-marker-then-text": b"\xff\xd8\xff\xe0" + b"this is no JPEG " * 20,
    "only-a-png-signature": b"\x89PNG\r\n\x1a\n",
    "gif-then-html": b"GIF89a<html><script>alert(1)</script></html>",
    "riff-without-webp": b"RIFF\x10\x00\x00\x00WEBPVP8 \x00\x00\x00\x00",
    "bm-then-text": b"BMW and other makes of cars",
    "png-with-windows-newlines": SEEDS["colour.png"].replace(b"\n", b"\r\n"),
    "jpeg-as-text": SEEDS["baseline.jpg"].decode("latin-1").encode("utf-8"),
}


def foreign() -> Iterator[Hostile]:
    """Yield other kinds of files, all named .jpg."""
    for name, content in (_UNSUPPORTED | {"archive.zip": _zip()}).items():
        yield Hostile(f"renamed-{name}.jpg", content, UNSUPPORTED)
    for name, content in _UNDECODABLE.items():
        yield Hostile(f"renamed-{name}.jpg", content, UNDECODABLE)
    draw = random.Random(0)  # noqa: S311 - the same bytes in each run
    for i in range(5):
        yield Hostile(f"random-{i}.jpg", b"\x81" + draw.randbytes(3000), UNDECODABLE)


def _zip() -> bytes:
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(zipfile.ZipInfo("photo.jpg"), SEEDS["baseline.jpg"])
    return buffer.getvalue()
