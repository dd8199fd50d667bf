"""Scales an image to a square by sampling it, to the bit as OpenCV does: what some detectors were made for.

Each pixel of the result lies between four pixels of the image and is interpolated between these; the others
are skipped, where a resize would average them. A shorter side is filled up with black, below or to the right.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

_ONE: Final = 2048  # OpenCV's fixed point: weights have 11 bits
_Ints = npt.NDArray[np.int32]


def sample(image: Image.Image, size: int) -> Image.Image:
    """Scale an image, mode RGB or L, to S x S, RGB, keeping its aspect ratio.

    Source:
        `cv2.copyMakeBorder` and `cv2.resize` with INTER_LINEAR on uint8, OpenCV 5.0. The border is not made:
        around an image of 1 x 100,000 it would take 30 GB.
    """
    pixels = np.asarray(image.convert("RGB"))
    longer = max(image.size)
    left, right, weight_left, weight_right = _neighbours(image.width, longer, size)
    above, below, weight_above, weight_below = _neighbours(image.height, longer, size)

    def across(rows: _Ints) -> _Ints:  # (S, S, 3)
        of_left, of_right = (pixels[rows[:, None], each].astype(np.int32) for each in (left, right))
        sums = of_left * weight_left[:, None] + of_right * weight_right[:, None]
        return sums >> 4  # OpenCV goes on in 16 bits, and these last four are lost

    down = (weight_above[:, None, None] * across(above)) >> 16
    down += (weight_below[:, None, None] * across(below)) >> 16
    return Image.fromarray(((down + 2) >> 2).astype(np.uint8))


def _neighbours(length: int, longer: int, size: int) -> tuple[_Ints, _Ints, _Ints, _Ints]:
    """Return, along one side, the two pixels around each of S places, and how much each counts.

    Args:
        length: Pixels that the image has there; up to `longer` all is black, which counts nothing.
        longer: Pixels of the longer side.
        size: S.
    """
    places = ((np.arange(size) + 0.5) * (longer / size) - 0.5).astype(np.float32)
    places = places.clip(0, longer - 1)  # before the first and after the last pixel's centre: that pixel
    first = np.floor(places).astype(np.int32)
    second = np.minimum(first + 1, longer - 1)
    share = places - first.astype(np.float32)
    weight_first = np.where(first < length, np.rint((1 - share) * _ONE), 0).astype(np.int32)
    weight_second = np.where(second < length, np.rint(share * _ONE), 0).astype(np.int32)
    return first.clip(max=length - 1), second.clip(max=length - 1), weight_first, weight_second
