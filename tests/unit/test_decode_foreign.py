"""Files of formats that are not decoded: their row says which format it is."""

from __future__ import annotations

import struct

import pytest
from PIL import Image

from nsfw_spark.decode import decode
from nsfw_spark.errors import ImageError
from tests.conftest import PHOTOS, encoded, jpeg, pixels, png
from tests.hostile.tiffs import Tag, grey, tiff
from tests.outcomes import HOW

FTYP = b"\x00\x00\x00\x18ftyp"
COLOUR = Image.fromarray(pixels(16, 16))


def error(content: bytes) -> ImageError:
    """Return why the content is not decoded."""
    with pytest.raises(ImageError) as caught:
        decode(content, HOW)
    return caught.value


def tga(mode: str, **options: object) -> bytes:
    """Return a TGA without the footer of version 2, as older programs write it."""
    return encoded(COLOUR.convert(mode), "TGA", **options).partition(b"\0" * 8 + b"TRUEVISION")[0]


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"%PDF-1.7\n%\xe2\xe3", "PDF"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (b'\n  <?xml version="1.0"?><svg/>', "SVG"),
        (b"<!DOCTYPE html><html></html>", "HTML"),
        (b"<html></html>", "HTML"),
        (FTYP + b"isom\x00\x00\x02\x00isomiso2", "MP4"),
        (FTYP + b"qt  \x00\x00\x02\x00qt  ", "QuickTime"),
        (b"\x1aE\xdf\xa3\x01", "WebM"),
        (b"PK\x03\x04\x14\x00", "ZIP"),
        (b"8BPS\x00\x01", "PSD"),
        (encoded(COLOUR, "ICO"), "ICO"),
        (encoded(COLOUR, "JPEG2000"), "JPEG 2000"),
        (bytes(257) + b"ustar\x0000", "a tar archive"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(500), "FlashPix"),
        (b"qoif" + struct.pack(">IIBB", 1, 1, 3, 0) + bytes(8), "QOI"),
        (b"Image type: L image\r\nName: a.im\r\n" + bytes(700), "an IM image"),
        (b"width 16\nheight 16\npixel n8\n\x0c" + bytes(256), "an IM Tools image"),
        (b"*a comment\nwidth 16\nheight 16\npixel n8\n\x0c" + bytes(256), "an IM Tools image"),
        (bytes(2048) + b"PCD_IPI" + bytes(2000), "PhotoCD"),
        (encoded(COLOUR.convert("F"), "SPIDER"), "SPIDER"),
        (encoded(COLOUR, "TGA"), "TGA"),
        (tga("RGB"), "TGA"),
        (tga("RGBA"), "TGA"),
        (tga("RGB", compression="tga_rle"), "TGA"),
        (tga("L"), "TGA"),
        (tga("LA"), "TGA"),
        (tga("P"), "TGA"),
        (b"\x00\x00\x02\x00\x01\x00\x20\x20\x00\x00" + bytes(20), "CUR"),
    ],
)
def test_a_format_that_is_not_decoded_is_unsupported_by_name(content: bytes, name: str) -> None:
    refused = error(content)
    assert refused.status == "unsupported"
    assert name in refused.message


@pytest.mark.parametrize("image_format", ["PPM", "TGA", "EPS", "PCX", "ICNS"])
def test_pillows_other_parsers_get_nothing(image_format: str) -> None:
    assert error(encoded(COLOUR, image_format)).status == "unsupported"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "0 bytes"),
        (b"one line of plain text", "not an image"),
        (bytes(1000), "not an image"),
        (b"width of the road\n", "not an image"),
        (jpeg()[:30], "begins like JPEG|damaged"),
        (png()[:12], "begins like PNG|damaged"),
        (b"GIF89a", "begins like GIF|damaged"),
        ((PHOTOS / "corrupt" / "not-an-image.jpg").read_bytes(), "not an image"),
    ],
)
def test_a_file_that_is_no_image_is_undecodable(content: bytes, reason: str) -> None:
    refused = error(content)
    assert refused.status == "undecodable"
    assert refused.header is None
    assert any(part in refused.message for part in reason.split("|"))


def test_a_reason_is_more_than_a_number() -> None:
    """Pillow's parser raises KeyError(12336) for this compression."""
    data = bytes(64)
    content = tiff(grey(8, 8, data, Tag(259, 3, 1, 12336)), data=data)
    assert error(content).message.endswith("KeyError 12336")
