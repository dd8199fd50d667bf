"""The views of one image that `--strict` has scored: all that a viewer may show of it, within bounds.

In: an opened image. Out: views, each the encoder's square, with a name. A *picture* is a frame, a page or a
thumbnail. Each picture is shown as it is stored and, where it is transparent, on white and on black; and of
each of these there is the centre, as without `--strict`, and, where it is long, tiles that cover it::

    centre                 tile 2 of 5            on black, tile 2 of 5
    frame 7                page 3, on white       thumbnail

A view that equals one before it is left out, of a thumbnail also one that is like one before it. The first
picture alone decides whether the image can be scored: of the others, those that can be decoded count.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from nsfw_spark.decode.embedded import MOST_THUMBNAILS, thumbnails
from nsfw_spark.decode.frame import Frame, crop, load_frame
from nsfw_spark.decode.limits import Limits
from nsfw_spark.decode.opening import OpenedImage, open_image
from nsfw_spark.decode.sequence import MOST_FRAMES, look_through
from nsfw_spark.decode.transparency import is_transparent
from nsfw_spark.errors import ImageError
from nsfw_spark.model_card import Preprocessing
from nsfw_spark.resize import crop_box

CENTRE: Final = "centre"

_LONG: Final = 2
"""Times its width an image may be high, or the reverse, before it has tiles: screens and photographs are not
longer, and of those the centre crop shows at least half."""
_MOST_TILES: Final = 8
"""Square up to 8:1. Of longer images each tile is squeezed, so that no part is left out."""
_ENOUGH: Final = 4
"""Times what the model's preprocessing scales to, the side of a tile: of a large image it is reduced to not
much more, as a copy of half of it would be more memory than is reckoned with."""
_GRID, _ALIKE = 16, 24
"""Blocks along each side in which no mean may differ by more (of 255), where a thumbnail shows the image.
Nearly all photographs have one: each would cost the model a second image."""
_BACKGROUNDS: Final = ("white", "black")
MOST_VIEWS: Final = (MOST_FRAMES + MOST_THUMBNAILS) * (1 + len(_BACKGROUNDS)) * (1 + _MOST_TILES)
"""Of one image: if it were an animation, transparent and a panorama at once."""
_OF_A_THUMBNAIL: Final = 4
"""A thumbnail may have this part of the limit of pixels: those of the image are still in memory."""


@dataclass(frozen=True)
class View:
    """One way to look at an image."""

    name: str
    """Of the view: `centre`, `frame 7`, `page 3, on black`."""
    pixels: npt.NDArray[np.uint8]
    """uint8, shape (S, S, 3), RGB, upright, on the CPU."""


def views_of(opened: OpenedImage, preprocessing: Preprocessing, limits: Limits) -> tuple[list[View], int]:
    """Decode the views of an image.

    Args:
        opened: At its first frame.
        preprocessing: The model card's.
        limits: What is decoded at most: for the first picture, once more for all frames or pages together,
            and in part for each thumbnail.

    Returns:
        At most `MOST_VIEWS`, the first being the centre of the first picture; and how many frames or pages
        they are of.

    Raises:
        ImageError: The first picture cannot be decoded: see `load_frame`.
    """

    def look(picture: OpenedImage, name: str) -> list[View]:
        return _picture(picture, preprocessing, [name])

    views = _picture(opened, preprocessing, [])
    small = replace(limits, max_pixels=limits.max_pixels // _OF_A_THUMBNAIL)
    for content in thumbnails(opened.image):
        with suppress(ImageError):
            shown = look(open_image(content, small), "thumbnail")
            views += [view for view in shown if not any(_are_alike(view, other) for other in views)]
    seen = look_through(opened, limits, look)
    return _distinct(chain(views, *seen)), 1 + len(seen)


def _picture(opened: OpenedImage, preprocessing: Preprocessing, name: list[str]) -> list[View]:
    """Return the views of one picture.

    Raises:
        ImageError: It cannot be decoded.
    """
    # No frame is bound to a name: two at once would take more memory than was reckoned with.
    views = _cuts(load_frame(opened, preprocessing), preprocessing, name)
    with suppress(ImageError):
        if is_transparent(opened.image):
            for background in _BACKGROUNDS:
                shown = [*name, f"on {background}"]
                views += _cuts(load_frame(opened, preprocessing, background=background), preprocessing, shown)
    return views


def _cuts(frame: Frame, preprocessing: Preprocessing, name: list[str]) -> list[View]:
    """Return the centre of a frame, and its tiles."""
    views = [View(", ".join(name) or CENTRE, _centre(frame, preprocessing))]
    boxes = _tiles(*frame.image.size, preprocessing)
    for i, box in enumerate(boxes, start=1):
        tile = _square(frame.image, box, preprocessing)
        square = Frame(tile, tile.size, 1, frame.orientation)
        views.append(View(", ".join([*name, f"tile {i} of {len(boxes)}"]), _centre(square, preprocessing)))
    return views


def _centre(frame: Frame, preprocessing: Preprocessing) -> npt.NDArray[np.uint8]:
    return crop(frame, crop_box(*frame.upright_size, preprocessing), preprocessing)


def _tiles(width: int, height: int, preprocessing: Preprocessing) -> list[tuple[int, int, int, int]]:
    """Return the tiles of an image, as left, top, right and bottom, in pixels as stored; none if not long.

    They are as many as their crops need to cover it, and evenly spread from end to end.
    """
    short, long = sorted((width, height))
    if long <= _LONG * short:
        return []
    count = min(_MOST_TILES, math.ceil(long / short * preprocessing.resized / preprocessing.size))
    side = max(short, math.ceil(long / count))
    starts = [round((long - side) * i / (count - 1)) for i in range(count)]
    if width > height:
        return [(start, 0, start + side, height) for start in starts]
    return [(0, start, width, start + side) for start in starts]


def _square(image: Image.Image, box: tuple[int, int, int, int], preprocessing: Preprocessing) -> Image.Image:
    """Return a part of an image, squeezed to a square."""
    tile = image.reduce(max(1, min(image.size) // (_ENOUGH * preprocessing.resized)), box)
    side = min(tile.size)
    return tile if max(tile.size) == side else tile.resize((side, side), Image.Resampling.BOX)


def _are_alike(one: View, other: View) -> bool:
    """Tell whether two views differ in detail only."""
    coarse = [
        np.asarray(Image.fromarray(view.pixels).resize((_GRID, _GRID), Image.Resampling.BOX), np.int16)
        for view in (one, other)
    ]
    return bool(np.abs(coarse[0] - coarse[1]).max() <= _ALIKE)


def _distinct(views: Iterable[View]) -> list[View]:
    """Leave out what shows no more than a view before: pixels behind alpha 0 are often black already."""
    first: dict[bytes, View] = {}
    for view in views:
        first.setdefault(hashlib.sha256(view.pixels.tobytes()).digest(), view)
    return list(first.values())
