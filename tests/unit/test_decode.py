"""Decoding: every allowed format equals Pillow and torchvision; any other file is an `ImageError`."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from nsfw_spark.decode import DEFAULT_MAX_PIXELS, FORMATS, decode
from nsfw_spark.errors import ImageError, ImageHeader
from nsfw_spark.model_card import Preprocessing
from tests.conftest import PHOTOS, encoded, jpeg, max_difference, pixels, png, reference, textures

TOLERANCE = 2  # of 255: see test_resize.py
CROP = Preprocessing(size=224, mean=(0, 0, 0), std=(1, 1, 1))
SQUASH = CROP.model_copy(update={"fit": "squash", "resize_to": 256})
ORIENTATION = 0x0112


def error(content: bytes | None, **options: Any) -> ImageError:  # noqa: ANN401
    """Return why the content is not decoded."""
    with pytest.raises(ImageError) as caught:
        decode(content, CROP, **options)
    return caught.value


def assert_like_reference(content: bytes, how: Preprocessing = CROP) -> None:
    with Image.open(BytesIO(content)) as image:
        difference = max_difference(decode(content, how).pixels, reference(image, how))
    assert difference <= TOLERANCE


def turned(image: Image.Image, image_format: str, orientation: int) -> bytes:
    """Encode with an EXIF orientation."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return encoded(image, image_format, exif=exif)


@pytest.mark.parametrize("image_format", FORMATS)
def test_every_allowed_format_is_decoded_like_the_reference(image_format: str) -> None:
    content = encoded(pixels(301, 257), image_format)
    assert decode(content, CROP).header == ImageHeader(301, 257, image_format)
    assert_like_reference(content)


def test_what_cameras_write_into_a_jpg_is_decoded() -> None:
    """MPO is a JPEG, and after it a second one."""
    first, second = (Image.fromarray(pixels(seed=seed)) for seed in (0, 1))
    content = encoded(first, "MPO", save_all=True, append_images=[second])
    assert content.startswith(b"\xff\xd8")
    assert_like_reference(content)


@pytest.mark.parametrize("options", [{"progressive": True}, {"subsampling": 2}, {"quality": 10}], ids=str)
def test_every_kind_of_jpeg_is_decoded_like_the_reference(options: dict[str, Any]) -> None:
    assert_like_reference(encoded(pixels(301, 257), "JPEG", **options))


@pytest.mark.parametrize(
    ("mode", "image_format"),
    [
        ("L", "JPEG"),
        ("CMYK", "JPEG"),
        ("CMYK", "TIFF"),
        ("1", "PNG"),
        ("L", "PNG"),
        ("LA", "PNG"),
        ("P", "PNG"),
        ("RGBA", "PNG"),
        ("RGBA", "WEBP"),
        ("P", "GIF"),
    ],
)
def test_every_pixel_mode_is_decoded_like_the_reference(mode: str, image_format: str) -> None:
    image = Image.fromarray(pixels(301, 257)).convert(mode)
    if mode in {"LA", "RGBA"}:
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    content = encoded(image, image_format)
    with Image.open(BytesIO(content)) as stored:
        assert stored.mode == mode
    assert_like_reference(content)


@pytest.mark.parametrize("file", sorted((PHOTOS / "photos").iterdir()), ids=lambda file: file.name)
def test_photographs_are_decoded_like_the_reference(file: Any) -> None:  # noqa: ANN401 - Path
    assert_like_reference(file.read_bytes())
    assert_like_reference(file.read_bytes(), SQUASH)


def test_a_palette_with_transparency_keeps_its_colours() -> None:
    """What shines through is not white: a transparent pixel has the colour that the palette gives it."""
    image = Image.new("P", (10, 10), 1)
    image.putpalette([0, 0, 0, 200, 30, 60])
    content = encoded(image, "PNG", transparency=1)
    assert (decode(content, CROP).pixels == (200, 30, 60)).all()


def test_an_alpha_channel_is_left_out() -> None:
    content = encoded(Image.new("RGBA", (10, 10), (200, 30, 60, 0)), "PNG")
    assert (decode(content, CROP).pixels == (200, 30, 60)).all()


def test_greyscale_fills_three_channels() -> None:
    decoded = decode(encoded(Image.new("L", (10, 10), 77), "PNG"), CROP).pixels
    assert decoded.shape == (224, 224, 3)
    assert (decoded == 77).all()


