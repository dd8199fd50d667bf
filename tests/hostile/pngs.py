"""PNGs that lie, inflate, repeat themselves, or never end."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from tests.hostile.made import DAMAGED, OK, SEEDS, TOO_LARGE, UNDECODABLE, Hostile

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_TINY = zlib.compress(bytes(4) * 1)  # one row of one RGB pixel, and its filter byte


def chunk(name: bytes, data: bytes, *, crc: int | None = None, length: int | None = None) -> bytes:
    """Return a chunk; its checksum and length may be wrong."""
    crc = zlib.crc32(name + data) if crc is None else crc
    return struct.pack(">I", len(data) if length is None else length) + name + data + struct.pack(">I", crc)


def png(width: int, height: int, *extra: bytes, data: bytes, depth: int = 8, colour: int = 2) -> bytes:
    """Return a PNG of a claimed size around compressed data, with extra chunks before it."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"".join([_SIGNATURE, chunk(b"IHDR", header), *extra, chunk(b"IDAT", data), chunk(b"IEND", b"")])


def zeros(num_bytes: int) -> bytes:
    """Return `num_bytes` zeros, compressed."""
    compressor, block = zlib.compressobj(1), bytes(1 << 20)
    parts = [compressor.compress(block) for _ in range(num_bytes >> 20)]
    return b"".join([*parts, compressor.compress(bytes(num_bytes & 0xFFFFF)), compressor.flush()])


def sizes() -> Iterator[Hostile]:
    """Yield headers that claim no pixels, too many, or a shape that no screen has."""
    for width, height in ((0, 5), (5, 0), (0, 0)):
        yield Hostile(f"png-{width}x{height}.png", png(width, height, data=_TINY), UNDECODABLE)
    for width, height in (
        (20_000, 6_000),
        (100_000, 100_000),
        (2**31 - 1, 2**31 - 1),
        (2**31, 1),
        (1, 2**31 - 1),
    ):
        yield Hostile(f"png-{width}x{height}.png", png(width, height, data=_TINY), TOO_LARGE)
    for width, height in ((10_000, 10_000), (500, 500), (2, 2)):
        yield Hostile(f"png-no-data-{width}x{height}.png", png(width, height, data=_TINY), UNDECODABLE)
    for width, height in ((1, 100_000), (100_000, 1), (100_000_000, 1), (1, 20_000_000)):
        row = (width + 7) // 8 + 1
        content = png(width, height, data=zeros(row * height), depth=1, colour=0)
        yield Hostile(f"png-thin-{width}x{height}.png", content, OK)


def bombs() -> Iterator[Hostile]:
    """Yield small files that inflate to the limit or beyond."""
    one_bit = png(10_000, 10_000, data=zeros(1251 * 10_000), depth=1, colour=0)
    yield Hostile("png-bomb-1-bit.png", one_bit, OK)
    yield Hostile("png-bomb-alpha.png", png(9_900, 9_900, data=zeros(39_601 * 9_900), colour=6), OK)
    yield Hostile(
        "png-bomb-grey16.png", png(10_000, 10_000, data=zeros(20_001 * 10_000), depth=16, colour=0), OK
    )
    yield Hostile("png-more-data-than-pixels.png", png(10, 10, data=zeros(200 << 20)), DAMAGED)
    huge = zeros(300 << 20)
    texts = {
        "zTXt": chunk(b"zTXt", b"k\0\0" + huge),
        "iTXt": chunk(b"iTXt", b"k\0\1\0\0\0" + huge),
        "iCCP": chunk(b"iCCP", b"p\0\0" + huge),
        "tEXt": chunk(b"tEXt", b"k\0" + bytes(5 << 20)),
        "many-zTXt": b"".join(chunk(b"zTXt", b"k%d\0\0" % i + zeros(900 << 10)) for i in range(200)),
        "many-tEXt": b"".join(chunk(b"tEXt", b"k%d\0v" % i) for i in range(100_000)),
    }
    for name, extra in texts.items():
        yield Hostile(f"png-huge-{name}.png", _with(extra), DAMAGED if name == "many-zTXt" else OK)
    end = SEEDS["colour.png"].index(b"IEND") - 4
    behind = SEEDS["colour.png"][:end] + texts["zTXt"] + SEEDS["colour.png"][end:]
    yield Hostile("png-huge-zTXt-behind.png", behind, OK)


