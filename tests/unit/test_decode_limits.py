"""Limits of bytes, pixels and memory: each error names its limit and option."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import warnings
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from nsfw_spark.decode import DEFAULT_MAX_BYTES, DEFAULT_MAX_PIXELS, decode
from nsfw_spark.decode.memory import memory_needed
from nsfw_spark.decode.opening import BYTES_PER_PIXEL, Limits, open_image
from nsfw_spark.errors import ImageError, ImageHeader
from tests.conftest import encoded, png
from tests.hostile.made import SEEDS
from tests.hostile.pngs import chunk
from tests.outcomes import HOW

_SLACK = 24_000_000  # bytes: code that a format loads on first use, and numpy's work on a band of rows
_KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "jpeg": ("RGB", "JPEG", {}),
    "jpeg-progressive": ("RGB", "JPEG", {"progressive": True, "subsampling": 0}),
    "jpeg-progressive-420": ("RGB", "JPEG", {"progressive": True, "subsampling": 2}),
    "jpeg-cmyk-progressive": ("CMYK", "JPEG", {"progressive": True}),
    "png": ("RGB", "PNG", {}),
    "png-alpha": ("RGBA", "PNG", {}),
    "png-palette": ("P", "PNG", {}),
    "png-16": ("I;16", "PNG", {}),
    "webp": ("RGB", "WEBP", {}),
    "webp-alpha": ("RGBA", "WEBP", {}),
    "gif": ("P", "GIF", {}),
    "bmp": ("RGB", "BMP", {}),
    "tiff": ("RGB", "TIFF", {}),
    "tiff-one-strip": ("RGBA", "TIFF", {"compression": "tiff_adobe_deflate", "strip_size": 1 << 30}),
    "tiff-turned": ("RGB", "TIFF", {"tiffinfo": {274: 6}}),
    "tiff-cmyk": ("CMYK", "TIFF", {}),
    "tiff-lab": ("LAB", "TIFF", {}),
    "tiff-float": ("F", "TIFF", {}),
    "tiff-integer": ("I", "TIFF", {}),
    "avif": ("RGB", "AVIF", {"speed": 10}),
    "avif-alpha": ("RGBA", "AVIF", {"speed": 10, "subsampling": "4:4:4"}),
}


def refused(content: bytes, **limits: int) -> ImageError:
    with pytest.raises(ImageError) as caught:
        decode(content, HOW, **limits)
    return caught.value


def test_the_limit_of_bytes_is_the_callers_and_named() -> None:
    content = png()
    assert decode(content, HOW, max_bytes=len(content)).header.format == "PNG"
    error = refused(content, max_bytes=len(content) - 1)
    assert (error.status, error.header) == ("too_large", None)
    assert "--max-bytes" in error.message
    assert str(len(content) - 1) in error.message


def test_by_default_a_hundred_million_bytes_are_decoded() -> None:
    content = png()
    padded = content + bytes(DEFAULT_MAX_BYTES - len(content))
    assert decode(padded, HOW).header.format == "PNG"
    assert refused(padded + b"\0").status == "too_large"


def test_messages_name_the_option() -> None:
    assert f"max_pixels = {DEFAULT_MAX_PIXELS} (--max-pixels)" in refused(_lossy(16_383, 16_383)).message
    assert "--max-pixels" in refused(png(60, 40), max_pixels=2399).message


def test_an_image_that_takes_more_memory_than_its_pixels_may_is_too_large() -> None:
    """A WebP is decoded with 16 bytes a pixel, of which 10 are granted."""
    error = refused(SEEDS["lossless.webp"], max_pixels=48 * 32)
    assert (error.status, error.header) == ("too_large", ImageHeader(48, 32, "WEBP"))
    assert "--max-pixels" in error.message
    assert decode(SEEDS["lossless.webp"], HOW, max_pixels=48 * 32 * 4).header.format == "WEBP"


def test_a_jpeg_in_several_scans_counts_what_libjpeg_keeps() -> None:
    for content, several in ((SEEDS["baseline.jpg"], False), (SEEDS["progressive.jpg"], True)):
        needed = memory_needed(open_image(content, Limits()).image, content) - len(content)
        assert (needed > 4 * 48 * 32) is several


def test_a_sequential_jpeg_whose_first_scan_lacks_layers_counts_as_several() -> None:
    content = SEEDS["baseline.jpg"]
    scan = content.index(b"\xff\xda") + 2
    assert content[scan : scan + 3] == b"\x00\x0c\x03"
    alone = content[:scan] + b"\x00\x08\x01\x01\x00\x00\x3f\x00" + content[scan + 12 :]
    assert memory_needed(open_image(alone, Limits()).image, alone) > 4 * 48 * 32 + len(alone)


@pytest.mark.parametrize("resizer", ["simd", "pillow"])
@pytest.mark.parametrize("fit", ["crop", "squash"])
@pytest.mark.parametrize("size", [(1, 100_000), (100_000, 1), (3, 30_000), (30_000, 3)], ids=str)
def test_a_side_may_be_as_long_as_the_pixels_allow(size: tuple[int, int], fit: str, resizer: str) -> None:
    how = HOW.model_copy(update={"fit": fit, "resizer": resizer})
    for image_format in ("PNG", "TIFF", "BMP"):
        decoded = decode(encoded(Image.new("RGB", size, (200, 30, 60)), image_format), how)
        assert (decoded.header.width, decoded.header.height) == size
        assert (decoded.pixels == (200, 30, 60)).all()


@pytest.fixture(scope="module")
def peaks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """Decode a large image of each kind, and return how many bytes that took."""
    directory = tmp_path_factory.mktemp("kinds")
    for kind, (mode, image_format, options) in _KINDS.items():
        image = Image.new(mode, (4000, 2000))
        (directory / kind).write_bytes(encoded(image, image_format, **options))
    command = [sys.executable, "-m", "tests.outcomes", str(directory)]
    run = subprocess.run(command, capture_output=True, check=True, cwd=Path(__file__).parents[2])
    outcomes = [json.loads(line) for line in run.stdout.splitlines()]
    assert {outcome["status"] for outcome in outcomes} == {"ok"}
    return {outcome["name"]: outcome["peak_bytes"] for outcome in outcomes}


@pytest.mark.parametrize("kind", _KINDS)
def test_no_kind_of_image_takes_more_memory_than_is_reckoned(kind: str, peaks: dict[str, int]) -> None:
    mode, image_format, options = _KINDS[kind]
    content = encoded(Image.new(mode, (4000, 2000)), image_format, **options)
    needed = memory_needed(open_image(content, Limits()).image, content)
    assert peaks[kind] < needed + _SLACK
    assert peaks[kind] > needed / 2, "too much is reckoned: images are refused that could be decoded"


def test_common_kinds_are_decoded_up_to_the_limit_of_pixels() -> None:
    per_pixel = {"JPEG": 4, "PNG": 8}
    assert max(per_pixel.values()) <= BYTES_PER_PIXEL
    for kind in ("jpeg", "png", "png-alpha", "gif", "bmp"):
        mode, image_format, options = _KINDS[kind]
        content = encoded(Image.new(mode, (400, 200)), image_format, **options)
        needed = memory_needed(open_image(content, Limits()).image, content)
        assert needed - len(content) <= 8 * 400 * 200


@pytest.mark.parametrize("name", [b"zTXt", b"iTXt", b"iCCP"])
def test_a_png_is_decoded_without_the_text_that_pillow_refuses(name: bytes) -> None:
    start = b"k\0" + {b"zTXt": b"\0", b"iTXt": b"\1\0\0\0", b"iCCP": b"\0"}[name]
    content = SEEDS["colour.png"]
    huge = content[:33] + chunk(name, start + zlib.compress(bytes(3 << 20))) + content[33:]
    with pytest.raises(ValueError, match="too large"):
        Image.open(BytesIO(huge)).load()
    assert (decode(huge, HOW).pixels == decode(content, HOW).pixels).all()


def test_a_text_that_pillow_takes_stays_for_it_may_hold_the_orientation() -> None:
    """ImageMagick writes EXIF as text: without it the image would lie on its side."""
    exif = Image.Exif()
    exif[0x0112] = 6
    profile = b"\nexif\n%8d\n" % len(exif.tobytes()) + exif.tobytes().hex().encode() + b"\n"
    content = SEEDS["colour.png"]
    turned = content[:33] + chunk(b"tEXt", b"Raw profile type exif\0" + profile) + content[33:]
    flat = decode(content, HOW).pixels
    assert (decode(turned, HOW).pixels != flat).any()


def test_pillow_warns_of_nothing_while_it_decodes() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decode(SEEDS["palette.png"], HOW)


def _lossy(width: int, height: int) -> bytes:
    """Return a WebP whose header claims a size."""
    content = SEEDS["lossy.webp"]
    return content[:26] + struct.pack("<HH", width, height) + content[30:]
