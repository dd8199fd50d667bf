"""TIFFs whose directories loop, lie, or hold more than any image needs."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from tests.hostile.made import DAMAGED, OK, SEEDS, TOO_LARGE, UNDECODABLE, UNSUPPORTED, Hostile
from tests.hostile.pngs import zeros

_BYTE, _SHORT, _LONG = 1, 3, 4
_WIDTH, _LENGTH, _BITS, _COMPRESSION, _PHOTOMETRIC, _OFFSETS = 256, 257, 258, 259, 262, 273
_ORIENTATION, _SAMPLES, _ROWS, _COUNTS, _TILE_WIDTH, _TILE_LENGTH = 274, 277, 278, 279, 322, 323
_TILE_OFFSETS, _TILE_COUNTS, _EXIF = 324, 325, 34665
_DEFLATE, _GREY = 8, 1


class Tag(NamedTuple):
    """An entry of a directory."""

    number: int
    kind: int
    count: int
    value: int
    """Or the offset of the values."""


def tiff(tags: dict[int, Tag], *, data: bytes = b"", following: int = 0) -> bytes:
    """Return a little-endian TIFF: header, one directory, data from byte 1000 on."""
    entries = b"".join(struct.pack("<HHLL", *tags[number]) for number in sorted(tags))
    directory = struct.pack("<H", len(tags)) + entries + struct.pack("<L", following)
    return (b"II*\0" + struct.pack("<L", 8) + directory).ljust(1000, b"\0") + data


def grey(width: int, height: int, data: bytes, *more: Tag) -> dict[int, Tag]:
    """Return the tags of an 8-bit grey image in one deflated strip; `more` add or replace."""
    tags = [
        Tag(_WIDTH, _LONG, 1, width),
        Tag(_LENGTH, _LONG, 1, height),
        Tag(_BITS, _SHORT, 1, 8),
        Tag(_COMPRESSION, _SHORT, 1, _DEFLATE),
        Tag(_PHOTOMETRIC, _SHORT, 1, _GREY),
        Tag(_OFFSETS, _LONG, 1, 1000),
        Tag(_SAMPLES, _SHORT, 1, 1),
        Tag(_ROWS, _LONG, 1, height),
        Tag(_COUNTS, _LONG, 1, len(data)),
        *more,
    ]
    return {tag.number: tag for tag in tags}


def directories() -> Iterator[Hostile]:
    """Yield directories that loop, are too many, or lie elsewhere."""
    data = zlib.compress(bytes(64))
    small = grey(8, 8, data)
    yield Hostile("tiff-sound.tif", tiff(small, data=data), OK)
    yield Hostile("tiff-loop.tif", tiff(small, data=data, following=8), OK)
    yield Hostile("tiff-next-outside.tif", tiff(small, data=data, following=2**32 - 1), DAMAGED)
    looped = small | {_EXIF: Tag(_EXIF, _LONG, 1, 8)}
    yield Hostile("tiff-exif-loop.tif", tiff(looped, data=data), DAMAGED)
    yield Hostile("tiff-no-tags.tif", tiff({}), UNDECODABLE)
    yield Hostile(
        "tiff-directory-outside.tif", b"II*\0" + struct.pack("<L", 2**32 - 1) + bytes(99), UNDECODABLE
    )
    yield Hostile("tiff-thousand-pages.tif", _pages(5000, small, data), OK)
    yield Hostile("tiff-65535-tags.tif", b"II*\0" + struct.pack("<LH", 8, 65_535) + bytes(9999), UNDECODABLE)


def values() -> Iterator[Hostile]:
    """Yield tags with wrong or endless values."""
    data = zlib.compress(bytes(64))
    wrong = {
        "no-width": (Tag(_WIDTH, _LONG, 1, 0), UNDECODABLE),
        "no-rows-in-strip": (Tag(_ROWS, _LONG, 1, 0), DAMAGED),
        "65535-samples": (Tag(_SAMPLES, _SHORT, 1, 65_535), UNDECODABLE | UNSUPPORTED),
        "unknown-compression": (Tag(_COMPRESSION, _SHORT, 1, 60_000), UNDECODABLE | UNSUPPORTED),
        "7-bits": (Tag(_BITS, _SHORT, 1, 7), UNDECODABLE | UNSUPPORTED),
        "unknown-type": (Tag(_WIDTH, 99, 1, 8), UNDECODABLE),
        "data-outside": (Tag(_OFFSETS, _LONG, 1, 2**31), UNDECODABLE),
        "width-as-text": (Tag(_WIDTH, 2, 4, 0x41414141), UNDECODABLE),
        "orientation-99": (Tag(_ORIENTATION, _SHORT, 1, 99), OK),
        "offsets-beyond-the-end": (Tag(_OFFSETS, _LONG, 500_000_000, 1000), TOO_LARGE),
    }
    for name, (tag, statuses) in wrong.items():
        yield Hostile(f"tiff-{name}.tif", tiff(grey(8, 8, data, tag), data=data), statuses)
    many = struct.pack("<L", 1000) * 1_500_000
    for name, tag in (
        ("offsets", Tag(_OFFSETS, _LONG, 1_500_000, 1000)),
        ("orientations", Tag(_ORIENTATION, _SHORT, 3_000_000, 1000)),
        ("unknown-tag", Tag(50_000, _LONG, 1_500_000, 1000)),
    ):
        yield Hostile(f"tiff-millions-{name}.tif", tiff(grey(8, 8, data, tag), data=many), TOO_LARGE)
    nested = struct.pack("<H", 1) + struct.pack("<HHLL", 37_500, _SHORT, 2_000_000, 2000) + bytes(4)
    tags = grey(8, 8, data, Tag(_EXIF, _LONG, 1, 1000))
    yield Hostile("tiff-millions-in-exif.tif", tiff(tags, data=nested.ljust(5_000_000, b"\7")), TOO_LARGE)


def sizes() -> Iterator[Hostile]:
    """Yield images, strips and tiles at the limit or beyond."""
    for width, height in ((20_000, 20_000), (2**32 - 1, 2**32 - 1), (2**32 - 1, 1)):
        yield Hostile(f"tiff-{width}x{height}.tif", tiff(grey(width, height, b"")), TOO_LARGE)
    for width, height in ((1, 100_000), (100_000, 1), (10_000, 10_000)):
        data = zeros(width * height)
        content = tiff(grey(width, height, data), data=data)
        yield Hostile(f"tiff-bomb-{width}x{height}.tif", content, OK)
    for side in (30_000, 65_520):
        data = zeros(100 << 20)
        tiles = [
            Tag(_TILE_WIDTH, _LONG, 1, side),
            Tag(_TILE_LENGTH, _LONG, 1, side),
            Tag(_TILE_OFFSETS, _LONG, 1, 1000),
            Tag(_TILE_COUNTS, _LONG, 1, len(data)),
        ]
        tags = grey(8, 8, data, *tiles)
        for number in (_OFFSETS, _ROWS, _COUNTS):
            del tags[number]
        yield Hostile(f"tiff-tile-{side}.tif", tiff(tags, data=data), DAMAGED | TOO_LARGE)
    yield Hostile("tiff-zeros-after-it.tif", SEEDS["raw.tif"] + bytes(10 << 20), OK)


def _pages(number: int, tags: dict[int, Tag], data: bytes) -> bytes:
    """Return a TIFF of `number` pages, all with the same pixels."""
    size = 2 + 12 * len(tags) + 4
    entries = b"".join(struct.pack("<HHLL", *tags[tag]) for tag in sorted(tags))
    start = 1000 + len(data)
    pages = b"".join(
        struct.pack("<H", len(tags))
        + entries
        + struct.pack("<L", start + size * (i + 1) if i + 1 < number else 0)
        for i in range(number)
    )
    return tiff(tags, data=data, following=start) + pages
