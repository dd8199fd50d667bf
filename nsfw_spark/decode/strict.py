"""Returns further views of an image, so that `--strict` scores more than the centre of its first frame.

In: an `OpenedImage`. Out: `View`s: tiles of long images, backgrounds behind transparency, further frames and
pages, thumbnails. They combine (a tile of a frame on white). Together they take no more memory than one image
may. The users' page is docs/strict.md.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Final

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

CENTRE: Final = "centre"
_BACKGROUNDS: Final = ("white", "black")
_LONG: Final = 2
"""Ratio of the sides above which an image has tiles. Screens and photographs stay below, and the centre crop
shows at least half of them."""
_MOST_TILES: Final = 8
"""Tiles are square up to 8:1. Tiles of longer images are squeezed, so that they leave nothing out."""
_ENOUGH: Final = 4
"""A tile of a large image is reduced to about this many times the model's input size: a copy of half the
image would take more memory than `memory_needed` computes."""
_MOST_FRAMES: Final = 8
"""Limit of frames or pages, the first included; each costs the model as much as an image."""
_MOST_WALKED: Final = 1000
"""Frames or pages after this one are not seen, however small they are: each takes time besides its pixels."""
_ANIMATIONS: Final = frozenset({"GIF", "PNG", "WEBP", "AVIF"})
_HEIC_SHARE: Final = 2
"""A page of a HEIC may have 1/2 of `max_pixels`: its plugin keeps the first page in memory."""
_MOST_THUMBNAILS: Final = 2
"""One in EXIF, one of Photoshop's."""
_THUMBNAIL_SHARE: Final = 4
"""A thumbnail may have 1/4 of `max_pixels`: the pixels of the image are still in memory."""
_GRID, _ALIKE = 16, 24
"""A thumbnail shows the image itself if no mean of 16 x 16 blocks differs by more than 24 of 255. Nearly all
photographs have such a thumbnail, and it would cost the model a second image."""
MOST_VIEWS: Final = (_MOST_FRAMES + _MOST_THUMBNAILS) * (1 + len(_BACKGROUNDS)) * (1 + _MOST_TILES)
"""Views of an animation that is transparent and a panorama too."""


@dataclass(frozen=True)
class View:
    """One way to look at an image."""

    name: str
    """`centre`, `frame 7`, `page 3, on black`."""
    pixels: npt.NDArray[np.uint8]
    """uint8, shape (S, S, 3), RGB, upright, on the CPU."""


