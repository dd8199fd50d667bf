"""Further frames and pages: which are looked at, and what becomes of those that cannot be."""

from __future__ import annotations

import re
import struct
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from nsfw_spark.decode import decode
from nsfw_spark.errors import ImageError
from tests.conftest import encoded, jpeg
from tests.hidden import HIDDEN, HOW, frames, names, plain, strictly


def numbered(count: int, image_format: str, size: tuple[int, int] = (60, 40), **options: object) -> bytes:
    """Return a file of frames of which each looks like no other."""
    greys = [Image.new("L", size, i * 255 // count) for i in range(count)]
    return encoded(greys[0], image_format, save_all=True, append_images=greys[1:], **options)


def truncated(content: bytes, share: float) -> bytes:
    return content[: int(len(content) * share)]


def page_data(content: bytes | bytearray, number: int) -> list[int]:
    """Return where the strips of a TIFF's page begin."""
    with Image.open(BytesIO(content)) as image:
        image.seek(number)
        return list(image.tag_v2[273])


def test_of_a_long_animation_every_so_many_frames_are_seen() -> None:
    for count, step in ((8, 1), (9, 2), (16, 2), (17, 4), (100, 16)):
        for image_format in ("GIF", "PNG"):
            seen = [f"frame {number + 1}" for number in range(step, count, step)]
            assert names(numbered(count, image_format)) == ["centre", *seen]


def test_of_many_pages_every_so_many_are_seen() -> None:
    for count, step in ((8, 1), (9, 2), (20, 4)):
        seen = [f"page {number + 1}" for number in range(step, count, step)]
        assert names(numbered(count, "TIFF")) == ["centre", *seen]


def test_an_animation_is_walked_through_as_far_as_the_limit_of_pixels_goes() -> None:
    content = numbered(8, "GIF")
    seen = names(content, max_pixels=60 * 40 * 4)
    assert seen == ["centre", "frame 2", "frame 3", "frame 4", "frame 5"]
    assert decode(content, HOW, max_pixels=60 * 40).further == ()


def test_of_an_animation_that_would_take_too_much_memory_the_first_frame_is_seen() -> None:
    for image_format, enough in (("GIF", 3), ("PNG", 3), ("WEBP", 4), ("AVIF", 12)):
        content = numbered(3, image_format, (600, 400))
        assert names(content, max_pixels=600 * 400 * enough) != ["centre"]
        assert names(content, max_pixels=600 * 400 * 2) == ["centre"]


def test_pages_are_seen_as_far_as_the_limit_of_pixels_goes() -> None:
    assert names(numbered(8, "TIFF"), max_pixels=60 * 40 * 2) == ["centre", "page 2", "page 3"]


def test_of_endless_frames_the_first_thousand_are_seen() -> None:
    """All are as small as can be: their pixels are no limit."""
    content = numbered(256, "GIF", size=(1, 1))
    one = content[content.index(b"\x21\xf9") : -1]
    endless = content[:-1] + one * 40 + b";"
    seen = names(endless)
    assert 4 <= len(seen) <= 8
    assert max(int(number) for name in seen for number in re.findall(r"frame (\d+)", name)) <= 1000


def test_an_animation_that_is_damaged_later_on_keeps_its_first_frames() -> None:
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 255, (40, 60, 3), np.uint8)) for _ in range(6)]
    for image_format in ("GIF", "PNG"):
        content = encoded(images[0], image_format, save_all=True, append_images=images[1:])
        found = strictly(truncated(content, 0.5))
        assert found.num_frames in {2, 3}
        assert found.header == decode(content, HOW).header


def test_a_page_that_is_damaged_hides_none_behind_it() -> None:
    content = bytearray(frames(["black", "red", "white"], "TIFF", compression="tiff_lzw"))
    for place in page_data(content, 1):
        content[place : place + 8] = b"\xff" * 8
    assert names(bytes(content)) == ["centre", "page 3"]


def test_pages_that_point_at_each_other_are_seen_once() -> None:
    content = bytearray(frames(["black", "white"], "TIFF"))
    (first,) = struct.unpack_from("<L", content, 4)
    (count,) = struct.unpack_from("<H", content, first)
    (second,) = struct.unpack_from("<L", content, first + 2 + 12 * count)
    (count,) = struct.unpack_from("<H", content, second)
    struct.pack_into("<L", content, second + 2 + 12 * count, first)
    assert names(bytes(content)) == ["centre", "page 2"]


def test_a_page_that_is_too_large_is_passed_over() -> None:
    images = [plain("black"), plain("grey", (600, 400)), plain("white")]
    content = encoded(images[0], "TIFF", save_all=True, append_images=images[1:])
    assert names(content, max_pixels=60 * 40 * 50) == ["centre", "page 3"]


@pytest.mark.parametrize(
    "content", [b"text", jpeg()[:400], b"%PDF-1.7", truncated(HIDDEN["animated.png"].content, 0.1)]
)
def test_the_first_frame_decides_whether_there_is_a_score(content: bytes) -> None:
    with pytest.raises(ImageError) as default:
        decode(content, HOW)
    with pytest.raises(ImageError) as found:
        strictly(content)
    assert found.value.args == default.value.args
