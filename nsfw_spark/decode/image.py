"""Decodes one image: encoded bytes → uint8 RGB (S, S, 3), or an `ImageError` that says why not.

What happens to an image, in this order::

    limits.py  metadata.py   is the file too long; what around the pixels is too much
    opening.py foreign.py    an allow-list decides who may parse it; else what it is instead
    memory.py                what its pixels will take, before any is allocated
    modes.py                 every mode → 8 bits
    frame.py                 a SIMD resize scales what the crop will keep, then EXIF orientation turns it

Where all that an image may show is asked for, and not its centre alone::

    views.py                 one after the other: as stored, and by
      transparency.py          on white and on black
      embedded.py              the thumbnails
      sequence.py              further frames and pages

The result equals the reference, `Resize` and `CenterCrop` of torchvision on Pillow, to 2 of 255
(tests/unit/test_decode.py); docs/formats.md says what each kind of image gives. Knows nothing of models: the
caller hands in the card's `Preprocessing`.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import numpy.typing as npt

from nsfw_spark.decode.frame import crop, load_frame
from nsfw_spark.decode.opening import (
    DEFAULT_MAX_BYTES,
    DEFAULT_MAX_PIXELS,
    Limits,
    open_image,
)
from nsfw_spark.decode.strict import CENTRE, View, views_of
from nsfw_spark.errors import ImageHeader
from nsfw_spark.model_card import Preprocessing
from nsfw_spark.resize import crop_box


@dataclass(frozen=True)
class DecodedImage:
    """One image, ready for an encoder."""

    pixels: npt.NDArray[np.uint8]
    """uint8, shape (S, S, 3), RGB, upright, on the CPU."""
    header: ImageHeader
    further: tuple[View, ...] = ()
    """Other views of it, at most `MOST_VIEWS` less one; none unless `strict`."""
    num_frames: int = 1
    """Frames or pages that these views are of."""

    @property
    def views(self) -> tuple[View, ...]:
        """All of them, the centre first."""
        return (View(CENTRE, self.pixels), *self.further)


class DecodeOptions(TypedDict, total=False):
    """The keywords of `decode`, for decoders that pass them on."""

    max_pixels: int
    max_bytes: int
    strict: bool


def decode(
    content: bytes | None,
    preprocessing: Preprocessing,
    *,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    max_bytes: int = DEFAULT_MAX_BYTES,
    strict: bool = False,
) -> DecodedImage:
    """Decode, resize and crop one image: of an animation or a file of several pages the first.

    Args:
        content: The encoded image; None where it could not be read.
        preprocessing: The model card's.
        max_pixels: Width x height above which an image is `too_large`.
        max_bytes: Length of `content` above which it is.
        strict: Decode further views of it too: `views`.

    Raises:
        ImageError: `missing`, `unsupported`, `undecodable` or `too_large`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of odd metadata, image by image
        limits = Limits(max_pixels, max_bytes)
        opened = open_image(content, limits)
        if strict:
            (first, *further), num_frames = views_of(opened, preprocessing, limits)
            return DecodedImage(first.pixels, opened.header, tuple(further), num_frames)
        frame = load_frame(opened, preprocessing)
        box = crop_box(*frame.upright_size, preprocessing)
        return DecodedImage(crop(frame, box, preprocessing), opened.header)
