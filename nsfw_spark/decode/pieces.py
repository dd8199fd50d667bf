"""Cuts an image into pieces: what is computed of all its pixels takes memory for a few of them.

In: a Pillow image, its pixels loaded. Out: parts of it, which cover it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from PIL import Image

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
