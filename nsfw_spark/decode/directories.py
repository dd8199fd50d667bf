"""The directories of a TIFF, which EXIF has too: where they are, and what is written in them.

In: a file, or EXIF from within one. Out: numbers, as far as the bytes go, whatever they say.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Self

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
