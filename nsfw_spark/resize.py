"""Scales an image to the encoder's square: crop, squash, or padding with black.

In: a Pillow image (RGB or L), a `Box` of it, the card's `Preprocessing`. Out: S x S pixels. The card names a
resizer: `simd` equals `pillow` to 2 of 255 and is several times faster; `pillow` equals torchvision on Pillow
to the bit, `sampled` OpenCV. Knows nothing of files and EXIF.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from nsfw_spark.model_card import Preprocessing

try:
    import cykooz_resizer
except ImportError:
    cykooz_resizer = None

_log = logging.getLogger(__name__)
_LONGEST_WHOLE: Final = 20  # times S: Pillow scales shorter images whole
_PILLOW_FILTER: Final = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
_SIMD_FILTER: Final = {"bicubic": "catmull_rom", "bilinear": "bilinear"}
"""Pillow's bicubic has a = -0.5, which is known as Catmull-Rom."""
_ONE: Final = 2048  # OpenCV's fixed point: weights have 11 bits
_Ints = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Box:
    """The part of an image that the encoder sees, in fractions of its pixels, and how to scale it."""

    left: float
    top: float
    width: float
    height: float
    down_first: bool = False
    """Whether the height is scaled before the width: see `_resize_simd`."""


def crop_box(width: int, height: int, preprocessing: Preprocessing) -> Box:
    """Return the part of an upright image that the encoder sees.

    The reference scales first, to whole pixels, and then cuts S x S out of the middle, at whole pixels.
    Mapping that cut back through the rounded size gives the same pixels without scaling the rest;
    the plain centred square does not: on textures it differs by up to 100 of 255.

    Source:
        torchvision.transforms.functional `resize` (the longer side is truncated) and `center_crop`
        (Python's round, half to even), version 0.29.
    """
    if preprocessing.fit == "pad":
        return Box(0, 0, width, height)
    size, scaled = preprocessing.size, scaled_size(width, height, preprocessing)
    left, top = (round((side - size) / 2) for side in scaled)
    across, down = width / scaled[0], height / scaled[1]  # source pixels for one scaled pixel
    # Pillow scales that side first which shrinks by more (found by trying sizes with Pillow 13).
    down_first = height - scaled[1] > max(0, 2 * (width - scaled[0]))
    return Box(left * across, top * down, size * across, size * down, down_first)


def scaled_size(width: int, height: int, preprocessing: Preprocessing) -> tuple[int, int]:
    """Return the (width, height) in pixels to which the reference scales before it crops."""
    resized = preprocessing.resized
    if preprocessing.fit == "squash":
        return resized, resized
    if width <= height:
        return resized, int(resized * height / width)
    return int(resized * width / height), resized


def resize(image: Image.Image, box: Box, preprocessing: Preprocessing) -> Image.Image:
    """Scale a box of an image, mode RGB or L, to S x S; fit `pad` keeps the whole image."""
    if preprocessing.resizer == "sampled":
        return sample(image, preprocessing.size)
    if preprocessing.resizer == "simd" and _has_simd():
        return _resize_simd(image, box, preprocessing)
    return _resize_pillow(image, box, preprocessing)


def _resize_pillow(image: Image.Image, box: Box, preprocessing: Preprocessing) -> Image.Image:
    """Scale the whole image, then crop, as the reference does: every bit is the reference's."""
    size, resample = preprocessing.size, _PILLOW_FILTER[preprocessing.interpolation]
    width, height = scaled_size(image.width, image.height, preprocessing)
    if max(width, height) > _LONGEST_WHOLE * size:
        # Not the whole: a 1 x 100,000 image would be 224 x 22,400,000 pixels before the crop.
        right, bottom = box.left + box.width, box.top + box.height
        edges = (box.left, box.top, min(right, image.width), min(bottom, image.height))
        return image.resize((size, size), resample, box=edges)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.resize((width, height), resample).crop((left, top, left + size, top + size))


def _resize_simd(image: Image.Image, box: Box, preprocessing: Preprocessing) -> Image.Image:
    """Scale in two passes, across and down, in the order in which Pillow does.

    The order matters: a cubic filter overshoots at hard edges, and each pass clips to 0…255. cykooz-resizer's
    own order differs from Pillow by 20 of 255 on a checkerboard, Pillow's order by 2, at a fifth more time.
    """
    size = preprocessing.size
    left, right = _reach(box.left, box.width, size, image.width)
    top, bottom = _reach(box.top, box.height, size, image.height)
    if box.down_first:
        columns = Box(left, box.top, right - left, box.height)
        half = _convolve(image, columns, (right - left, size), preprocessing)
        rest = Box(box.left - left, 0, box.width, size)
    else:
        rows = Box(box.left, top, box.width, bottom - top)
        half = _convolve(image, rows, (size, bottom - top), preprocessing)
        rest = Box(0, box.top - top, size, box.height)
    return _convolve(half, rest, (size, size), preprocessing)


def _reach(start: float, length: float, size: int, end: int) -> tuple[int, int]:
    """Return the range of whole pixels that the filter reads for `length` source pixels from `start` on."""
    margin = 2 * max(length / size, 1) + 1  # the cubic filter's radius
    return max(int(start - margin), 0), min(int(start + length + margin) + 1, end)


def _convolve(
    image: Image.Image, box: Box, size: tuple[int, int], preprocessing: Preprocessing
) -> Image.Image:
    resizer, algorithm = _simd(preprocessing.interpolation)
    # Rounding may put the far edge a hair outside, which the library refuses.
    width, height = min(box.width, image.width - box.left), min(box.height, image.height - box.top)
    crop = cykooz_resizer.CropBox(box.left, box.top, width, height)
    scaled = Image.new(image.mode, size)
    options = cykooz_resizer.ResizeOptions(resize_alg=algorithm, crop_box=crop, use_alpha=False)
    resizer.resize_pil(image, scaled, options)
    return scaled


@lru_cache
def _has_simd() -> bool:
    if cykooz_resizer is None:
        _log.warning("cykooz-resizer is not installed: resizing with Pillow, several times slower")
    return cykooz_resizer is not None


@lru_cache
def _simd(interpolation: str) -> tuple[Any, Any]:
    filter_type = cykooz_resizer.FilterType[_SIMD_FILTER[interpolation]]
    return cykooz_resizer.Resizer(), cykooz_resizer.ResizeAlg.convolution(filter_type)


def sample(image: Image.Image, size: int) -> Image.Image:
    """Scale an image, mode RGB or L, to S x S, RGB, keeping its aspect ratio; black fills the rest.

    Each pixel of the result is interpolated between the four pixels of the image around it. The other pixels
    are skipped, where a resize would average them. Some detectors were trained on such images.

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
    """Return, for each of S positions along one side, the two pixels around it and their weights.

    The image has `length` pixels there; from there up to `longer`, the longer side, all is black: weight 0.
    """
    positions = ((np.arange(size) + 0.5) * (longer / size) - 0.5).astype(np.float32)
    positions = positions.clip(
        0, longer - 1
    )  # before the first and after the last pixel's centre: that pixel
    first = np.floor(positions).astype(np.int32)
    second = np.minimum(first + 1, longer - 1)
    share = positions - first.astype(np.float32)
    weight_first = np.where(first < length, np.rint((1 - share) * _ONE), 0).astype(np.int32)
    weight_second = np.where(second < length, np.rint(share * _ONE), 0).astype(np.int32)
    return first.clip(max=length - 1), second.clip(max=length - 1), weight_first, weight_second
