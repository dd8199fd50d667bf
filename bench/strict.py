"""What does --strict cost?

Decodes images of several kinds with and without it, in turns, and scores them with open_nsfw. Prints for each
kind the views of an image, and how many times longer decoding and scoring take than by default.

    python bench/strict.py [--images 40] [--rounds 5]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib import metadata
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from nsfw_spark import load_scorer
from nsfw_spark.decode import decode

_PHOTOS = sorted((Path(__file__).parent.parent / "examples/images/photos").glob("*.jpg"))
_FRAMES = 24
_PAGES = 8
_SIZE = (640, 480)
_PANORAMA = (1920, 480)


def main() -> None:
    """Run the benchmark and print its result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=40, help="images of each kind")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    result = {
        "benchmark": "strict",
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "versions": {library: metadata.version(library) for library in ("pillow", "cykooz-resizer")},
        "images": given.images,
        "rounds": given.rounds,
        "kinds": {
            name: _measured([make(_photo(i)) for i in range(given.images)], given.rounds)
            for name, make in _KINDS.items()
        },
    }
    print(json.dumps(result, indent=2))


def _measured(contents: Sequence[bytes], rounds: int) -> dict[str, float]:
    plain, strict = (
        load_scorer("open-nsfw", device="cpu"),
        load_scorer("open-nsfw", device="cpu", strict=True),
    )
    how = plain.card.preprocessing

    def decode_all(*, strict: bool) -> int:
        return sum(len(decode(content, how, strict=strict).views) for content in contents)

    views = decode_all(strict=True)
    decoding = _in_turns(lambda: decode_all(strict=False), lambda: decode_all(strict=True), rounds)
    scoring = _in_turns(lambda: plain.score(contents), lambda: strict.score(contents), rounds)
    return {
        "views_per_image": round(views / len(contents), 2),
        "decode_ms": round(1000 * decoding[0] / len(contents), 2),
        "decode_ms_strict": round(1000 * decoding[1] / len(contents), 2),
        "decode_ratio": round(decoding[1] / decoding[0], 2),
        "score_ratio": round(scoring[1] / scoring[0], 2),
    }


def _in_turns(one: Callable[[], Any], other: Callable[[], Any], rounds: int) -> tuple[float, float]:
    """Return the median seconds of each function."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for function, taken in zip((one, other), seconds, strict=True):
            started = time.perf_counter()
            function()
            taken.append(time.perf_counter() - started)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def _photo(number: int) -> Image.Image:
    """Return a photograph of the examples; each repetition crops another part of it."""
    photo = Image.open(_PHOTOS[number % len(_PHOTOS)]).convert("RGB")
    margin = min(photo.size) // 100 * (number // len(_PHOTOS))
    return photo.crop((margin, margin, *photo.size)).resize(_SIZE, Image.Resampling.BICUBIC)


def _encoded(image: Image.Image, image_format: str, **options: Any) -> bytes:  # noqa: ANN401 - Pillow's
    buffer = BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def _transparent(image: Image.Image) -> bytes:
    image.putalpha(Image.radial_gradient("L").resize(image.size).point(lambda value: 255 - value))
    return _encoded(image, "PNG")


def _series(image: Image.Image, count: int, image_format: str) -> bytes:
    """Return a file with several frames, in which the picture moves."""
    frames = [
        image.transform(image.size, Image.Transform.AFFINE, (1, 0, 4 * i, 0, 1, 0)) for i in range(count)
    ]
    return _encoded(frames[0], image_format, save_all=True, append_images=frames[1:])


_KINDS: dict[str, Callable[[Image.Image], bytes]] = {
    "photographs, JPEG": lambda image: _encoded(image, "JPEG", quality=85),
    "opaque, PNG": lambda image: _encoded(image, "PNG"),
    "transparent, PNG": _transparent,
    "panoramas 4:1, JPEG": lambda image: _encoded(image.resize(_PANORAMA), "JPEG", quality=85),
    f"animations of {_FRAMES} frames, GIF": lambda image: _series(image, _FRAMES, "GIF"),
    f"animations of {_FRAMES} frames, WebP": lambda image: _series(image, _FRAMES, "WEBP"),
    f"{_PAGES} pages, TIFF": lambda image: _series(image, _PAGES, "TIFF"),
}


if __name__ == "__main__":
    main()
