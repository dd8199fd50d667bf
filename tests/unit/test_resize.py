"""Each resizer equals its reference: Pillow's resize and crop to 2 of 255, OpenCV's to the bit."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from nsfw_spark.model_card import Preprocessing
from nsfw_spark.resize import crop_box, resize, sample, scaled_size
from tests.conftest import max_difference, reference, textures

TOLERANCE = 2  # of 255: SIMD code rounds its filter's weights otherwise than Pillow
SIZES = [
    (224, 224),
    (225, 223),
    (301, 257),
    (500, 375),
    (375, 500),
    (223, 501),
    (640, 213),
    (1000, 100),
    (100, 1000),
    (1280, 961),
    (961, 1280),
    (40, 30),
    (30, 40),
    (1, 300),
    (300, 1),
    (1, 1),
]


def preprocessing(**changes: Any) -> Preprocessing:  # noqa: ANN401 - any field
    content = {"size": 224, "mean": (0, 0, 0), "std": (1, 1, 1), **changes}
    return Preprocessing.model_validate(content)


def resized(image: Image.Image, how: Preprocessing) -> np.ndarray[Any, Any]:
    return np.asarray(resize(image, crop_box(*image.size, how), how).convert("RGB"))


def assert_like_reference(size: tuple[int, int], how: Preprocessing, mode: str = "RGB") -> None:
    for name, texture in textures(*size).items():
        image = Image.fromarray(texture).convert(mode)
        difference = max_difference(resized(image, how), reference(image, how))
        assert difference <= TOLERANCE, f"{name} of {size} differs by {difference}"


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("resizer", ["simd", "pillow"])
def test_it_equals_torchvision_on_pillow(size: tuple[int, int], resizer: str) -> None:
    assert_like_reference(size, preprocessing(resizer=resizer))


@pytest.mark.parametrize(
    "changes",
    [
        {"interpolation": "bilinear"},
        {"resize_to": 256},
        {"size": 97, "resize_to": 110},
        {"fit": "squash"},
        {"fit": "squash", "resize_to": 256},
        {"fit": "squash", "resize_to": 256, "interpolation": "bilinear"},
    ],
    ids=str,
)
@pytest.mark.parametrize("resizer", ["simd", "pillow"])
def test_every_way_to_fit_equals_the_reference(changes: dict[str, Any], resizer: str) -> None:
    for size in [(500, 375), (301, 457), (40, 30)]:
        assert_like_reference(size, preprocessing(resizer=resizer, **changes))


@pytest.mark.parametrize("resizer", ["simd", "pillow"])
def test_greyscale_equals_the_reference(resizer: str) -> None:
    assert_like_reference((301, 257), preprocessing(resizer=resizer), mode="L")


def test_pillow_squashes_to_the_last_bit() -> None:
    """open-nsfw's score moves with the last bit of a pixel."""
    how = preprocessing(fit="squash", resize_to=256, interpolation="bilinear", resizer="pillow")
    image = Image.fromarray(textures(301, 257)["noise"])
    assert max_difference(resized(image, how), reference(image, how)) == 0


def test_the_longer_side_is_truncated_as_in_torchvision() -> None:
    assert scaled_size(500, 375, preprocessing()) == (298, 224)  # 298.67
    assert scaled_size(375, 500, preprocessing()) == (224, 298)
    assert scaled_size(500, 375, preprocessing(fit="squash", resize_to=256)) == (256, 256)


def test_a_centred_square_is_kept_of_a_wide_image() -> None:
    box = crop_box(448, 224, preprocessing())
    assert (box.left, box.top, box.width, box.height) == (112, 0, 224, 224)


def test_a_sliver_needs_no_memory_for_what_is_cut_off() -> None:
    """Scaled whole, it would be 224 x 22,400,000 pixels."""
    for how in (preprocessing(), preprocessing(resizer="pillow")):
        assert resized(Image.new("RGB", (1, 100_000), "red"), how).shape == (224, 224, 3)
        assert resized(Image.new("RGB", (100_000, 1), "red"), how).shape == (224, 224, 3)


WITHOUT_SIMD = """
import sys
sys.modules["cykooz_resizer"] = None  # importing it fails
import logging
from PIL import Image
from nsfw_spark.model_card import Preprocessing
from nsfw_spark.resize import crop_box, resize
logging.basicConfig(format="%(levelname)s %(message)s")
how = Preprocessing(size=224, mean=(0, 0, 0), std=(1, 1, 1))
image = Image.effect_noise((301, 257), 80)
box = crop_box(*image.size, how)
first, second = (resize(image, box, how).tobytes() for _ in range(2))
with_pillow = resize(image, box, how.model_copy(update={"resizer": "pillow"}))
assert first == second == with_pillow.tobytes()
"""


def test_without_the_simd_library_pillow_does_it_and_says_so_once() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_SIMD], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("WARNING cykooz-resizer is not installed") == 1


SAMPLED = 320
Pixels = npt.NDArray[np.uint8]


def by_opencv(pixels: Pixels) -> Pixels:
    height, width = pixels.shape[:2]
    below, right = (max(height, width) - side for side in (height, width))
    square = cv2.copyMakeBorder(pixels, 0, below, 0, right, cv2.BORDER_CONSTANT)
    return np.asarray(cv2.resize(square, (SAMPLED, SAMPLED), interpolation=cv2.INTER_LINEAR))


@pytest.mark.parametrize(
    "size",
    [
        (320, 320),
        (640, 640),
        (500, 375),
        (375, 501),
        (2000, 100),
        (100, 2000),
        (1281, 960),
        (333, 7),
        (1, 321),
    ],
    ids=str,
)
def test_an_image_that_shrinks_is_opencvs_to_the_bit(size: tuple[int, int]) -> None:
    for name, texture in textures(*size).items():
        ours = np.asarray(sample(Image.fromarray(texture), SAMPLED))
        np.testing.assert_array_equal(ours, by_opencv(texture), err_msg=f"{name} of {size}")


@pytest.mark.parametrize("size", [(40, 30), (30, 40), (300, 1), (1, 1), (319, 200)], ids=str)
def test_an_image_that_grows_is_opencvs_to_one_of_255(size: tuple[int, int]) -> None:
    for name, texture in textures(*size).items():
        ours = np.asarray(sample(Image.fromarray(texture), SAMPLED)).astype(int)
        difference = np.abs(ours - by_opencv(texture))
        assert difference.max() <= 1, f"{name} of {size}"
        assert difference.mean() < 0.01, f"{name} of {size}"


def test_greyscale_is_sampled_as_colours_are() -> None:
    grey = Image.fromarray(textures(301, 257)["noise"]).convert("L")
    np.testing.assert_array_equal(np.asarray(sample(grey, 64)), np.asarray(sample(grey.convert("RGB"), 64)))


@pytest.mark.parametrize("size", [(100_000, 1), (1, 100_000)], ids=str)
def test_no_border_is_made_around_a_line(size: tuple[int, int]) -> None:
    """The square would take 30 GB."""
    line = np.asarray(sample(Image.new("RGB", size, "white"), SAMPLED))
    assert line.shape == (SAMPLED, SAMPLED, 3)
    assert line[1:, 1:].max() == 0
