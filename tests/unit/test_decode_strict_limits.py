"""All views of an image together take no more memory and frames than the limits allow."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nsfw_spark.decode.memory import memory_of_walk
from nsfw_spark.decode.opening import BYTES_PER_PIXEL, Limits, open_image
from tests.conftest import encoded
from tests.hidden import exif_with_thumbnail, frames, mpo
from tests.hostile.made import SEEDS
from tests.hostile.pngs import chunk, png, zeros
from tests.hostile.tiffs import grey, tiff

_GIGABYTE = 1 << 30
_SIDES = (3000, 1400)
_NUM_PIXELS = _SIDES[0] * _SIDES[1]
_SLACK = 36_000_000  # bytes: code that a format loads on first use, up to 72 views, what is scaled of one
_ANIMATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "frames.gif": ("RGB", {"disposal": 2}),
    "transparent-frames.gif": ("RGBA", {"disposal": 3}),
    "frames.png": ("RGBA", {"disposal": 2, "compress_level": 1}),
    "frames.webp": ("RGBA", {"quality": 50, "method": 0}),
    "frames.avif": ("RGBA", {"speed": 10, "subsampling": "4:4:4"}),
}
_PAGES: dict[str, tuple[str, dict[str, Any]]] = {
    "pages.tiff": ("RGBA", {"compression": "tiff_adobe_deflate"}),
    "cmyk-pages.tiff": ("CMYK", {"compression": "tiff_adobe_deflate"}),
    "pictures.mpo": ("RGB", {"progressive": True, "subsampling": 0}),
}
_NUM_FRAMES = 5


def large(name: str, mode: str, options: dict[str, Any]) -> bytes:
    """Return a file of several frames, each more than twice as long as wide, transparent if it can be."""
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 255, (_SIDES[1] // 100, _SIDES[0] // 100 + _NUM_FRAMES, 4), np.uint8)
    images = [
        Image.fromarray(blocks[:, i : i + _SIDES[0] // 100])
        .resize(_SIDES, Image.Resampling.NEAREST)
        .convert(mode)
        for i in range(_NUM_FRAMES)
    ]
    image_format = name.rpartition(".")[2].upper()
    if image_format == "MPO":
        return mpo([encoded(image, "JPEG", **options) for image in images])
    return encoded(images[0], image_format, save_all=True, append_images=images[1:], **options)


def transparent_red() -> bytes:
    """Return a PNG in RGB, one of whose colours is declared to be transparent: it has no alpha channel."""
    content = encoded(Image.new("RGB", _SIDES), "PNG")
    end = content.index(b"IDAT") - 4
    return content[:end] + chunk(b"tRNS", bytes(6)) + content[end:]


def panorama() -> bytes:
    return encoded(Image.new("RGBA", _SIDES), "PNG")


def overlapping_pictures() -> bytes:
    """Return an MPO of 4,000 pictures, each of which would have all of the file, 20 MB."""
    length = 20_000_000
    return mpo([SEEDS["baseline.jpg"], *[b""] * 3999], sizes_of=length).ljust(length, b"\0")


def thumbnail_of_its_own_size() -> bytes:
    """Return a PNG of nearly as many pixels as are allowed, in whose EXIF lies another."""
    content = png(9_900, 9_900, data=zeros(39_601 * 9_900), colour=6)
    return content[:33] + chunk(b"eXIf", exif_with_thumbnail(content)) + content[33:]


def growing_gif() -> bytes:
    """Return a GIF of one pixel that a frame after several makes one of 169 million."""
    content = frames(["black", "white"] * 10, "GIF", (2, 2))
    place = -1
    for _ in range(9):
        place = content.index(b"\x2c\0\0\0\0\x02\0\x02\0", place + 1)
    return content[: place + 5] + struct.pack("<HH", 13_000, 13_000) + content[place + 9 :]


def endless_pages() -> bytes:
    """Return a TIFF of one page that can be decoded and a million without any tag."""
    data, start = zlib.compress(bytes(48 * 32)), 2000
    first = tiff(grey(48, 32, data), data=data, following=start).ljust(start, b"\0")
    return first + b"".join(struct.pack("<HL", 0, start + 6 * (i + 1)) for i in range(1_000_000))


_GIANTS = {
    "overlapping.jpg": overlapping_pictures,
    "thumbnail.png": thumbnail_of_its_own_size,
    "growing.gif": growing_gif,
    "endless.tiff": endless_pages,
}
_STILL = {"transparent-red.png": transparent_red, "panorama.png": panorama}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("views")
    for name, (mode, options) in {**_ANIMATIONS, **_PAGES}.items():
        (directory / name).write_bytes(large(name, mode, options))
    for name, make in {**_GIANTS, **_STILL}.items():
        (directory / name).write_bytes(make())
    return directory


@pytest.fixture(scope="module")
def outcomes(files: Path) -> dict[str, dict[str, Any]]:
    """Decode all views of each, in a process of its own, and return how that ended."""
    command = [sys.executable, "-m", "tests.outcomes", str(files), "--strict"]
    run = subprocess.run(command, capture_output=True, check=True, cwd=Path(__file__).parents[2])
    return {outcome["name"]: outcome for outcome in map(json.loads, run.stdout.splitlines())}


@pytest.mark.parametrize("name", _ANIMATIONS)
def test_to_walk_through_an_animation_takes_no_more_memory_than_is_reckoned(
    name: str, files: Path, outcomes: dict[str, dict[str, Any]]
) -> None:
    found, content = outcomes[name], (files / name).read_bytes()
    assert (found["status"], found["num_frames"]) == ("ok", _NUM_FRAMES)
    needed = memory_of_walk(open_image(content, Limits()).image, content)
    assert needed / 3 < found["peak_bytes"] < needed + _SLACK


@pytest.mark.parametrize("name", _PAGES)
def test_pages_take_no_more_memory_than_the_limit_of_pixels_stands_for(
    name: str, files: Path, outcomes: dict[str, dict[str, Any]]
) -> None:
    found, length = outcomes[name], (files / name).stat().st_size
    assert (found["status"], found["num_frames"]) == ("ok", _NUM_FRAMES)
    assert 4 * _NUM_PIXELS < found["peak_bytes"] < BYTES_PER_PIXEL * _NUM_PIXELS + length + _SLACK


@pytest.mark.parametrize("name", _STILL)
def test_backgrounds_and_tiles_take_no_more_memory_than_the_limit_of_pixels_stands_for(
    name: str, outcomes: dict[str, dict[str, Any]]
) -> None:
    found = outcomes[name]
    assert found["status"] == "ok"
    assert found["num_views"] > 1
    assert 4 * _NUM_PIXELS < found["peak_bytes"] < 8 * _NUM_PIXELS + _SLACK


@pytest.mark.parametrize("name", _GIANTS)
def test_what_is_made_to_take_more_does_not_get_a_gigabyte(
    name: str, outcomes: dict[str, dict[str, Any]]
) -> None:
    found = outcomes[name]
    assert found["status"] == "ok", found["message"]
    assert found["peak_bytes"] < _GIGABYTE
    assert found["seconds"] < 30  # the default of --decode-timeout-seconds
