"""Decodes one image: encoded bytes → uint8 RGB (S, S, 3), or an `ImageError` with the reason.

The steps, in the order in which an image meets them::

    opening.py    checks the length, opens the header, checks pixels and memory; the formats are an allow-list
      metadata.py   bounds the data around the pixels, before Pillow parses any of it
      memory.py     computes from the header how much memory the pixels will take
      foreign.py    names the format of a file that is not decoded
    frame.py      decodes the pixels, cuts out the encoder's square (`resize`), turns it upright
      modes.py      converts every pixel mode to 8 bits
    strict.py     optional: further views of the image (docs/strict.md)

The result equals torchvision's `Resize` and `CenterCrop` on Pillow, to 2 of 255. docs/formats.md lists every
kind of image. Knows nothing of models: the caller passes the card's `Preprocessing`.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import numpy.typing as npt

from nsfw_spark.decode.frame import crop, load_frame
from nsfw_spark.decode.opening import DEFAULT_MAX_BYTES, DEFAULT_MAX_PIXELS, Limits, open_image
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
    """Further views of the image, at most `MOST_VIEWS` - 1."""
    num_frames: int = 1
    """Number of frames or pages that the views show."""
    is_turned: bool = False
    """Whether the upright image is as wide as `header` says it is high; False with further views."""

    @property
    def views(self) -> tuple[View, ...]:
        """All views; the first is the centre."""
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
    """Decode, resize and crop the first frame of an image.

    Args:
        content: The encoded image, or None if it could not be read.
        preprocessing: The model card's.
        max_pixels: An image with more pixels (width x height) is `too_large`.
        max_bytes: An image with longer `content` is `too_large`.
        strict: Return further views too.

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
        size, header = frame.upright_size, opened.header
        pixels = crop(frame, crop_box(*size, preprocessing), preprocessing)
        return DecodedImage(pixels, header, is_turned=size != (header.width, header.height))
