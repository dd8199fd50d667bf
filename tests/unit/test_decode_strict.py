"""Strict scoring: hidden content is found, within bounds, and a damaged frame loses no image."""

from __future__ import annotations

import re
import struct
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nsfw_spark import ImageScore, Scorer
from nsfw_spark.decode import MOST_VIEWS, decode
from nsfw_spark.encoders import Encoded
from nsfw_spark.errors import ImageError
from nsfw_spark.heads import Predictions
from nsfw_spark.isolation import GuardedDecoder, IsolatedDecoder
from nsfw_spark.model import Model
from tests.conftest import PHOTOS, encoded, jpeg, max_difference, pixels, png
from tests.fakes import WAIT, FakeEncoder, FakeHead, card
from tests.hidden import (
    HIDDEN,
    HOW,
    Hidden,
    frames,
    heic,
    names,
    partly,
    plain,
    strictly,
    with_exif_thumbnail,
)
from tests.hostile.made import SEEDS

BRIGHT, DARK = 0.9, 0.1
STILL = sorted([*(PHOTOS / "photos").iterdir(), *(PHOTOS / "variants").iterdir()])


class DarkHead(FakeHead):
    """The score of a grey image of value v is 1 - v / 255."""

    def score(self, encoded: Encoded) -> Predictions:
        return Predictions(1 - super().score(encoded).nsfw_scores)


def scorer(*, strict: bool, head: FakeHead | None = None, batch_size: int = 4) -> Scorer:
    model = Model(FakeEncoder(), head or FakeHead(), "fingerprint", batch_size)
    return Scorer(card(), model, strict=strict)


def score(content: bytes, *, strict: bool = True, head: FakeHead | None = None) -> ImageScore:
    (found,) = scorer(strict=strict, head=head).score([content])
    return found


@pytest.mark.parametrize("name", HIDDEN)
def test_what_is_hidden_is_found_and_it_is_said_where(name: str) -> None:
    hidden = HIDDEN[name]
    found, default = score(hidden.content), score(hidden.content, strict=False)
    assert default.status == found.status == "ok"
    assert default.nsfw_score is not None
    assert default.nsfw_score < DARK, "it is not hidden"
    assert found.nsfw_score is not None
    assert found.nsfw_score > BRIGHT
    assert (found.scored_view, found.frames_scored) == (hidden.view, hidden.num_frames)
    assert found.embedding is not None
    assert found.embedding[0] == pytest.approx(found.nsfw_score)
    assert (default.scored_view, default.frames_scored) == (None, None)


def test_so_it_is_in_a_heic() -> None:
    pytest.importorskip("pillow_heif")
    hidden: Hidden = heic()
    found = score(hidden.content)
    assert found.nsfw_score is not None
    assert found.nsfw_score > BRIGHT
    assert (found.scored_view, found.frames_scored) == (hidden.view, hidden.num_frames)


def test_what_shows_on_black_alone_is_found() -> None:
    content = encoded(plain((255, 255, 255, 0), mode="RGBA"), "PNG")
    assert score(content, strict=False, head=DarkHead()).nsfw_score == pytest.approx(0, abs=1e-6)
    found = score(content, head=DarkHead())
    assert (found.nsfw_score, found.scored_view) == (pytest.approx(1), "on black")


@pytest.mark.parametrize("file", STILL, ids=lambda file: file.name)
def test_a_strict_score_is_never_below_the_default_one(file: Path) -> None:
    content = file.read_bytes()
    for head in (FakeHead(), DarkHead()):
        default, found = score(content, strict=False, head=head), score(content, head=head)
        assert default.status == found.status
        assert default.nsfw_score is not None
        assert found.nsfw_score is not None
        assert found.nsfw_score >= default.nsfw_score - 1e-6


@pytest.mark.parametrize("content", [png(), jpeg(80, 41), encoded(pixels(61, 43), "WEBP")])
def test_an_ordinary_image_has_one_view_and_its_pixels_are_those_of_the_default(content: bytes) -> None:
    found, default = strictly(content), decode(content, HOW)
    assert [view.name for view in found.views] == ["centre"]
    assert np.array_equal(found.pixels, default.pixels)
    assert (default.further, default.num_frames) == ((), 1)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 64])
def test_views_may_lie_in_several_batches(batch_size: int) -> None:
    contents = [HIDDEN["strip.png"].content, b"", png(), HIDDEN["animated.gif"].content, None, png(seed=1)]
    found = scorer(strict=True, batch_size=batch_size).score(contents)
    assert [row.status for row in found] == ["ok", "undecodable", "ok", "ok", "missing", "ok"]
    views = [row.scored_view for row in found]
    assert views == ["tile 6 of 6", None, "centre", "frame 5", None, "centre"]
    assert [row.width for row in found] == [40, None, 60, 60, None, 60]


def test_a_view_that_the_model_gives_no_number_for_leaves_the_image_without_a_score() -> None:
    for content in (HIDDEN["animated.gif"].content, HIDDEN["panorama.png"].content):
        found = score(content, head=FakeHead(broken_above=0.8))
        assert (found.status, found.nsfw_score, found.embedding) == ("not_finite", None, None)


def test_a_strict_scorer_has_a_fingerprint_of_its_own() -> None:
    assert scorer(strict=False).fingerprint == "fingerprint"
    assert scorer(strict=True).fingerprint == "fingerprint-strict"


