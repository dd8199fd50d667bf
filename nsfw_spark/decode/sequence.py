"""Which further frames of an animation, or pages of a file, are looked at; each within the limits.

Every s-th, from the first on, where s is the smallest power of two that leaves at most `MOST_FRAMES`. So an
animation is walked through once: to count its frames first may take as long as to decode them. A damaged
page is passed over, a damaged frame ends the walk: the first one alone decides an image's status.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Final, TypeVar

from nsfw_spark.decode.embedded import pictures
from nsfw_spark.decode.limits import Limits
from nsfw_spark.decode.memory import memory_of_walk
from nsfw_spark.decode.metadata import num_pages
from nsfw_spark.decode.opening import OpenedImage, open_frame, open_image
from nsfw_spark.errors import ImageError

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