@pytest.mark.parametrize("image_format", ["PNG", "TIFF"])
@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_sixteen_bits_are_scaled_and_not_clipped(image_format: str, order: str) -> None:
    ramp = np.linspace(0, 65535, 224 * 224).reshape(224, 224)
    content = encoded(ramp.astype(np.uint16).astype(order), image_format)
    expected = (ramp / 256).astype(np.uint8)
    decoded = decode(content, CROP).pixels
    assert max_difference(decoded, np.repeat(expected[..., None], 3, axis=2)) <= TOLERANCE


def test_sixteen_bit_colour_is_scaled() -> None:
    """Pillow cannot write it: 8 x 8 pixels of (0x80FF, 0x10FF, 0xF0FF)."""
    row = b"\x00" + bytes.fromhex("80ff10fff0ff") * 8
    content = png_file(8, 8, bit_depth=16, data=zlib.compress(row * 8))
    assert (decode(content, CROP).pixels == (0x80, 0x10, 0xF0)).all()


@pytest.mark.parametrize("image_format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_frame_counts(image_format: str) -> None:
    red, blue = (Image.new("RGB", (10, 10), colour) for colour in ("red", "blue"))
    content = encoded(red, image_format, save_all=True, append_images=[blue])
    assert max_difference(decode(content, CROP).pixels, np.asarray(red.resize((224, 224)))) <= TOLERANCE


@pytest.mark.parametrize("how", [CROP, SQUASH], ids=["crop", "squash"])
@pytest.mark.parametrize("size", [(301, 200), (200, 301), (30, 41)], ids=str)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int, size: tuple[int, int], how: Preprocessing) -> None:
    image = Image.fromarray(pixels(*size))
    for image_format in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF"):
        assert_like_reference(turned(image, image_format, orientation), how)


