"""The directories of a TIFF, which EXIF has too: where they are, and what is written in them.

In: a file, or EXIF from within one. Out: numbers, as far as the bytes go, whatever they say.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Self

from PIL import PngImagePlugin

from nsfw_spark.errors import ImageError

_ORDERS: Final = {b"II*\0": "<", b"MM\0*": ">", b"II+\0": "<", b"MM\0+": ">", b"MM*\0": ">", b"II\0*": "<"}
_BIG: Final = 43  # BigTIFF's version number; TIFF's is 42
_LONGEST_HEADER: Final = 16  # bytes


@dataclass(frozen=True)
class Directories:
    """A TIFF's, by where they begin.

    Source:
        TIFF 6.0, section 2; BigTIFF, whose fields are longer.
    """

    content: bytes
    first: int
    """Where the first directory begins, bytes."""
    _count: struct.Struct
    _entry: struct.Struct
    _link: struct.Struct

    @classmethod
    def of(cls, content: bytes) -> Self | None:
        """Return those of a file; None where it does not begin as a TIFF does."""
        order = _ORDERS.get(content[:4])
        if order is None or len(content) < _LONGEST_HEADER:
            return None
        is_big = content[2] == _BIG  # as Pillow tells
        count, entry, link = ("Q", "HHQQ", "Q") if is_big else ("H", "HHLL", "L")
        fields = [struct.Struct(order + field) for field in (count, entry, link)]
        return cls(content, fields[2].unpack_from(content, 8 if is_big else 4)[0], *fields)

    def entries(self, directory: int) -> Iterator[tuple[int, int, int, int]]:
        """Yield tag, type, number of values, and value or offset of a directory's entries."""
        start = directory + self._count.size
        if start > len(self.content):
            return
        (num_entries,) = self._count.unpack_from(self.content, directory)
        num_entries = min(num_entries, (len(self.content) - start) // self._entry.size)
        for i in range(num_entries):
            yield self._entry.unpack_from(self.content, start + i * self._entry.size)

    def after(self, directory: int) -> int | None:
        """Return where the next directory begins; None after the last."""
        start = directory + self._count.size
        if start > len(self.content):
            return None
        (num_entries,) = self._count.unpack_from(self.content, directory)
        end = start + num_entries * self._entry.size
        if end + self._link.size > len(self.content):
            return None
        return self._link.unpack_from(self.content, end)[0] or None


_PNG: Final = b"\x89PNG\r\n\x1a\n"
_TEXTS: Final = frozenset({b"iCCP", b"zTXt", b"iTXt", b"tEXt"})
_SMALLEST_HUGE: Final = 1000  # bytes; deflate makes at most 1,032 of one, and Pillow takes a megabyte

_MOST_VALUES: Final = 1_000_000
"""Of all tags together. An image of 100 million pixels has at most 400,000 tiles; a value takes 40 bytes in
Python, and a tile 300."""
_ONE_BYTE: Final = frozenset({1, 2, 7})  # types whose values stay bytes
_SUB_DIRECTORIES: Final = frozenset({34665, 34853, 40965})  # EXIF, GPS, interoperability: Pillow reads all

_MOST_EXIF: Final = 16_000_000
"""Bytes in a JPEG; Pillow joins its parts, and copies all before each."""
_MOST_SCANS: Final = 100
"""Of a progressive JPEG; encoders write about ten. Each costs as much time as an image, and a few bytes."""

_APP1, _START_OF_SCAN = 0xE1, 0xDA
_PROGRESSIVE: Final = frozenset({0xC2, 0xC6, 0xCA, 0xCE})


def bounded(content: bytes) -> bytes:
    """Return what Pillow may parse.

    Args:
        content: An encoded image of any format.

    Raises:
        ImageError: `too_large`.
    """
    if content.startswith(_PNG):
        return _without_huge_texts(content)
    if content.startswith(b"\xff\xd8\xff"):
        _check_jpeg(content)
    else:
        _check_tags(content)
    return content


def _without_huge_texts(content: bytes) -> bytes:
    """Leave out texts and profiles where one inflates to more than Pillow takes, or all are more."""
    texts = [(start, end) for name, start, end in _chunks(content) if name in _TEXTS]
    whole = sum(end - start for start, end in texts)
    if whole < PngImagePlugin.MAX_TEXT_MEMORY // 2 and not any(_is_huge(content, *text) for text in texts):
        return content
    kept, position = [], 0
    for start, end in texts:
        kept.append(content[position:start])
        position = end
    return b"".join([*kept, content[position:]])


def _chunks(content: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield the name, start and end of a PNG's chunks, as far as they go."""
    position = len(_PNG)
    while position + 8 <= len(content):
        length, name = struct.unpack_from(">I4s", content, position)
        yield name, position, position + length + 12
        position += length + 12


def _is_huge(content: bytes, start: int, end: int) -> bool:
    """Tell whether a text or profile inflates to more than Pillow takes; a small one cannot."""
    if end - start < _SMALLEST_HUGE:
        return False
    inflating = zlib.decompressobj()
    try:
        inflating.decompress(_compressed(content[start + 4 : end - 4]), PngImagePlugin.MAX_TEXT_CHUNK)
    except zlib.error:
        return False
    return bool(inflating.unconsumed_tail)


def _compressed(chunk: bytes) -> bytes:
    """Return the compressed part of a chunk of _TEXTS, which begins with its name; empty where there is none.

    Source:
        PNG specification, third edition, 11.3.2.3 iCCP and 11.3.3 textual information.
    """
    name, (_, _, rest) = chunk[:4], chunk[4:].partition(b"\0")
    if name == b"iTXt":
        return rest[2:].split(b"\0", 2)[-1] if rest[:1] == b"\1" else b""
    return b"" if name == b"tEXt" else rest[1:]


def num_pages(content: bytes, most: int) -> int:
    """Count the pages of a TIFF.

    Args:
        content: The encoded image; where it is no TIFF, it has none.
        most: How many are counted at most; fewer, where their tags together have more values than are read.
    """
    directories = Directories.of(content)
    page, left, seen = directories and directories.first, _MOST_VALUES, set[int]()
    while directories is not None and page and page not in seen and len(seen) < most:
        left -= _num_values(directories, page)
        if left < 0:
            break
        seen.add(page)
        page = directories.after(page)
    return len(seen)


def _check_tags(content: bytes) -> None:
    """Refuse a TIFF whose tags have more values than any image needs."""
    directories = Directories.of(content)
    if directories is None:
        return
    num_values = _num_values(directories, directories.first)
    if num_values > _MOST_VALUES:
        raise ImageError(
            "too_large", f"its TIFF tags have {num_values} values or more; read are {_MOST_VALUES}"
        )


def _num_values(directories: Directories, page: int) -> int:
    """Count the values of a page's tags, up to one more than are read, or a few."""
    waiting, seen, num_values = [page], set(), 0
    while waiting:
        directory = waiting.pop()
        if directory in seen:  # they may point at each other
            continue
        seen.add(directory)
        for tag, kind, number, value in directories.entries(directory):
            num_values += 1 if kind in _ONE_BYTE else max(1, number)
            if num_values > _MOST_VALUES:
                return num_values
            if tag in _SUB_DIRECTORIES:
                waiting.append(value)
    return num_values


def _check_jpeg(content: bytes) -> None:
    """Refuse a JPEG with more EXIF than Pillow should join, or more scans than libjpeg should decode."""
    length, is_progressive = 0, False
    for marker, start, size in _segments(content):
        is_progressive = is_progressive or marker in _PROGRESSIVE
        if marker == _APP1 and content[start : start + 4] == b"Exif":
            length += size
    if length > _MOST_EXIF:
        raise ImageError("too_large", f"{length} bytes of EXIF; read are at most {_MOST_EXIF}")
    if is_progressive and (num_scans := content.count(b"\xff\xda")) > _MOST_SCANS:
        raise ImageError("too_large", f"{num_scans} progressive scans; decoded are at most {_MOST_SCANS}")


def _segments(content: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield marker, start and length of what comes before a JPEG's first scan."""
    position = 2
    while content[position : position + 1] == b"\xff" and position + 4 <= len(content):
        marker, size = struct.unpack_from(">xBH", content, position)
        if marker == _START_OF_SCAN:
            return
        yield marker, position + 4, size
        position += 2 + size