def views_of(opened: OpenedImage, preprocessing: Preprocessing, limits: Limits) -> tuple[list[View], int]:
    """Decode the views of an image at its first frame; afterwards it is at another one, or closed.

    `max_pixels` limits the first frame, and once more all frames up to the last one seen, or all further
    pages together. Frames, pages and thumbnails that cannot be decoded are skipped.

    Returns:
        At most `MOST_VIEWS` different views, the centre of the first frame first, and the number of frames
        or pages that they show.

    Raises:
        ImageError: The first frame cannot be decoded: see `load_frame`.
    """
    views = _look(opened, preprocessing)
    small = replace(limits, max_pixels=limits.max_pixels // _THUMBNAIL_SHARE)
    for content in _thumbnails(opened.image):
        with suppress(ImageError):
            shown = _look(open_image(content, small), preprocessing, "thumbnail")
            views += [view for view in shown if not any(_are_alike(view, other) for other in views)]
    look_further = _walk if opened.header.format in _ANIMATIONS else _leaf
    further = look_further(opened, preprocessing, limits)
    return _distinct(chain(views, *further)), 1 + len(further)


def _look(opened: OpenedImage, preprocessing: Preprocessing, *name: str) -> list[View]:
    """Return the views of one frame, page or thumbnail.

    Raises:
        ImageError: It cannot be decoded.
    """
    # No `Frame` is bound to a name: two at once would take more memory than `memory_needed` computes.
    views = _squares(load_frame(opened, preprocessing), preprocessing, *name)
    if is_transparent(opened.image):
        with suppress(ImageError):
            for background in _BACKGROUNDS:
                shown = (*name, f"on {background}")
                views += _squares(
                    load_frame(opened, preprocessing, background=background), preprocessing, *shown
                )
    return views


def _squares(frame: Frame, preprocessing: Preprocessing, *name: str) -> list[View]:
    """Return the centre of a frame, and its tiles."""
    views = [View(", ".join(name) or CENTRE, _centre(frame, preprocessing))]
    boxes = _tiles(*frame.image.size, preprocessing)
    for i, box in enumerate(boxes, start=1):
        tile = _squeezed(frame.image, box, preprocessing)
        square = Frame(tile, tile.size, 1, frame.orientation)
        views.append(View(", ".join([*name, f"tile {i} of {len(boxes)}"]), _centre(square, preprocessing)))
    return views


def _centre(frame: Frame, preprocessing: Preprocessing) -> npt.NDArray[np.uint8]:
    return crop(frame, crop_box(*frame.upright_size, preprocessing), preprocessing)


def _tiles(width: int, height: int, preprocessing: Preprocessing) -> list[tuple[int, int, int, int]]:
    """Return the tiles of an image as left, top, right and bottom, in stored pixels; none unless it is long.

    Enough tiles that their crops cover the image, spread evenly from end to end.
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


def _squeezed(
    image: Image.Image, box: tuple[int, int, int, int], preprocessing: Preprocessing
) -> Image.Image:
    """Return a box of an image as a square."""
    tile = image.reduce(max(1, min(image.size) // (_ENOUGH * preprocessing.resized)), box)
    side = min(tile.size)
    return tile if max(tile.size) == side else tile.resize((side, side), Image.Resampling.BOX)


def _are_alike(one: View, other: View) -> bool:
    """Tell whether two views differ in details only."""
    coarse = [
        np.asarray(Image.fromarray(view.pixels).resize((_GRID, _GRID), Image.Resampling.BOX), np.int16)
        for view in (one, other)
    ]
    return bool(np.abs(coarse[0] - coarse[1]).max() <= _ALIKE)


def _distinct(views: Iterable[View]) -> list[View]:
    """Drop views with the pixels of an earlier one: pixels behind alpha 0 are often black already."""
    first: dict[bytes, View] = {}
    for view in views:
        first.setdefault(hashlib.sha256(view.pixels.tobytes()).digest(), view)
    return list(first.values())


def _walk(opened: OpenedImage, preprocessing: Preprocessing, limits: Limits) -> list[list[View]]:
    """Return the views of an animation's further frames, which must be decoded one after the other.

    A frame may be larger than the one before it. Every `step`-th frame is kept; `step` doubles when there are
    too many, because a GIF does not say how many frames it has.
    """
    seen: dict[int, list[View]] = {}
    left, step, frame = limits.max_pixels, 1, opened
    with suppress(EOFError, ImageError):  # Pillow stops at a damaged frame
        for number in range(1, _MOST_WALKED):
            _check_walk(frame, limits)  # moving on takes memory, too
            frame = open_frame(opened, number, limits)
            _check_walk(frame, limits)
            left -= frame.header.width * frame.header.height
            if left < 0:
                break
            if number % step == 0:
                seen[number] = _look(frame, preprocessing, f"frame {number + 1}")
            if len(seen) == _MOST_FRAMES:  # with the first frame, one too many
                step *= 2
                seen = {kept: views for kept, views in seen.items() if kept % step == 0}
    return list(seen.values())


def _check_walk(frame: OpenedImage, limits: Limits) -> None:
    limits.check(frame.header, memory_of_walk(frame.image, frame.content))


def _leaf(opened: OpenedImage, preprocessing: Preprocessing, limits: Limits) -> list[list[View]]:
    """Return the views of further pages; each page can be decoded without the others."""
    seen, left = [], limits.max_pixels
    pages = {"MPO": _mpo_pages, "HEIF": _heic_pages}.get(opened.header.format, _tiff_pages)
    for number, page in pages(opened, limits):
        left -= page.header.width * page.header.height
        if left < 0:
            break
        with suppress(ImageError):
            seen.append(_look(page, preprocessing, f"page {number + 1}"))
    return seen


def _mpo_pages(opened: OpenedImage, limits: Limits) -> Iterator[tuple[int, OpenedImage]]:
    """Yield the sampled pages of an MPO, a file of several JPEGs.

    The sizes that the MPO claims may be wrong and are ignored: a JPEG marks its own end.

    Source:
        CIPA DC-007, 5.2.3.3: offsets count from the header of the MP extensions; that of the first page is 0.
    """
    entries: list[dict[str, Any]] = opened.image.mpinfo[0xB002]  # type: ignore[attr-defined]
    origin = opened.content.find(b"MPF\0" + opened.image.info["mp"]) + len(b"MPF\0")
    opened.image.close()  # two pages in memory would be more than `memory_needed` computes
    for number in _sampled(len(entries)):
        with suppress(ImageError):
            yield number, open_image(opened.content[origin + entries[number]["DataOffset"] :], limits)


def _heic_pages(opened: OpenedImage, limits: Limits) -> Iterator[tuple[int, OpenedImage]]:
    """Yield the sampled pages of a HEIC; the primary one, wherever it is, was the first."""
    count, first = getattr(opened.image, "n_frames", 1), opened.image.tell()
    order = [first, *(number for number in range(count) if number != first)]
    small = replace(limits, max_pixels=limits.max_pixels // _HEIC_SHARE)
    for number in (order[i] for i in _sampled(count)):
        with suppress(EOFError, ImageError):  # opened anew: its plugin keeps all that it decoded
            yield number, open_frame(open_image(opened.content, limits), number, small)


def _tiff_pages(opened: OpenedImage, limits: Limits) -> Iterator[tuple[int, OpenedImage]]:
    """Yield the sampled pages of a TIFF; nothing for other formats."""
    for number in _sampled(num_pages(opened.content, _MOST_WALKED)):
        with suppress(EOFError, ImageError):
            yield number, open_frame(opened, number, limits)


def _sampled(count: int) -> range:
    """Return the numbers of the pages that are seen besides the first: every s-th, s a power of two."""
    count, step = min(count, _MOST_WALKED), 1
    while count > _MOST_FRAMES * step:
        step *= 2
    return range(step, count, step)


def _thumbnails(image: Image.Image) -> list[bytes]:
    """Return the encoded thumbnails in an image's metadata, as they are.

    Source:
        EXIF 2.32, 4.5.5 and 4.6.4; Adobe Photoshop File Formats Specification, Thumbnail Resource Format.
    """
    exif, resources, found = image.info.get("exif"), image.info.get("photoshop"), []
    directories = Directories.of(exif.removeprefix(b"Exif\0\0")) if isinstance(exif, bytes) else None
    if directories and (second := directories.after(directories.first)):
        values = {tag: value for tag, _, _, value in directories.entries(second)}
        start, length = values.get(0x0201, 0), values.get(0x0202, 0)  # JPEGInterchangeFormat, …Length
        found.append(directories.content[start : start + length])
    resource = resources.get(0x040C) if isinstance(resources, dict) else None
    if isinstance(resource, bytes):
        found.append(resource[28:])  # without its header
    return [thumbnail for thumbnail in found if thumbnail]
