"""Cuts an image into pieces: what is computed of all its pixels takes memory for a few of them.

In: a Pillow image, its pixels loaded. Out: parts of it, which cover it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from nsfw_spark.decode.opening import refused

_MOST_PIXELS: Final = 1 << 18
"""Of one piece. Scaling one takes 40 bytes each, in numpy, for a moment."""


def pieces(image: Image.Image) -> Iterator[tuple[tuple[int, int], Image.Image]]:
    """Yield the left and top of each piece, in pixels, and the piece: rows, or parts of one that is long."""
    width = min(image.width, _MOST_PIXELS)
    height = _MOST_PIXELS // width
    for top in range(0, image.height, height):
        bottom = min(top + height, image.height)
        for left in range(0, image.width, width):
            yield (left, top), image.crop((left, top, min(left + width, image.width), bottom))


_Band = npt.NDArray[Any]
_AS_THEY_ARE: Final = frozenset({"RGB", "L"})
_BITS_PER_SAMPLE: Final = 258  # TIFF tag
_ROUNDING: Final = 1e-6  # so that the highest value is 255, and not a hair below
_UNIT: Final = (1.0, 255.0)
_RANGES: Final = ((255.0, 1.0), (65_535.0, 1 / 256))
"""What white may be, and the step from one grey to the next: the first is taken that no value is above."""


def eight_bit(image: Image.Image) -> Image.Image:
    """Convert to RGB or L.

    Args:
        image: Its pixels are loaded.

    Returns:
        Mode RGB or L. `I;16` loses its lower 8 bits (a TIFF of 12 bits its lower 4). `I` and `F` are scaled
        by what they hold: 0 to 255 stays, 0 to 65,535 loses 8 bits, 0 to 1 in `F` becomes 0 to 255; of
        anything else the lowest value becomes black and the highest white. NaN is black.
    """
    if image.mode in _AS_THEY_ARE:
        return image
    if image.mode.startswith("I;16"):
        lost = 4 if _has_twelve_bits(image) else 8
        return _mapped(image, lambda band: band >> lost)
    if image.mode in {"I", "F"}:
        black, step = _black_and_step(image)
        return _mapped(image, lambda band: _greys(band, black, step))
    return image.convert("RGB")


def _has_twelve_bits(image: Image.Image) -> bool:
    return getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE) in {12, (12,)}


def _black_and_step(image: Image.Image) -> tuple[float, float]:
    """Return the value that becomes black, and greys for each step of 1 above it."""
    finite = (band[np.isfinite(band)] for _, band in _bands(image))
    extremes = [(band.min(), band.max()) for band in finite if band.size]
    if not extremes:
        return 0.0, 1.0
    low, high = float(min(bottom for bottom, _ in extremes)), float(max(top for _, top in extremes))
    ranges = (_UNIT, *_RANGES) if image.mode == "F" else _RANGES
    if low >= 0:
        for white, step in ranges:
            if high <= white:
                return 0.0, step
    return low, 255 / (high - low or 1)


def _greys(band: _Band, black: float, step: float) -> _Band:
    greys = (band.astype(np.float64) - black) * step + _ROUNDING
    return np.clip(np.nan_to_num(greys, nan=0.0), 0, 255)


def _mapped(image: Image.Image, greys: Callable[[_Band], _Band]) -> Image.Image:
    """Return the image in mode L, its values mapped to 0 to 255."""
    mapped = Image.new("L", image.size)
    for place, band in _bands(image):
        mapped.paste(Image.fromarray(greys(band).astype(np.uint8)), place)
    return mapped


def _bands(image: Image.Image) -> Iterator[tuple[tuple[int, int], _Band]]:
    """Yield the left and top of each piece, and its values, shape (rows, columns)."""
    return ((place, np.asarray(piece)) for place, piece in pieces(image))


_WITH_ALPHA: Final = frozenset({"RGBA", "LA"})
_OPAQUE: Final = 255


def is_transparent(image: Image.Image) -> bool:
    """Tell whether anything behind the image would show through, at any pixel.

    Raises:
        ImageError: Pillow cannot tell.
    """
    try:
        return image.has_transparency_data and any(_shows_through(piece) for _, piece in pieces(image))
    except Exception as error:  # noqa: BLE001 - what Pillow's conversions raise is not documented
        raise refused(error, "transparency") from None


def on_background(image: Image.Image, background: str) -> Image.Image:
    """Return the image, mode RGB, on a background of one colour, by its name."""
    flat = Image.new("RGB", image.size, background)
    for place, piece in pieces(image):
        layer = _with_alpha(piece)
        flat.paste(layer, place, mask=layer)
    return flat


def _shows_through(piece: Image.Image) -> bool:
    lowest, _ = _with_alpha(piece).getchannel("A").getextrema()
    return isinstance(lowest, int) and lowest < _OPAQUE


def _with_alpha(piece: Image.Image) -> Image.Image:
    return piece if piece.mode in _WITH_ALPHA else piece.convert("RGBA")
