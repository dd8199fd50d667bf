"""docs/formats.md is true: one image of each kind gives what the table says."""

from __future__ import annotations

import re
import struct
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nsfw_spark.decode import decode
from nsfw_spark.errors import ImageError
from tests.conftest import encoded, max_difference, pixels, reference
from tests.hostile.made import SEEDS
from tests.hostile.tiffs import Tag, grey, tiff
from tests.outcomes import HOW

_TABLE = (Path(__file__).parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")
ROWS: dict[str, str] = dict(re.findall(r"^\| `([^`]+)` \| `(\w+)` \|", _TABLE, re.MULTILINE))
TOLERANCE = 2  # of 255: see test_resize.py

COLOUR = Image.fromarray(pixels(61, 43))
RAMP = np.linspace(0, 255, 60 * 40).reshape(40, 60)  # what the deep images show, in 8 bits


def _with_alpha(image: Image.Image, *, opaque: bool = False) -> Image.Image:
    alpha = Image.new("L", (1, 1), 255) if opaque else Image.linear_gradient("L")
    image.putalpha(alpha.resize(image.size))
    return image


def _twelve_bits() -> bytes:
    """Pack two values into three bytes, as TIFF 6.0 says; Pillow cannot write it."""
    values = (RAMP * 16).astype(int).ravel()
    packed = b"".join(((a << 12) | b).to_bytes(3, "big") for a, b in values.reshape(-1, 2).tolist())
    return tiff(grey(60, 40, packed, Tag(258, 3, 1, 12), Tag(259, 3, 1, 1)), data=packed)


def _premultiplied() -> bytes:
    """Declare opaque alpha to be premultiplied, as Pillow cannot write it: tag ExtraSamples, 2 → 1."""
    content = encoded(_with_alpha(COLOUR.convert("L"), opaque=True), "TIFF")
    unassociated, associated = (struct.pack("<HHLHH", 338, 3, 1, kind, 0) for kind in (2, 1))
    assert unassociated in content
    return content.replace(unassociated, associated)


def _ultra_hdr() -> bytes:
    xmp = b'http://ns.adobe.com/xap/1.0/\0<rdf:Description hdrgm:Version="1.0"/>'
    content = SEEDS["two.mpo"]
    return content[:2] + b"\xff\xe1" + (len(xmp) + 2).to_bytes(2, "big") + xmp + content[2:]


def _twelve_bit_jpeg() -> bytes:
    content = bytearray(SEEDS["baseline.jpg"])
    content[content.index(b"\xff\xc0") + 4] = 12
    return bytes(content)


def _tiff(mode: str, **options: Any) -> bytes:  # noqa: ANN401 - Pillow's
    return encoded(COLOUR.convert(mode), "TIFF", **options)


_ANIMATED = {"save_all": True, "append_images": [Image.new("RGB", COLOUR.size, "blue")]}
_SIXTEEN = (RAMP * 256).astype(np.uint16)

IMAGES: dict[str, bytes] = {
    "JPEG baseline": SEEDS["baseline.jpg"],
    "JPEG progressive": SEEDS["progressive.jpg"],
    "JPEG arithmetic": SEEDS["arithmetic.jpg"],
    "JPEG arithmetic progressive": SEEDS["arithmetic-progressive.jpg"],
    "JPEG grey": encoded(COLOUR.convert("L"), "JPEG"),
    "JPEG CMYK": SEEDS["cmyk.jpg"],
    "JPEG YCCK": SEEDS["ycck.jpg"],
    "JPEG of 12 bits": _twelve_bit_jpeg(),
    "MPO": SEEDS["two.mpo"],
    "Ultra HDR": _ultra_hdr(),
    "PNG black and white": encoded(COLOUR.convert("1"), "PNG"),
    "PNG grey": encoded(COLOUR.convert("L"), "PNG"),
    "PNG grey with alpha": encoded(_with_alpha(COLOUR.convert("L")), "PNG"),
    "PNG palette": encoded(COLOUR.quantize(16), "PNG"),
    "PNG palette with transparency": encoded(COLOUR.quantize(16), "PNG", transparency=3),
    "PNG colour": encoded(COLOUR, "PNG"),
    "PNG colour with alpha": encoded(_with_alpha(COLOUR.copy()), "PNG"),
    "PNG grey of 16 bits": encoded(_SIXTEEN, "PNG"),
    "PNG animated": encoded(COLOUR, "PNG", **_ANIMATED),
    "WebP lossy": encoded(COLOUR, "WEBP"),
    "WebP lossless": encoded(COLOUR, "WEBP", lossless=True),
    "WebP with alpha": encoded(_with_alpha(COLOUR.copy()), "WEBP"),
    "WebP animated": encoded(COLOUR, "WEBP", **_ANIMATED),
    "GIF": encoded(COLOUR, "GIF"),
    "GIF animated": encoded(COLOUR, "GIF", **_ANIMATED),
    "BMP colour": encoded(COLOUR, "BMP"),
    "BMP palette": encoded(COLOUR.quantize(256), "BMP"),
    "TIFF black and white": _tiff("1"),
    "TIFF fax": _tiff("1", compression="group4"),
    "TIFF grey": _tiff("L"),
    "TIFF grey with alpha": encoded(_with_alpha(COLOUR.convert("L")), "TIFF"),
    "TIFF grey with premultiplied alpha": _premultiplied(),
    "TIFF palette": encoded(COLOUR.quantize(16), "TIFF"),
    "TIFF colour": _tiff("RGB"),
    "TIFF colour with alpha": encoded(_with_alpha(COLOUR.copy()), "TIFF"),
    "TIFF CMYK": _tiff("CMYK"),
    "TIFF YCbCr": _tiff("YCbCr"),
    "TIFF LAB": _tiff("LAB"),
    "TIFF LZW": _tiff("RGB", compression="tiff_lzw"),
    "TIFF deflate": _tiff("RGB", compression="tiff_adobe_deflate"),
    "TIFF packbits": _tiff("RGB", compression="packbits"),
    "TIFF JPEG": _tiff("RGB", compression="jpeg"),
    "TIFF BigTIFF": SEEDS["big.tif"],
    "TIFF of several pages": SEEDS["pages.tif"],
    "TIFF of 12 bits": _twelve_bits(),
    "TIFF of 16 bits": encoded(_SIXTEEN, "TIFF"),
    "TIFF of 16 bits, big-endian": encoded(_SIXTEEN.astype(">u2"), "TIFF"),
    "TIFF of 32 bits": encoded(_SIXTEEN.astype(np.int32), "TIFF"),
    "TIFF of floats": encoded((RAMP / 255).astype(np.float32), "TIFF"),
    "AVIF": SEEDS["one.avif"],
    "AVIF animated": SEEDS["animated.avif"],
    "HEIC": SEEDS["one.heic"],
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "text": b"one line of text\n",
}


def test_the_table_has_each_kind_once() -> None:
    named = re.findall(r"^\| `([^`]+)` \| `", _TABLE, re.MULTILINE)
    assert sorted(named) == sorted([*IMAGES, "JPEG with a profile", "PNG colour of 16 bits"])


@pytest.mark.parametrize("kind", [kind for kind in IMAGES if ROWS[kind] == "reference" and kind != "HEIC"])
def test_it_gives_the_reference(kind: str) -> None:
    with Image.open(BytesIO(IMAGES[kind])) as image:
        expected = reference(image.convert("LA") if image.mode == "La" else image, HOW)
    assert max_difference(decode(IMAGES[kind], HOW).pixels, expected) <= TOLERANCE
    assert expected.std() > 5, "a flat image would prove nothing"


@pytest.mark.parametrize("kind", [kind for kind in IMAGES if ROWS[kind] == "scaled"])
def test_it_is_scaled(kind: str) -> None:
    expected = decode(encoded(RAMP.astype(np.uint8), "PNG"), HOW).pixels
    decoded = decode(IMAGES[kind], HOW).pixels
    assert max_difference(decoded, expected) <= TOLERANCE
    assert decoded.std() > 50


@pytest.mark.parametrize("kind", [kind for kind in IMAGES if ROWS[kind] not in {"reference", "scaled"}])
def test_it_has_that_status(kind: str) -> None:
    with pytest.raises(ImageError) as caught:
        decode(IMAGES[kind], HOW)
    assert caught.value.status == ROWS[kind]


def test_a_profile_is_not_applied() -> None:
    """Neither is it by the reference: a profile that swaps colours changes nothing."""
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    plain = encoded(COLOUR, "JPEG")
    with_profile = encoded(COLOUR, "JPEG", icc_profile=profile)
    assert b"ICC_PROFILE" in with_profile
    assert (decode(with_profile, HOW).pixels == decode(plain, HOW).pixels).all()
    assert ROWS["JPEG with a profile"] == "reference"


def test_colour_of_sixteen_bits_keeps_its_upper_eight() -> None:
    expected = decode(SEEDS["colour.png"], HOW).pixels
    assert max_difference(decode(SEEDS["colour16.png"], HOW).pixels, expected) == 0
    assert ROWS["PNG colour of 16 bits"] == "scaled"


def test_heic_is_decoded_where_its_extra_is_installed() -> None:
    pytest.importorskip("pillow_heif")
    decoded = decode(SEEDS["one.heic"], HOW)
    assert (decoded.header.width, decoded.header.height, decoded.header.format) == (48, 32, "HEIF")
    expected = decode(SEEDS["colour.png"], HOW).pixels
    assert np.abs(decoded.pixels.astype(int) - expected.astype(int)).mean() < 8
    assert ROWS["HEIC"] == "reference"


def test_heic_without_its_extra_is_unsupported_and_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(ImageError) as caught:
        decode(SEEDS["one.heic"], HOW)
    assert caught.value.status == "unsupported"
    assert "pip install 'nsfw-spark[heic]'" in caught.value.message


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 100, 255], [0, 100, 255]),
        ([0, 256, 65_535], [0, 1, 255]),
        ([0, 1 << 20, 1 << 21], [0, 127, 255]),
        ([-100, 0, 100], [0, 127, 255]),
        ([0, 0, 0], [0, 0, 0]),
        ([7_000_000] * 3, [0, 0, 0]),
    ],
)
def test_integers_are_scaled_by_what_they_hold(values: list[int], expected: list[int]) -> None:
    assert _greys(np.array(values, np.int32)) == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 0.5, 1], [0, 127, 255]),
        ([0, 100, 255], [0, 100, 255]),
        ([0, 25_600, 65_535], [0, 100, 255]),
        ([-1, 0, 1], [0, 127, 255]),
        ([float("nan"), 0, 1], [0, 0, 255]),
        ([float("-inf"), 0, float("inf")], [0, 0, 255]),
        ([float("nan")] * 3, [0, 0, 0]),
    ],
)
def test_floats_are_scaled_by_what_they_hold(values: list[float], expected: list[int]) -> None:
    assert _greys(np.array(values, np.float32)) == expected


def _greys(values: Any) -> list[int]:  # noqa: ANN401 - an array
    """Return what three values become, each seen as the middle of a third of an image."""
    image = np.repeat(values, 100)[None, :].repeat(300, axis=0)
    how = HOW.model_copy(update={"size": 30, "interpolation": "bilinear"})
    return [int(grey) for grey in decode(encoded(image, "TIFF"), how).pixels[15, 5::10, 0]]