def test_decoders_that_isolate_give_the_same_views() -> None:
    with IsolatedDecoder(WAIT) as isolated, GuardedDecoder(WAIT) as guarded:
        for hidden in HIDDEN.values():
            expected = strictly(hidden.content)
            for found in (
                isolated(hidden.content, HOW, strict=True),
                guarded(hidden.content, HOW, strict=True),
            ):
                assert [view.name for view in found.views] == [view.name for view in expected.views]
                assert found.num_frames == expected.num_frames
                for one, other in zip(found.views, expected.views, strict=True):
                    assert np.array_equal(one.pixels, other.pixels)


def test_no_image_has_more_views_than_are_reckoned_with() -> None:
    """An animation of eight frames, each a transparent panorama."""
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 255, (20, 400, 4), np.uint8)) for _ in range(20)]
    content = encoded(images[0], "PNG", save_all=True, append_images=images[1:])
    found = strictly(content)
    assert found.num_frames == 5
    assert len(found.views) == 5 * 3 * 9 <= MOST_VIEWS
    assert len({view.name for view in found.views}) == len(found.views)


def test_an_opaque_image_has_no_background_and_what_is_black_behind_alpha_is_not_shown_twice() -> None:
    assert names(encoded(plain((9, 9, 9, 255), mode="RGBA"), "PNG")) == ["centre"]
    assert names(encoded(plain((0, 0, 0, 0), mode="RGBA"), "PNG")) == ["centre", "on white"]
    assert names(encoded(plain((9, 9, 9, 0), mode="RGBA"), "PNG")) == ["centre", "on white", "on black"]


def test_an_image_has_tiles_if_it_is_more_than_twice_as_long_as_wide() -> None:
    for width, height, count in (
        (80, 40, 0),
        (81, 40, 3),
        (40, 81, 3),
        (120, 40, 3),
        (320, 40, 8),
        (4000, 40, 8),
    ):
        expected = [f"tile {i} of {count}" for i in range(1, count + 1)]
        assert names(png(width, height)) == ["centre", *expected]


def test_tiles_cover_an_image_from_end_to_end() -> None:
    """A white stripe as narrow as a tenth of the width is seen wherever it is."""
    for width in (90, 130, 320, 1000):
        for left in range(0, width - 4, 7):
            image = partly((width, 40), (left, 0, left + 4, 40))
            assert max(view.pixels.mean() for view in strictly(encoded(image, "PNG")).views) > 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_tiles_are_upright(orientation: int) -> None:
    upright = Image.fromarray(pixels(200, 50))
    stored = {
        1: lambda image: image,
        2: lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: lambda image: image.transpose(Image.Transpose.ROTATE_180),
        4: lambda image: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: lambda image: image.transpose(Image.Transpose.TRANSPOSE),
        6: lambda image: image.transpose(Image.Transpose.ROTATE_90),
        7: lambda image: image.transpose(Image.Transpose.TRANSVERSE),
        8: lambda image: image.transpose(Image.Transpose.ROTATE_270),
    }[orientation](upright)
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = strictly(encoded(stored, "PNG", exif=exif)).further
    expected = strictly(encoded(upright, "PNG")).further
    assert len(found) == len(expected) == 4
    if orientation in {2, 3, 6, 7}:
        found = found[::-1]  # tiles are numbered as they are stored
    for one, other in zip(found, expected, strict=True):
        assert max_difference(one.pixels, other.pixels) <= 2


@pytest.mark.parametrize("file", sorted((PHOTOS / "photos").iterdir()), ids=lambda file: file.name)
def test_a_thumbnail_of_the_image_itself_costs_nothing_and_another_one_is_seen(file: Path) -> None:
    with Image.open(file) as photo:
        image = photo.convert("RGB")
    small = image.copy()
    small.thumbnail((160, 160))
    assert "thumbnail" not in names(with_exif_thumbnail(image, encoded(small, "JPEG", quality=70)))
    small.paste("white", (40, 20, 60, 40))
    small.paste("black", (60, 20, 80, 40))
    seen = names(with_exif_thumbnail(image, encoded(small, "JPEG", quality=70)))
    assert any(name.startswith("thumbnail") for name in seen)


def test_a_long_thumbnail_is_seen_to_its_ends_though_its_middle_is_that_of_the_image() -> None:
    found = score(with_exif_thumbnail(plain("black"), HIDDEN["panorama.png"].content))
    assert (found.scored_view, found.frames_scored) == ("thumbnail, tile 1 of 6", 1)


@pytest.mark.parametrize(
    "thumbnail", [b"text", jpeg(16, 12)[:200], b"\xff\xd8\xff", HIDDEN["exif.jpg"].content[:99]]
)
def test_a_damaged_thumbnail_does_not_lose_the_image(thumbnail: bytes) -> None:
    found = score(with_exif_thumbnail(plain("black"), thumbnail))
    assert (found.status, found.scored_view) == ("ok", "centre")


def test_exif_that_points_anywhere_does_not_lose_the_image() -> None:
    good = HIDDEN["exif.jpg"].content
    start = good.index(b"II*\0")
    for place in (8, 10, 14, 20, 24, 36):
        for value in (0, 14, 0xFFFF, 0xFFFFFFFF):
            content = bytearray(good)
            struct.pack_into("<L", content, start + place, value)
            assert score(bytes(content)).status == "ok"


@pytest.mark.parametrize("name", SEEDS)
def test_every_kind_of_image_has_a_strict_score(name: str) -> None:
    if name.endswith("heic"):
        pytest.importorskip("pillow_heif")
    assert score(SEEDS[name]).status == score(SEEDS[name], strict=False).status == "ok"


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
