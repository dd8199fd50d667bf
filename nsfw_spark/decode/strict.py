"""Finds the small pictures that lie within an encoded image: what file managers and cameras show of it.

In: an image that Pillow has opened. Out: encoded images, of which nothing is known yet.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from nsfw_spark.decode.frame import Frame, crop, load_frame
from nsfw_spark.decode.memory import memory_of_walk
from nsfw_spark.decode.metadata import Directories, num_pages
from nsfw_spark.decode.modes import is_transparent
from nsfw_spark.decode.opening import Limits, OpenedImage, open_frame, open_image
from nsfw_spark.errors import ImageError
from nsfw_spark.model_card import Preprocessing
from nsfw_spark.resize import crop_box

MOST_THUMBNAILS: Final = 2
"""One in EXIF, one of Photoshop's."""

_START, _LENGTH = 0x0201, 0x0202  # EXIF tags: JPEGInterchangeFormat, JPEGInterchangeFormatLength
_RESOURCE, _RESOURCE_HEADER = 0x040C, 28  # Photoshop's thumbnail, and bytes before its JPEG
_MP_HEADER: Final = b"MPF\0"
_MP_ENTRIES: Final = 0xB002


def thumbnails(image: Image.Image) -> list[bytes]:
    """Return the thumbnails in an image's metadata.

    Args:
        image: At its first frame; further ones have metadata of their own.

    Source:
        EXIF 2.32, 4.5.5 and 4.6.4; Adobe Photoshop File Formats Specification, Thumbnail Resource Format.
    """
    exif, resources = image.info.get("exif"), image.info.get("photoshop")
    found = [_in_exif(exif) if isinstance(exif, bytes) else None]
    if isinstance(resources, dict) and isinstance(resources.get(_RESOURCE), bytes):
        found.append(resources[_RESOURCE][_RESOURCE_HEADER:])
    return [thumbnail for thumbnail in found if thumbnail]


def _in_exif(exif: bytes) -> bytes | None:
    """Return what the second directory points at."""
    directories = Directories.of(exif.removeprefix(b"Exif\0\0"))
    if directories is None or (second := directories.after(directories.first)) is None:
        return None
    values = {tag: value for tag, _, _, value in directories.entries(second)}
    start, length = values.get(_START, 0), values.get(_LENGTH, 0)
    return directories.content[start : start + length]


def pictures(opened: OpenedImage) -> list[int]:
    """Return where the pictures of an MPO begin in its content, bytes; the first included.

    A JPEG says itself where it ends: what the MPO says of its size is not asked for, as it need not be true.

    Source:
        CIPA DC-007, 5.2.3.3: offsets count from the header of the MP extensions, the first picture's is 0.
    """
    entries: list[dict[str, Any]] = opened.image.mpinfo[_MP_ENTRIES]  # type: ignore[attr-defined]
    origin = opened.content.find(_MP_HEADER + opened.image.info["mp"]) + len(_MP_HEADER)
    return [0, *(origin + entry["DataOffset"] for entry in entries[1:])]


Seen = TypeVar("Seen")

MOST_FRAMES: Final = 8
"""Of one image, the first included; each costs as much of the model as an image."""
_MOST_WALKED: Final = 1000
"""Frames or pages, however small: each costs time besides that of its pixels. Further ones are not seen."""
_ANIMATIONS: Final = frozenset({"GIF", "PNG", "WEBP", "AVIF"})
_OF_A_HEIC: Final = 2
"""A page of it may have this part of the limits: what its plugin decoded first stays in memory."""


def look_through(opened: OpenedImage, limits: Limits, look: Callable[[OpenedImage, str], Seen]) -> list[Seen]:
    """Look at the frames or pages after the first.

    Args:
        opened: At its first frame, which is loaded; afterwards it is at another one, or closed.
        limits: What is decoded at most: of all frames up to the last that is seen, or of all pages that are,
            together no more than `max_pixels`.
        look: Gets each frame before the image goes on to the next, and its name, `frame 7` or `page 3`, the
            first being number 1; what it raises as `ImageError` is passed over too.

    Returns:
        What `look` returned, for fewer than `MOST_FRAMES` of them.
    """
    if opened.header.format in _ANIMATIONS:
        return _walk(opened, limits, look)
    return _leaf(opened, limits, look)


def _walk(opened: OpenedImage, limits: Limits, look: Callable[[OpenedImage, str], Seen]) -> list[Seen]:
    """Look at frames that must be decoded one after the other; each may be larger than the one before."""
    seen: dict[int, Seen] = {}
    left, step, frame = limits.max_pixels, 1, opened
    with suppress(EOFError, ImageError):  # Pillow does not go on behind a damaged frame
        for number in range(1, _MOST_WALKED):
            _check_walk(frame, limits)  # to go on takes memory, too
            frame = open_frame(opened, number, limits)
            _check_walk(frame, limits)
            left -= frame.header.width * frame.header.height
            if left < 0:
                break
            if number % step == 0:
                seen[number] = look(frame, f"frame {number + 1}")
            if len(seen) == MOST_FRAMES:  # with the first, one too many
                step *= 2
                seen = {kept: value for kept, value in seen.items() if kept % step == 0}
    return list(seen.values())


def _check_walk(frame: OpenedImage, limits: Limits) -> None:
    limits.check_memory(memory_of_walk(frame.image, frame.content), frame.header)


def _leaf(opened: OpenedImage, limits: Limits, look: Callable[[OpenedImage, str], Seen]) -> list[Seen]:
    """Look at pages, of which each can be decoded without the others."""
    seen, left = [], limits.max_pixels
    for number, page in _pages(opened, limits):
        left -= page.header.width * page.header.height
        if left < 0:
            break
        with suppress(ImageError):
            seen.append(look(page, f"page {number + 1}"))
    return seen


def _pages(opened: OpenedImage, limits: Limits) -> Iterator[tuple[int, OpenedImage]]:
    """Yield the pages that are looked at and can be opened, and their numbers from 0 on."""
    if opened.header.format == "MPO":
        return _pictures(opened, limits)
    if opened.header.format == "HEIF":
        return _images(opened, limits)
    return _tiff_pages(opened, limits)


def _pictures(opened: OpenedImage, limits: Limits) -> Iterator[tuple[int, OpenedImage]]:
    starts = pictures(opened)
    opened.image.close()  # two pictures in memory would be more than is reckoned with
    for number in _every(len(starts)):
        with suppress(ImageError):
            yield number, open_image(opened.content[starts[number] :], limits)


def _images(opened: OpenedImage, limits: Limits) -> Iterator[tuple[int, OpenedImage]]:
    count, first = getattr(opened.image, "n_frames", 1), opened.image.tell()  # which it calls primary
    order = [first, *(number for number in range(count) if number != first)]
    part = replace(limits, max_pixels=limits.max_pixels // _OF_A_HEIC)
    for number in (order[i] for i in _every(count)):
        with suppress(EOFError, ImageError):  # opened anew: its plugin keeps all that it decoded
            yield number, open_frame(open_image(opened.content, limits), number, part)


def _tiff_pages(opened: OpenedImage, limits: Limits) -> Iterator[tuple[int, OpenedImage]]:
    """Yield the pages of a TIFF; of what is none, nothing."""
    for number in _every(num_pages(opened.content, _MOST_WALKED)):
        with suppress(EOFError, ImageError):
            yield number, open_frame(opened, number, limits)


def _every(count: int) -> range:
    """Return which pages are looked at besides the first, by their places in the file."""
    count, step = min(count, _MOST_WALKED), 1
    while count > MOST_FRAMES * step:
        step *= 2
    return range(step, count, step)


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
