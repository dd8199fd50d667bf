"""Sampling equals OpenCV's, after the image was made a square with black."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from nsfw_spark.resize import sample
from tests.conftest import textures

SIZE = 320
Pixels = npt.NDArray[np.uint8]


def by_opencv(pixels: Pixels) -> Pixels:
    height, width = pixels.shape[:2]
    below, right = (max(height, width) - side for side in (height, width))
    square = cv2.copyMakeBorder(pixels, 0, below, 0, right, cv2.BORDER_CONSTANT)
    return np.asarray(cv2.resize(square, (SIZE, SIZE), interpolation=cv2.INTER_LINEAR))


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
        ours = np.asarray(sample(Image.fromarray(texture), SIZE))
        np.testing.assert_array_equal(ours, by_opencv(texture), err_msg=f"{name} of {size}")


@pytest.mark.parametrize("size", [(40, 30), (30, 40), (300, 1), (1, 1), (319, 200)], ids=str)
def test_an_image_that_grows_is_opencvs_to_one_of_255(size: tuple[int, int]) -> None:
    for name, texture in textures(*size).items():
        ours = np.asarray(sample(Image.fromarray(texture), SIZE)).astype(int)
        difference = np.abs(ours - by_opencv(texture))
        assert difference.max() <= 1, f"{name} of {size}"
        assert difference.mean() < 0.01, f"{name} of {size}"


def test_greyscale_is_sampled_as_colours_are() -> None:
    grey = Image.fromarray(textures(301, 257)["noise"]).convert("L")
    np.testing.assert_array_equal(np.asarray(sample(grey, 64)), np.asarray(sample(grey.convert("RGB"), 64)))


@pytest.mark.parametrize("size", [(100_000, 1), (1, 100_000)], ids=str)
def test_no_border_is_made_around_a_line(size: tuple[int, int]) -> None:
    """The square would take 30 GB."""
    line = np.asarray(sample(Image.new("RGB", size, "white"), SIZE))
    assert line.shape == (SIZE, SIZE, 3)
    assert line[1:, 1:].max() == 0
