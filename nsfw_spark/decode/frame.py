"""Loads the pixels of an opened image's frame, and cuts the encoder's square out of them.

In: an `OpenedImage`. Out: uint8 RGB (S, S, 3), upright. EXIF orientation turns the few pixels of the square,
not the whole image.
"""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from nsfw_spark.decode.modes import eight_bit, on_background
from nsfw_spark.decode.opening import OpenedImage, refused
from nsfw_spark.model_card import Preprocessing
from nsfw_spark.resize import Box, resize

_ORIENTATION: Final = 0x0112  # EXIF tag
_UPRIGHT: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation → the transposition that turns the image upright (EXIF 2.32, tag Orientation)."""
_FIRST_TRANSPOSED: Final = 5  # from here on width and height change places


@dataclass(frozen=True)
class Frame:
    """The pixels of a frame as stored, and how to find an upright box in them."""

    image: Image.Image
    """Mode RGB or L."""
    full_size: tuple[int, int]
    """Width and height in pixels as stored, before libjpeg scaled them down."""
    scale: int
    """Factor by which libjpeg scaled a JPEG down: 1, 2, 4 or 8."""
    orientation: int
    """EXIF's, 1 to 8."""

    @property
    def upright_size(self) -> tuple[int, int]:
        """Width and height in pixels, as people see the image."""
        width, height = self.full_size
        return (height, width) if self.orientation >= _FIRST_TRANSPOSED else (width, height)


def load_frame(opened: OpenedImage, preprocessing: Preprocessing, *, background: str | None = None) -> Frame:
    """Decode the pixels of the frame at which an image is, and convert them to 8 bits a channel.

    `background` names the colour to put behind a transparent frame; None ignores the alpha channel.

    Raises:
        ImageError: `undecodable`, `unsupported`, or `too_large` if memory runs out.
    """
    image, header = opened.image, opened.header
    try:
        scale = _draft(image, preprocessing) if image.format in {"JPEG", "MPO"} else 1
        image.load()
        # Only now: Pillow turns a TIFF upright itself while loading it, and then forgets its orientation.
        orientation = _orientation(image)
        pixels = eight_bit(image) if background is None else on_background(image, background)
        if preprocessing.resizer != "simd" and orientation in _UPRIGHT:
            # Exact to the last bit: Pillow scales the sides in another order when they change places.
            pixels, orientation = pixels.transpose(_UPRIGHT[orientation]), 1
    except Exception as error:  # noqa: BLE001 - Pillow's decoders raise anything on damaged data
        raise refused(error, "damaged", header) from None
    full_size = (header.width, header.height) if scale > 1 else pixels.size
    return Frame(pixels, full_size, scale, orientation)


def crop(frame: Frame, box: Box, preprocessing: Preprocessing) -> npt.NDArray[np.uint8]:
    """Scale a box, in pixels of the upright full-size frame, to the encoder's square.

    Returns:
        uint8, shape (S, S, 3), RGB, upright, on the CPU.

    Raises:
        ImageError: The image library fails: `too_large` if memory runs out, else `undecodable`.
    """
    try:
        square = resize(frame.image, _stored(box, frame), preprocessing)
        if frame.orientation in _UPRIGHT:
            square = square.transpose(_UPRIGHT[frame.orientation])
        if preprocessing.jpeg_reencode:
            square = _through_jpeg(square.convert("RGB"))
        pixels = np.asarray(square)
    except Exception as error:  # noqa: BLE001 - one image must not take the others with it
        raise refused(error, "it cannot be scaled") from None
    return pixels if pixels.ndim == 3 else np.repeat(pixels[:, :, None], 3, axis=2)  # noqa: PLR2004


def _draft(image: Image.Image, preprocessing: Preprocessing) -> int:
    """Let libjpeg decode at 1/2, 1/4 or 1/8 of the size; return 2, 4 or 8, or 1 for the full size."""
    if preprocessing.jpeg_draft is None:
        return 1
    enough = preprocessing.jpeg_draft * preprocessing.resized
    scale = next((scale for scale in (8, 4, 2) if min(image.size) >= scale * enough), 1)
    if scale > 1:
        image.draft(None, (image.width // scale, image.height // scale))
    return scale


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 if it is absent or damaged."""
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # noqa: BLE001 - damaged metadata does not make an image unreadable
        return 1
    return orientation if orientation in _UPRIGHT else 1


def _stored(box: Box, frame: Frame) -> Box:
    """Map a box of the upright full-size image to stored, possibly scaled-down pixels."""
    left, top, width, height, down_first = box.left, box.top, box.width, box.height, box.down_first
    if frame.orientation >= _FIRST_TRANSPOSED:
        left, top, width, height, down_first = top, left, height, width, not down_first
    if frame.orientation in {2, 3, 7, 8}:
        left = frame.full_size[0] - left - width
    if frame.orientation in {3, 4, 6, 7}:
        top = frame.full_size[1] - top - height
    left, top, width, height = (max(side, 0.0) / frame.scale for side in (left, top, width, height))
    return Box(left, top, width, height, down_first)


def _through_jpeg(image: Image.Image) -> Image.Image:
    image.info = {}  # comments and profiles: some are longer than a JPEG may have
    buffer = BytesIO()
    image.save(buffer, format="JPEG")
    return Image.open(buffer)
