"""Thumbnails: small, upright, whole, and made by any decoder."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from nsfw_spark.decode import decode
from nsfw_spark.errors import ImageError
from nsfw_spark.isolation import IsolatedDecoder
from nsfw_spark.review.thumbnail import thumbnail
from tests.conftest import png


def encoded(width: int, height: int, orientation: int = 1, image_format: str = "JPEG") -> bytes:
    """Return an image, red on the left and blue on the right as stored, with an EXIF orientation."""
    image = Image.new("RGB", (width, height), "blue")
    image.paste("red", (0, 0, width // 2, height))
    exif = Image.Exif()
    exif[274] = orientation
    buffer = io.BytesIO()
    image.save(buffer, image_format, exif=exif)
    return buffer.getvalue()


def opened(content: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(content))
    assert image.format == "WEBP"
    return image.convert("RGB")


@pytest.mark.parametrize(
    ("width", "height", "size"),
    [(800, 400, (176, 88)), (400, 800, (88, 176)), (40, 30, (40, 30)), (3000, 4, (176, 1)), (1, 1, (1, 1))],
)
def test_it_has_the_shape_of_the_image_and_is_never_larger(
    width: int, height: int, size: tuple[int, int]
) -> None:
    assert opened(thumbnail(encoded(width, height), decode)).size == size


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_it_is_upright(image_format: str, orientation: int) -> None:
    small = opened(thumbnail(encoded(320, 160, orientation, image_format), decode))
    assert small.size == ((176, 88) if orientation < 5 else (88, 176))
    red = {1: "left", 4: "left", 2: "right", 3: "right", 5: "top", 6: "top", 7: "bottom", 8: "bottom"}
    at = {"left": (10, 40), "right": (165, 40), "top": (40, 10), "bottom": (40, 165)}
    red_pixel = small.getpixel(at[red[orientation]])
    assert isinstance(red_pixel, tuple)
    assert (red_pixel[0] > 200, red_pixel[2] < 60) == (True, True), red_pixel


def test_a_child_process_makes_the_same() -> None:
    content = encoded(320, 160, 6)
    with IsolatedDecoder() as decoder:
        assert thumbnail(content, decoder) == thumbnail(content, decode)


def test_it_keeps_no_metadata() -> None:
    small = Image.open(io.BytesIO(thumbnail(encoded(320, 160, 6), decode)))
    assert dict(small.getexif()) == {}


def test_an_image_that_cannot_be_decoded_raises_the_reason() -> None:
    with pytest.raises(ImageError, match="not an image"):
        thumbnail(b"only text", decode)
    with pytest.raises(ImageError, match="forbidden"):
        thumbnail(ImageError("missing", "forbidden"), decode)
    with pytest.raises(ImageError, match="max_pixels"):
        thumbnail(png(), decode, max_pixels=1)
