"""Bounds the data around an image's pixels, and reads the directories of a TIFF, which EXIF has too.

In: an encoded image, or its EXIF. Out: the content that Pillow may parse, or a `too_large` ImageError; the
entries of directories, as far as the bytes go. Decodes no pixel.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Self

from PIL import PngImagePlugin

from nsfw_spark.errors import ImageError

_PNG: Final = b"\x89PNG\r\n\x1a\n"
_TEXTS: Final = frozenset({b"iCCP", b"zTXt", b"iTXt", b"tEXt"})
_SMALLEST_HUGE: Final = 1000  # bytes; deflate turns one into at most 1,032, and Pillow takes a megabyte

_MOST_VALUES: Final = 1_000_000
"""In all tags of a TIFF together. An image of 100 million pixels has at most 400,000 tiles; a value takes 40
bytes in Python, and a tile 300."""
_ONE_BYTE: Final = frozenset({1, 2, 7})  # types whose values stay bytes
_SUB_DIRECTORIES: Final = frozenset({34665, 34853, 40965})  # EXIF, GPS, interoperability: Pillow reads all

_MOST_EXIF: Final = 16_000_000
"""Bytes in a JPEG; Pillow joins the segments and copies all earlier ones each time."""
_MOST_SCANS: Final = 100
"""In a progressive JPEG. Encoders write about ten; one of a few bytes costs as much time as an image."""
_APP1, _START_OF_SCAN = 0xE1, 0xDA
_PROGRESSIVE: Final = frozenset({0xC2, 0xC6, 0xCA, 0xCE})


def bounded(content: bytes) -> bytes:
    """Return the content that Pillow may parse: all of it, or a PNG without its huge texts.

    Raises:
        ImageError: `too_large`.
    """
    if content.startswith(_PNG):
        return _without_huge_texts(content)
    if content.startswith(b"\xff\xd8\xff"):
        _check_jpeg(content)
    elif directories := Directories.of(content):
        num_values = _num_values(directories, directories.first)
        if num_values > _MOST_VALUES:
            raise _too_many(f"its TIFF tags have at least {num_values} values", _MOST_VALUES)
    return content


def _without_huge_texts(content: bytes) -> bytes:
    """Drop a PNG's texts and profiles if one inflates, or all together are longer, than Pillow accepts."""
    texts = [(start, end) for name, start, end in _chunks(content) if name in _TEXTS]
    total = sum(end - start for start, end in texts)
    if total < PngImagePlugin.MAX_TEXT_MEMORY // 2 and not any(_is_huge(content, *text) for text in texts):
        return content
    kept, position = [], 0
    for start, end in texts:
        kept.append(content[position:start])
        position = end
    return b"".join([*kept, content[position:]])


