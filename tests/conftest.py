"""What all tiers of tests share: images made on the spot, and the marker that a folder gives its tests."""

from __future__ import annotations

import os
import shutil
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageOps

from nsfw_spark.model_card import Preprocessing

PHOTOS = Path(__file__).parents[1] / "examples" / "images"
_HERE = Path(__file__).parent
LAION_ARCHIVES = sorted((_HERE / "data").glob("clip_autokeras_*.zip"))
LAION_HEADS = _HERE.parent / "nsfw_spark" / "models" / "laion"
_TIERS = frozenset({"browser", "fuzz", "models", "spark", "cluster", "gpu", "network"})
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test with its folder, so that the marker cannot be forgotten."""
    for item in items:
        tier = item.path.relative_to(_HERE).parts[0]
        if tier in _TIERS:
            item.add_marker(tier)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs a GPU or a browser where there is none; on a machine that must have one, fail."""
    if item.get_closest_marker("browser") is not None and not any(map(shutil.which, _BROWSERS)):
        if os.environ.get("FAIL_WITHOUT_BROWSER") == "1":
            pytest.fail("FAIL_WITHOUT_BROWSER is 1, and Chromium is not in PATH", pytrace=False)
        pytest.skip("needs Chromium: sudo apt-get install chromium; macOS: brew install chromium")
    if item.get_closest_marker("gpu") is None:
        return
    import torch  # takes seconds: only where a GPU test is about to run

    if torch.cuda.is_available():
        return
    if os.environ.get("FAIL_WITHOUT_GPU") == "1":
        pytest.fail("FAIL_WITHOUT_GPU is 1, and torch sees no CUDA device", pytrace=False)
    pytest.skip("needs a CUDA device")


def pixels(width: int = 60, height: int = 40, *, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Return uint8 (height, width, 3), RGB: smooth waves under a little noise, as photographs are."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    phases = rng.uniform(0, 6, 3)
    waves = [np.sin(x / (11 + 7 * i) + phase) + np.cos(y / (17 - 3 * i)) for i, phase in enumerate(phases)]
    noise = rng.normal(0, 4, (height, width, 3))
    return np.clip(128 + 50 * np.stack(waves, axis=-1) + noise, 0, 255).astype(np.uint8)


def encoded(image: Image.Image | npt.NDArray[Any], image_format: str, **options: Any) -> bytes:  # noqa: ANN401
    """Encode pixels as a file of the format; `options` are those of Pillow's `save`."""
    if not isinstance(image, Image.Image):
        image = Image.fromarray(image)
    buffer = BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def png(width: int = 60, height: int = 40, *, seed: int = 0) -> bytes:
    """Return a PNG of seeded pixels: it decodes to exactly `pixels(...)`."""
    return encoded(pixels(width, height, seed=seed), "PNG")


def jpeg(width: int = 60, height: int = 40, *, seed: int = 0) -> bytes:
    """Return a JPEG of seeded pixels."""
    return encoded(pixels(width, height, seed=seed), "JPEG")


def grey(value: int, size: int = 8) -> bytes:
    """Return a PNG of one grey: all that a resize and a crop leave of it is that grey."""
    return encoded(np.full((size, size, 3), value, np.uint8), "PNG")


def reference(image: Image.Image, preprocessing: Preprocessing) -> npt.NDArray[np.uint8]:
    """Preprocess as torchvision does on Pillow: upright, RGB, resize all of it, cut out the middle.

    Source:
        torchvision.transforms.functional `resize` and `center_crop`, version 0.29, which open_clip's
        `image_transform` puts in a row.
    """
    image = ImageOps.exif_transpose(image)
    image = image if image.mode == "L" else image.convert("RGB")
    size, short = preprocessing.size, preprocessing.resized
    width, height = image.size
    scaled = (short, int(short * height / width)) if width <= height else (int(short * width / height), short)
    if preprocessing.fit == "squash":
        scaled = (short, short)
    whole = image.resize(scaled, Image.Resampling[preprocessing.interpolation.upper()])
    left, top = (round((side - size) / 2) for side in scaled)
    return np.asarray(whole.crop((left, top, left + size, top + size)).convert("RGB"))


def max_difference(one: npt.NDArray[np.uint8], other: npt.NDArray[np.uint8]) -> int:
    """Return the largest difference of two uint8 images."""
    assert one.shape == other.shape
    assert one.dtype == other.dtype == np.uint8
    return int(np.abs(one.astype(int) - other.astype(int)).max())


def textures(width: int, height: int) -> dict[str, npt.NDArray[np.uint8]]:
    """Return images of the size, from harmless to the hardest for a resize: uint8 (height, width, 3)."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    patterns = {
        "checkerboard": (x + y) % 2,
        "coarse checkerboard": (x // 3 + y // 3) % 2,
        "stripes across": y % 2,
        "stripes down": x % 2,
        "stripes of three": (x // 3) % 2,
        "broad checkerboard": (x // 8 + y // 8) % 2,
    }
    black_and_white = {
        name: np.repeat((pattern * 255).astype(np.uint8)[..., None], 3, axis=2)
        for name, pattern in patterns.items()
    }
    noise = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return {"smooth": pixels(width, height), "noise": noise, **black_and_white}