def structures() -> Iterator[Hostile]:
    """Yield chunks in wrong numbers, orders and lengths."""
    content = SEEDS["colour.png"]
    data = content.index(b"IDAT") - 4
    for name in (b"IHDR", b"IDAT"):
        wrong = bytearray(content)
        place = content.index(name) - 4
        wrong[place + 8 + struct.unpack_from(">I", content, place)[0]] ^= 1
        yield Hostile(f"png-wrong-crc-{name.decode()}.png", bytes(wrong), DAMAGED)
    yield Hostile("png-wrong-crc-text.png", _with(chunk(b"tEXt", b"k\0v", crc=7)), UNDECODABLE)
    yield Hostile("png-endless-chunk.png", _with(chunk(b"tEXt", b"k\0v", length=2**31 - 1)), UNDECODABLE)
    yield Hostile("png-negative-chunk.png", _with(chunk(b"tEXt", b"k\0v", length=2**32 - 1)), UNDECODABLE)
    yield Hostile("png-chunk-without-name.png", _with(chunk(b"\0\0\0\0", b"")), UNDECODABLE)
    yield Hostile("png-without-end.png", content[: content.index(b"IEND") - 4], DAMAGED)
    yield Hostile("png-without-data.png", content[:data] + chunk(b"IEND", b""), UNDECODABLE)
    yield Hostile("png-two-headers.png", content[:33] + content[8:], DAMAGED)
    yield Hostile("png-no-palette.png", png(8, 8, data=zeros(9 * 8), colour=3), DAMAGED)
    yield Hostile("png-unknown-depth.png", png(8, 8, data=zeros(9 * 8), depth=7), UNDECODABLE)
    yield Hostile("png-empty-data.png", _with(chunk(b"IDAT", b"") * 50_000), DAMAGED)
    yield Hostile("png-no-zlib.png", png(8, 8, data=b"not zlib at all" * 9), UNDECODABLE)
    yield Hostile("png-then-megabytes.png", content + bytes(10 << 20), OK)


def animations() -> Iterator[Hostile]:
    """Yield APNGs with endless frames, or frames outside of the image."""
    frame = struct.pack(">IIIIIHHBB", 0, 48, 32, 0, 0, 1, 1, 0, 0)
    for num_frames in (0, 2, 2**31 - 1, 2**32 - 1):
        control = chunk(b"acTL", struct.pack(">II", num_frames, 0)) + chunk(b"fcTL", frame)
        yield Hostile(f"apng-{num_frames}-frames.png", _with(control), DAMAGED)
    outside = struct.pack(">IIIIIHHBB", 0, 2**31 - 1, 2**31 - 1, 9, 9, 1, 1, 0, 0)
    control = chunk(b"acTL", struct.pack(">II", 2, 0)) + chunk(b"fcTL", outside)
    yield Hostile("apng-frame-outside.png", _with(control), UNDECODABLE)
    end = SEEDS["animated.png"].rindex(b"IEND") - 4
    frames = b"".join(chunk(b"fcTL", struct.pack(">I", i) + frame[4:]) for i in range(5, 50_000))
    yield Hostile("apng-endless.png", SEEDS["animated.png"][:end] + frames, DAMAGED)


def _with(extra: bytes) -> bytes:
    """Return the PNG seed with chunks after its header."""
    return SEEDS["colour.png"][:33] + extra + SEEDS["colour.png"][33:]