def _chunks(content: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield the name, start and end of each chunk of a PNG."""
    position = len(_PNG)
    while position + 8 <= len(content):
        length, name = struct.unpack_from(">I4s", content, position)
        yield name, position, position + length + 12
        position += length + 12


def _is_huge(content: bytes, start: int, end: int) -> bool:
    """Tell whether a text or profile inflates to more than Pillow accepts."""
    if end - start < _SMALLEST_HUGE:
        return False
    inflating = zlib.decompressobj()
    try:
        inflating.decompress(_compressed(content[start + 4 : end - 4]), PngImagePlugin.MAX_TEXT_CHUNK)
    except zlib.error:
        return False
    return bool(inflating.unconsumed_tail)


def _compressed(chunk: bytes) -> bytes:
    """Return the compressed bytes of a chunk of _TEXTS, which begins with its name.

    Source:
        PNG specification, third edition, 11.3.2.3 iCCP and 11.3.3 textual information.
    """
    name, (_, _, rest) = chunk[:4], chunk[4:].partition(b"\0")
    if name == b"iTXt":
        return rest[2:].split(b"\0", 2)[-1] if rest[:1] == b"\1" else b""
    return b"" if name == b"tEXt" else rest[1:]


def _check_jpeg(content: bytes) -> None:
    """Refuse a JPEG with too much EXIF for Pillow to join, or too many scans for libjpeg to decode."""
    length, is_progressive = 0, False
    for marker, start, size in _segments(content):
        is_progressive = is_progressive or marker in _PROGRESSIVE
        if marker == _APP1 and content[start : start + 4] == b"Exif":
            length += size
    if length > _MOST_EXIF:
        raise _too_many(f"{length} bytes of EXIF", _MOST_EXIF)
    if is_progressive and (num_scans := content.count(b"\xff\xda")) > _MOST_SCANS:
        raise _too_many(f"{num_scans} progressive scans", _MOST_SCANS)


def _segments(content: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield marker, start and length of each segment before a JPEG's first scan."""
    position = 2
    while content[position : position + 1] == b"\xff" and position + 4 <= len(content):
        marker, size = struct.unpack_from(">xBH", content, position)
        if marker == _START_OF_SCAN:
            return
        yield marker, position + 4, size
        position += 2 + size


def _too_many(got: str, limit: int) -> ImageError:
    return ImageError("too_large", f"{got}; the limit is {limit}")


_ORDERS: Final = {b"II*\0": "<", b"MM\0*": ">", b"II+\0": "<", b"MM\0+": ">", b"MM*\0": ">", b"II\0*": "<"}
_BIG: Final = 43  # BigTIFF's version number; TIFF's is 42
_LONGEST_HEADER: Final = 16  # bytes


@dataclass(frozen=True)
class Directories:
    """The directories of a TIFF, each named by the offset at which it begins.

    Source:
        TIFF 6.0, section 2; BigTIFF, which has longer fields.
    """

    content: bytes
    first: int
    """Offset of the first directory, bytes."""
    _count: struct.Struct
    _entry: struct.Struct
    _link: struct.Struct

    @classmethod
    def of(cls, content: bytes) -> Self | None:
        """Return the directories of a file; None unless it begins like a TIFF."""
        order = _ORDERS.get(content[:4])
        if order is None or len(content) < _LONGEST_HEADER:
            return None
        is_big = content[2] == _BIG  # Pillow's rule
        count, entry, link = ("Q", "HHQQ", "Q") if is_big else ("H", "HHLL", "L")
        fields = [struct.Struct(order + field) for field in (count, entry, link)]
        return cls(content, fields[2].unpack_from(content, 8 if is_big else 4)[0], *fields)

    def entries(self, directory: int) -> Iterator[tuple[int, int, int, int]]:
        """Yield tag, type, number of values, and value or offset of a directory's entries."""
        start = directory + self._count.size
        fitting = max(0, len(self.content) - start) // self._entry.size
        for i in range(min(self._claimed(directory), fitting)):
            yield self._entry.unpack_from(self.content, start + i * self._entry.size)

    def after(self, directory: int) -> int | None:
        """Return where the next directory begins; None after the last."""
        end = directory + self._count.size + self._claimed(directory) * self._entry.size
        if end + self._link.size > len(self.content):
            return None
        return self._link.unpack_from(self.content, end)[0] or None

    def _claimed(self, directory: int) -> int:
        """Number of entries that a directory claims to have; 0 outside of the file."""
        if directory + self._count.size > len(self.content):
            return 0
        return int(self._count.unpack_from(self.content, directory)[0])


def num_pages(content: bytes, most: int) -> int:
    """Count the pages of a TIFF, up to `most` pages and _MOST_VALUES values; 0 for other formats."""
    directories = Directories.of(content)
    page, left, seen = directories and directories.first, _MOST_VALUES, set[int]()
    while directories is not None and page and page not in seen and len(seen) < most:
        left -= _num_values(directories, page)
        if left < 0:
            break
        seen.add(page)
        page = directories.after(page)
    return len(seen)


def _num_values(directories: Directories, page: int) -> int:
    """Count the values of a page's tags; stop as soon as there are too many."""
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
