"""JPEG, GIF, WebP, BMP, AVIF and HEIC that lie, repeat themselves, or never end."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from tests.hostile.made import DAMAGED, OK, SEEDS, TOO_LARGE, UNDECODABLE, UNSUPPORTED, Hostile

_JPEG = SEEDS["baseline.jpg"]


def jpegs() -> Iterator[Hostile]:
    """Yield JPEGs."""
    for width, height in ((0, 5), (5, 0), (65_500, 65_500), (65_500, 1), (1, 65_500), (9_000, 9_000)):
        statuses = UNDECODABLE if width * height == 0 else DAMAGED
        statuses = TOO_LARGE if width * height > 100_000_000 else statuses
        size = struct.pack(">HH", height, width)
        yield Hostile(f"jpeg-{width}x{height}.jpg", _in_frame(5, size), statuses)
    yield Hostile("jpeg-12-bits.jpg", _in_frame(4, b"\x0c"), UNSUPPORTED)
    yield Hostile("jpeg-2-layers.jpg", _in_frame(9, b"\x02"), UNSUPPORTED | UNDECODABLE)
    yield Hostile("jpeg-no-layers.jpg", _in_frame(9, b"\x00"), UNSUPPORTED | UNDECODABLE)
    part = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<HHHLL", 1, 0x0112, 3, 9_000_000, 100) + bytes(65_000)
    yield Hostile("jpeg-endless-exif.jpg", _with(_segment(0xE1, part) * 300), TOO_LARGE)
    yield Hostile("jpeg-much-exif.jpg", _with(_segment(0xE1, part) * 20), OK)
    profile = b"".join(
        _segment(0xE2, b"ICC_PROFILE\0" + bytes((i + 1, 255)) + bytes(40_000)) for i in range(255)
    )
    yield Hostile("jpeg-huge-profile.jpg", _with(profile), OK)
    yield Hostile("jpeg-many-comments.jpg", _with(_segment(0xFE, b"x") * 100_000), OK)
    yield Hostile("jpeg-endless-scans.jpg", _scans(5000), TOO_LARGE)
    yield Hostile("jpeg-many-scans.jpg", _scans(60), DAMAGED)
    yield Hostile("jpeg-fill-bytes.jpg", b"\xff\xd8" + b"\xff" * 1_000_000 + _JPEG[2:], DAMAGED)
    yield Hostile("jpeg-junk-before-marker.jpg", _with(b"\x11" * 500_000), DAMAGED)
    yield Hostile("jpeg-negative-segment.jpg", _with(b"\xff\xe5\x00\x00"), DAMAGED)
    yield Hostile("jpeg-segment-beyond-the-end.jpg", _with(b"\xff\xe5\xff\xff"), UNDECODABLE)
    yield Hostile("jpeg-no-tables.jpg", _JPEG.replace(b"\xff\xdb", b"\xff\xe9"), DAMAGED)
    yield Hostile(
        "jpeg-mpo-of-65535.jpg",
        SEEDS["two.mpo"].replace(b"\x01\xb0\x04\0\x01\0\0\0\x02", b"\x01\xb0\x04\0\x01\0\0\0\xff"),
        DAMAGED,
    )
    yield Hostile("jpeg-then-zip.jpg", _JPEG + b"PK\x03\x04" + bytes(1_000_000), OK)
    yield Hostile("jpeg-in-jpeg.jpg", _with(_segment(0xE1, b"Exif\0\0" + _JPEG)), OK)


def gifs() -> Iterator[Hostile]:
    """Yield GIFs."""
    one, animated = SEEDS["one.gif"], SEEDS["animated.gif"]
    for width, height in ((65_535, 65_535), (65_535, 1), (1, 65_535), (0, 0), (9_999, 9_999)):
        statuses = TOO_LARGE if width * height > 100_000_000 else DAMAGED
        content = one[:6] + struct.pack("<HH", width, height) + one[10:]
        yield Hostile(f"gif-screen-{width}x{height}.gif", content, statuses)
    place = one.index(b"\x2c\0\0\0\0\x30\0\x20\0")
    content = one[: place + 5] + struct.pack("<HH", 65_535, 65_535) + one[place + 9 :]
    yield Hostile("gif-frame-65535x65535.gif", content, TOO_LARGE | UNDECODABLE)
    yield Hostile("gif-endless-frames.gif", animated[:-1] + one[place:-1] * 1000, OK)
    yield Hostile("gif-endless-comments.gif", one[:place] + b"\x21\xfe\x01x\0" * 100_000 + one[place:], OK)
    yield Hostile("gif-no-end-of-data.gif", one[:-2], DAMAGED)
    yield Hostile("gif-no-frame.gif", one[:place] + b"\x3b", UNDECODABLE)
    yield Hostile("gif-wrong-code-size.gif", one[: place + 10] + b"\x0f" + one[place + 11 :], UNDECODABLE)
    yield Hostile("gif-two-screens.gif", one + one, OK)


def webps() -> Iterator[Hostile]:
    """Yield WebPs."""
    for width, height in ((16_383, 16_383), (9_000, 9_000), (16_383, 1)):
        statuses = TOO_LARGE if width * height > 62_500_000 else DAMAGED
        lossy = SEEDS["lossy.webp"]
        content = lossy[:26] + struct.pack("<HH", width, height) + lossy[30:]
        yield Hostile(f"webp-{width}x{height}.webp", content, statuses)
    animated = SEEDS["animated.webp"]
    canvas = b"\xff\xff\xff" * 2
    yield Hostile(
        "webp-canvas-16777216.webp", animated[:24] + canvas + animated[30:], TOO_LARGE | UNDECODABLE
    )
    first = animated.index(b"ANMF")
    frame = animated[first : first + 8 + struct.unpack_from("<I", animated, first + 4)[0]]
    many = _riff(animated[8:first] + frame * 20_000)
    yield Hostile("webp-endless-frames.webp", many, OK)
    yield Hostile("webp-no-frame.webp", _riff(animated[8:first]), UNDECODABLE)
    nested = frame[:24] + frame
    nested = frame[:4] + struct.pack("<I", len(nested) - 8) + nested[8:]
    yield Hostile("webp-nested-frames.webp", _riff(animated[8:first] + nested * 100), DAMAGED)
    still = b"WEBPVP8X" + struct.pack("<I", 10) + bytes((0x2C, 0, 0, 0, 47, 0, 0, 31, 0, 0))
    body = SEEDS["lossy.webp"][12:]
    for name in (b"EXIF", b"ICCP", b"XMP "):
        data = b"II*\0\x08\0\0\0" + struct.pack("<HHHLL", 1, 0x0112, 3, 2_000_000, 100)
        data = data.ljust(5_000_000, b"\7")
        metadata = name + struct.pack("<I", len(data)) + data
        content = still + (metadata + body if name == b"ICCP" else body + metadata)
        yield Hostile(f"webp-huge-{name.decode().strip()}.webp", _riff(content), OK)
    yield Hostile("webp-riff-too-long.webp", animated[:4] + b"\xff\xff\xff\xff" + animated[8:], DAMAGED)


def bmps() -> Iterator[Hostile]:
    """Yield BMPs."""
    bmp = SEEDS["colour.bmp"]
    for width, height in (
        (0, 5),
        (2**31 - 1, 2**31 - 1),
        (20_000, 20_000),
        (9_000, 9_000),
        (-48, 32),
        (48, -32),
    ):
        statuses = DAMAGED if width * height < 100_000_000 else TOO_LARGE
        statuses = TOO_LARGE if width < 0 else statuses  # read as 4,294,967,248
        content = bmp[:18] + struct.pack("<ii", width, height) + bmp[26:]
        yield Hostile(f"bmp-{width}x{height}.bmp", content, statuses)
    for name, place, value in (
        ("header-of-4-gigabytes", 14, 2**32 - 1),
        ("data-outside", 10, 2**32 - 1),
        ("palette-of-4-billions", 46, 2**32 - 1),
        ("unknown-compression", 30, 99),
    ):
        content = bmp[:place] + struct.pack("<I", value) + bmp[place + 4 :]
        yield Hostile(f"bmp-{name}.bmp", content, DAMAGED | UNSUPPORTED)
    yield Hostile("bmp-3-bits.bmp", bmp[:28] + b"\x03\0" + bmp[30:], UNDECODABLE | UNSUPPORTED)
    runs = SEEDS["palette.bmp"]
    start = struct.unpack_from("<I", runs, 10)[0]
    header = (
        runs[:18] + struct.pack("<ii", 9_000, 1_000) + runs[26:30] + struct.pack("<I", 1) + runs[34:start]
    )
    yield Hostile("bmp-run-bomb.bmp", header + b"\xff\x07" * 40_000, DAMAGED)
    yield Hostile("bmp-endless-lines.bmp", header + b"\x00\x00" * 40_000, DAMAGED)


def containers() -> Iterator[Hostile]:
    """Yield AVIFs and HEICs."""
    for seed in ("one.avif", "one.heic"):
        content = SEEDS[seed]
        size = content.index(b"ispe") + 8
        for width, height in ((0, 0), (2**31, 2**31), (20_000, 20_000), (9_000, 9_000)):
            lie = content[:size] + struct.pack(">II", width, height) + content[size + 8 :]
            yield Hostile(f"{width}x{height}-{seed}", lie, DAMAGED | TOO_LARGE | UNSUPPORTED)
        boxes = content[:4] + content[4:].replace(b"iloc", b"free")
        yield Hostile(f"no-places-{seed}", boxes, UNDECODABLE | UNSUPPORTED)
        meta = content.index(b"meta") - 4
        endless = content[:meta] + struct.pack(">I", 2**32 - 1) + content[meta + 4 :]
        yield Hostile(f"endless-box-{seed}", endless, UNDECODABLE | UNSUPPORTED)


def _in_frame(offset: int, value: bytes) -> bytes:
    """Return the JPEG seed with other bytes in its start-of-frame segment, at an offset from the marker."""
    place = _JPEG.index(b"\xff\xc0") + offset
    return _JPEG[:place] + value + _JPEG[place + len(value) :]


def _with(segments: bytes) -> bytes:
    """Return the JPEG seed with more after its first marker."""
    return _JPEG[:2] + segments + _JPEG[2:]


def _segment(marker: int, data: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def _scans(number: int) -> bytes:
    """Return the progressive seed, its last scan repeated."""
    content = SEEDS["progressive.jpg"]
    last = content.rindex(b"\xff\xda")
    return content[:-2] + content[last:-2] * number + content[-2:]


def _riff(content: bytes) -> bytes:
    return b"RIFF" + struct.pack("<I", len(content)) + content
