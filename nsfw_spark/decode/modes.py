"""Converts every pixel mode to 8 bits a channel, band after band, so that the work takes little memory.

In: a Pillow image with its pixels loaded. Out: mode RGB or L.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

_BAND: Final = 1 << 18  # pixels; numpy takes 40 bytes for each, for a moment
_BITS_PER_SAMPLE: Final = 258  # TIFF tag
_ROUNDING: Final = 1e-6  # the highest value must become 255, not a hair less
_RANGES: Final = ((255.0, 1.0), (65_535.0, 1 / 256))
"""Possible values of white, each with the greys for a step of 1; the first that no value exceeds is white."""
_OPAQUE: Final = 255
_Values = npt.NDArray[Any]


def eight_bit(image: Image.Image) -> Image.Image:
    """Convert to RGB or L, without the alpha channel.

    Returns:
        Mode RGB or L. `I;16` loses its lower 8 bits (a TIFF of 12 bits its lower 4). `I` and `F` are scaled
        by their range: 0 to 255 stays, 0 to 65,535 loses 8 bits, 0 to 1 in `F` becomes 0 to 255; in any
        other range the lowest value becomes black and the highest white. NaN is black.
    """
    if image.mode in {"RGB", "L"}:
        return image
    if image.mode.startswith("I;16"):
        lost = 4 if getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE) in {12, (12,)} else 8
        return _to_grey(image, lambda band: np.asarray(band) >> lost)
    if image.mode in {"I", "F"}:
        black, step = _black_and_step(image)
        return _to_grey(image, lambda band: _scaled(np.asarray(band), black, step))
    if image.mode == "La":
        return _to_grey(image, lambda band: np.asarray(_with_alpha(band))[..., 0])
    return image.convert("RGB")


def is_transparent(image: Image.Image) -> bool:
    """Tell whether a background would show through any pixel; False if Pillow cannot tell."""
    try:
        return image.has_transparency_data and any(_shows_through(band) for _, band in _bands(image))
    except Exception:  # noqa: BLE001 - Pillow does not document what its conversions raise
        return False


def on_background(image: Image.Image, background: str) -> Image.Image:
    """Return the image, mode RGB, on a background of one colour, given by name."""
    flat = Image.new("RGB", image.size, background)
    for corner, band in _bands(image):
        layer = _with_alpha(band)
        flat.paste(layer, corner, mask=layer)
    return flat


def _bands(image: Image.Image) -> Iterator[tuple[tuple[int, int], Image.Image]]:
    """Yield each band and its left and top, in pixels: whole rows, or pieces of a very long row."""
    width = min(image.width, _BAND)
    height = _BAND // width
    for top in range(0, image.height, height):
        bottom = min(top + height, image.height)
        for left in range(0, image.width, width):
            yield (left, top), image.crop((left, top, min(left + width, image.width), bottom))


def _to_grey(image: Image.Image, greys: Callable[[Image.Image], _Values]) -> Image.Image:
    """Return the image in mode L; `greys` computes the values 0 to 255 of a band, shape (rows, columns)."""
    result = Image.new("L", image.size)
    for corner, band in _bands(image):
        result.paste(Image.fromarray(greys(band).astype(np.uint8)), corner)
    return result


def _black_and_step(image: Image.Image) -> tuple[float, float]:
    """Return the value that becomes black, and the greys for a step of 1 above it."""
    bands = (np.asarray(band) for _, band in _bands(image))
    finite = (band[np.isfinite(band)] for band in bands)
    extremes = [(band.min(), band.max()) for band in finite if band.size]
    if not extremes:
        return 0.0, 1.0
    low, high = float(min(bottom for bottom, _ in extremes)), float(max(top for _, top in extremes))
    ranges = ((1.0, 255.0), *_RANGES) if image.mode == "F" else _RANGES
    if low >= 0:
        for white, step in ranges:
            if high <= white:
                return 0.0, step
    return low, 255 / (high - low or 1)


def _scaled(band: _Values, black: float, step: float) -> _Values:
    greys = (band.astype(np.float64) - black) * step + _ROUNDING
    return np.clip(np.nan_to_num(greys, nan=0.0), 0, 255)


def _shows_through(band: Image.Image) -> bool:
    lowest, _ = _with_alpha(band).getchannel("A").getextrema()
    return isinstance(lowest, int) and lowest < _OPAQUE


def _with_alpha(band: Image.Image) -> Image.Image:
    if band.mode == "La":  # grey, premultiplied with alpha: Pillow converts it to LA only
        return band.convert("LA")
    return band if band.mode in {"RGBA", "LA"} else band.convert("RGBA")