@pytest.mark.parametrize("resizer", ["simd", "pillow"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_equals_the_reference_on_hard_textures(orientation: int, resizer: str) -> None:
    """A cubic filter overshoots and is clipped in each of two passes: their order turns with the image."""
    how = CROP.model_copy(update={"resizer": resizer})
    for texture in textures(301, 257).values():
        assert_like_reference(turned(Image.fromarray(texture), "PNG", orientation), how)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_to_sixteen_bits(orientation: int) -> None:
    ramp = np.linspace(0, 255, 120 * 80).reshape(80, 120).astype(np.uint8)
    deep = turned(Image.fromarray(ramp.astype(np.uint16) * 256), "PNG", orientation)
    flat = turned(Image.fromarray(ramp), "PNG", orientation)
    assert_like_reference(flat)
    difference = max_difference(decode(deep, CROP).pixels, decode(flat, CROP).pixels)
    assert difference == 0


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_is_no_orientation(orientation: int) -> None:
    image = Image.fromarray(pixels())
    assert (decode(turned(image, "PNG", orientation), CROP).pixels == decode(png(), CROP).pixels).all()


def test_damaged_exif_does_not_make_an_image_unreadable() -> None:
    content = encoded(pixels(), "JPEG", exif=b"Exif\x00\x00garbage")
    assert (decode(content, CROP).pixels == decode(jpeg(), CROP).pixels).all()


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_draft_moves_pixels_a_little_and_the_header_not(orientation: int) -> None:
    photo = Image.open(PHOTOS / "photos" / "grace-hopper.jpg").resize((1537, 1801))
    content = turned(photo, "JPEG", orientation)
    whole, drafted = (decode(content, CROP.model_copy(update={"jpeg_draft": draft})) for draft in (None, 2))
    assert whole.header == drafted.header == ImageHeader(1537, 1801, "JPEG")
    difference = np.abs(whole.pixels.astype(int) - drafted.pixels.astype(int))
    assert 0 < difference.mean() < 1


def test_reencoding_as_jpeg_is_pillows() -> None:
    how = SQUASH.model_copy(update={"resizer": "pillow", "jpeg_reencode": True})
    plain = decode(png(301, 257), how.model_copy(update={"jpeg_reencode": False})).pixels
    with Image.open(BytesIO(encoded(plain, "JPEG"))) as again:
        assert max_difference(decode(png(301, 257), how).pixels, np.asarray(again)) == 0


def test_no_content_is_missing() -> None:
    assert error(None).status == "missing"


@pytest.mark.parametrize(
    "content", [jpeg(300, 200)[:-3000], (PHOTOS / "corrupt" / "truncated.jpg").read_bytes()]
)
def test_a_truncated_jpeg_is_undecodable_with_its_header(content: bytes) -> None:
    refused = error(content)
    assert refused.status == "undecodable"
    assert refused.header is not None
    assert refused.header.format == "JPEG"


def png_file(width: int, height: int, *, bit_depth: int = 8, data: bytes = b"") -> bytes:
    """Return an RGB PNG of any claimed size around the compressed data."""
    header = struct.pack(">IIBBBBB", width, height, bit_depth, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", data), (b"IEND", b"")]
    body = (
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def test_too_many_pixels_are_refused_from_the_header_alone() -> None:
    """The file holds no pixels: had any been asked for, it would be undecodable."""
    refused = error(png_file(20_000, 6_000))
    assert (refused.status, refused.header) == ("too_large", ImageHeader(20_000, 6_000, "PNG"))
    assert str(DEFAULT_MAX_PIXELS) in refused.message
    assert error(png_file(10_000, 10_000)).status == "undecodable", "the limit itself is allowed"


def test_the_limit_of_pixels_is_the_callers() -> None:
    assert decode(png(60, 40), CROP, max_pixels=2400).header.width == 60
    refused = error(png(60, 40), max_pixels=2399)
    assert (refused.status, refused.header) == ("too_large", ImageHeader(60, 40, "PNG"))


def test_a_decompression_bomb_is_too_large() -> None:
    """Pillow refuses it itself, before it tells the size."""
    assert error(png_file(100_000, 100_000)).status == "too_large"


def test_messages_are_one_short_printable_line() -> None:
    for content in (b"", b"text", jpeg()[:-500], png()[:60], png_file(50, 50, data=b"\x00")):
        message = str(error(content))
        assert message.isascii()
        assert message.isprintable()
        assert len(message) < 300


def assert_decoded_or_refused(content: bytes) -> None:
    try:
        decoded = decode(content, CROP, max_pixels=1_000_000)
    except ImageError as error:
        refused = error
    else:
        refused = None
    if refused is not None:
        assert refused.status in {"undecodable", "unsupported", "too_large"}
        return
    assert decoded.pixels.shape == (224, 224, 3)
    assert decoded.pixels.dtype == np.uint8


SIGNATURES = [
    b"",
    b"\xff\xd8\xff",
    b"\x89PNG\r\n\x1a\n",
    b"GIF89a",
    b"RIFF\x00\x01\x00\x00WEBPVP8 ",
    b"BM",
    b"II*\x00",
    b"\x00\x00\x00\x18ftyp",
]


@settings(max_examples=300, deadline=None)
@given(signature=st.sampled_from(SIGNATURES), rest=st.binary(max_size=200))
def test_random_bytes_raise_only_image_errors(signature: bytes, rest: bytes) -> None:
    if signature + rest:
        assert_decoded_or_refused(signature + rest)


_TURNED = Image.fromarray(pixels(40, 30))
REAL = {
    image_format: turned(_TURNED, image_format, 6) for image_format in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF")
}
REAL |= {image_format: encoded(_TURNED, image_format) for image_format in ("GIF", "BMP")}


@settings(max_examples=600, deadline=None)
@given(
    image_format=st.sampled_from(sorted(REAL)),
    damage=st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(1, 255)), max_size=6),
    kept=st.integers(1, 1000),
)
def test_damaged_images_raise_only_image_errors(
    image_format: str, damage: list[tuple[int, int]], kept: int
) -> None:
    content = bytearray(REAL[image_format])
    for place, flip in damage:
        content[place % len(content)] ^= flip
    assert_decoded_or_refused(bytes(content[: max(1, len(content) * kept // 1000)]))


@settings(max_examples=150, deadline=None)
@given(
    width=st.integers(1, 400), height=st.integers(1, 400), orientation=st.integers(1, 8), squash=st.booleans()
)
def test_any_size_and_orientation_is_decoded(
    width: int, height: int, orientation: int, *, squash: bool
) -> None:
    content = turned(Image.fromarray(pixels(width, height)), "PNG", orientation)
    assert decode(content, SQUASH if squash else CROP).pixels.shape == (224, 224, 3)
