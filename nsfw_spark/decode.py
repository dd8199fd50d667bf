"""Decodes one image: encoded bytes → uint8 RGB (S, S, 3), or an `ImageError` that says why not.

What happens to an image, in this order: an allow-list decides who may parse it; its size is checked before
pixels are allocated; a SIMD resize scales what the crop will keep; EXIF orientation is applied to the few
pixels that are left. The result equals the reference, `Resize` and `CenterCrop` of torchvision on Pillow,
to 2 of 255 (tests/unit/test_decode.py).

Knows nothing of models: the caller hands in the card's `Preprocessing`.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from io import BytesIO
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from nsfw_spark.errors import ImageError, ImageHeader
from nsfw_spark.model_card import Preprocessing
from nsfw_spark.resize import Box, crop_box, resize

FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""Formats that are decoded. What many cameras write into a .jpg, MPO, is opened as JPEG."""

DEFAULT_MAX_PIXELS: Final = 100_000_000
"""Width x height; about 300 MB of RGB. Pillow itself refuses above 178,956,970."""

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

_FOREIGN: Final = {
    b"%PDF": "a PDF document",
    b"<svg": "an SVG drawing",
    b"<?xml": "an XML or SVG document",
    b"<!DOCTYPE": "an HTML page",
    b"<!doctype": "an HTML page",
    b"<html": "an HTML page",
    b"PK\x03\x04": "a ZIP archive",
    b"8BPS": "a PSD image",
    b"\x00\x00\x00\x0cjP  ": "a JPEG 2000 image",
    b"\x00\x00\x00\x0cJXL ": "a JPEG XL image",
    b"\xff\x0a": "a JPEG XL image",
    b"\x00\x00\x01\x00": "an ICO image",
    b"\x1aE\xdf\xa3": "a Matroska or WebM video",
}
"""First bytes of what lies in image directories and is not decoded on purpose."""


@dataclass(frozen=True)
class DecodedImage:
    """One image, ready for an encoder."""

    pixels: npt.NDArray[np.uint8]
    """uint8, shape (S, S, 3), RGB, upright, on the CPU."""
    header: ImageHeader


def decode(
    content: bytes | None,
    preprocessing: Preprocessing,
    *,
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> DecodedImage:
    """Decode, resize and crop one image.

    Args:
        content: The encoded image; None where it could not be read.
        preprocessing: The model card's.
        max_pixels: Width x height above which an image is `too_large`.

    Raises:
        ImageError: `missing`, `unsupported`, `undecodable` or `too_large`.
    """
    if not content:
        if content is None:
            raise ImageError("missing", "no content: the file could not be read")
        raise ImageError("undecodable", "the file is empty (0 bytes)")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of odd metadata, image by image
        image, header = _open(content, max_pixels)
        pixels = _crop(_load(image, header, preprocessing), preprocessing)
    return DecodedImage(pixels, header)


def _open(content: bytes, max_pixels: int) -> tuple[Image.Image, ImageHeader]:
    try:
        image = Image.open(BytesIO(content), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise ImageError("too_large", f"{error}; the limit is max_pixels = {max_pixels}") from None
    except UnidentifiedImageError:
        raise _unidentified(content) from None
    except Exception as error:  # noqa: BLE001 - Pillow's parsers raise anything on damaged headers
        raise ImageError("undecodable", f"damaged header: {_reason(error)}") from None
    header = ImageHeader(image.width, image.height, str(image.format))
    if image.width * image.height > max_pixels:
        raise ImageError(
            "too_large",
            f"{image.width} x {image.height} pixels, more than max_pixels = {max_pixels}",
            header,
        )
    return image, header


def _unidentified(content: bytes) -> ImageError:
    """Tell a format that is not decoded on purpose from something that is no image."""
    foreign = _foreign_format(content)
    if foreign is not None:
        return ImageError("unsupported", f"{foreign}; decoded are {', '.join(FORMATS)}")
    for name in FORMATS:
        accept = Image.OPEN[name][1]  # reads the first bytes only
        if accept is not None and accept(content[:16]) is True:
            return ImageError("undecodable", f"damaged: it begins like {name}, and ends or breaks off")
    return ImageError("undecodable", "not an image: it begins like no image format")


def _foreign_format(content: bytes) -> str | None:
    head = content[:64].lstrip()
    for signature, name in _FOREIGN.items():
        if head.startswith(signature):
            return name
    if content[4:8] == b"ftyp" and content[8:12] not in {b"avif", b"avis"}:
        # ISO base media: the brand says whether it is an image or a video.
        heif = content[8:11] in {b"hei", b"hev", b"mif", b"msf"}
        return "a HEIC image" if heif else "an MP4 or QuickTime video"
    return None


@dataclass(frozen=True)
class _Loaded:
    """Pixels, and what is needed to find the crop in them."""

    image: Image.Image
    """Mode RGB or L."""
    full_size: tuple[int, int]
    """Width and height in pixels, had a JPEG not been scaled down while it was decoded."""
    scale: int
    """By how much it was: 1, 2, 4 or 8."""
    orientation: int
    """EXIF's, 1 to 8."""


def _load(image: Image.Image, header: ImageHeader, preprocessing: Preprocessing) -> _Loaded:
    try:
        scale = _draft(image, preprocessing) if image.format in {"JPEG", "MPO"} else 1
        image.load()
        # Only now: Pillow turns a TIFF upright itself while loading it, and then forgets its orientation.
        orientation, eight_bit = _orientation(image), _eight_bit(image)
        if preprocessing.resizer == "pillow" and orientation in _UPRIGHT:
            # Exact to the last bit: Pillow scales the sides in another order when they change places.
            eight_bit, orientation = eight_bit.transpose(_UPRIGHT[orientation]), 1
        full_size = (header.width, header.height) if scale > 1 else eight_bit.size
        return _Loaded(eight_bit, full_size, scale, orientation)
    except MemoryError:
        raise ImageError("too_large", "decoding it ran out of memory", header) from None
    except Exception as error:  # noqa: BLE001 - Pillow's decoders raise anything on damaged data
        raise ImageError("undecodable", f"damaged: {_reason(error)}", header) from None


def _draft(image: Image.Image, preprocessing: Preprocessing) -> int:
    """Have libjpeg decode at 1/2, 1/4 or 1/8 of the size; return 2, 4, 8, or 1 for none."""
    if preprocessing.jpeg_draft is None:
        return 1
    enough = preprocessing.jpeg_draft * preprocessing.resized
    scale = next((scale for scale in (8, 4, 2) if min(image.size) >= scale * enough), 1)
    if scale > 1:
        image.draft(None, (image.width // scale, image.height // scale))
    return scale


def _eight_bit(image: Image.Image) -> Image.Image:
    """Convert to RGB or L of 8 bits a channel, as `Image.convert` does; 16 bits are scaled."""
    if image.mode in {"RGB", "L"}:
        return image
    if image.mode.startswith("I;16"):  # convert would clip all above 255 to white
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("RGB")


def _crop(loaded: _Loaded, preprocessing: Preprocessing) -> npt.NDArray[np.uint8]:
    """Resize and crop to (S, S, 3), upright."""
    width, height = loaded.full_size
    if loaded.orientation >= _FIRST_TRANSPOSED:
        width, height = height, width
    upright = crop_box(width, height, preprocessing)
    square = resize(loaded.image, _stored(upright, loaded), preprocessing)
    if loaded.orientation in _UPRIGHT:
        square = square.transpose(_UPRIGHT[loaded.orientation])
    if preprocessing.jpeg_reencode:
        square = _through_jpeg(square.convert("RGB"))
    pixels = np.asarray(square)
    return pixels if pixels.ndim == 3 else np.repeat(pixels[:, :, None], 3, axis=2)  # noqa: PLR2004


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 where there is none or it cannot be read."""
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # noqa: BLE001 - damaged metadata does not make an image unreadable
        return 1
    return orientation if orientation in _UPRIGHT else 1


def _stored(box: Box, loaded: _Loaded) -> Box:
    """Map a box of the upright image at full size to the image as it was loaded."""
    left, top, width, height, down_first = box.left, box.top, box.width, box.height, box.down_first
    if loaded.orientation >= _FIRST_TRANSPOSED:
        left, top, width, height, down_first = top, left, height, width, not down_first
    if loaded.orientation in {2, 3, 7, 8}:
        left = loaded.full_size[0] - left - width
    if loaded.orientation in {3, 4, 6, 7}:
        top = loaded.full_size[1] - top - height
    left, top, width, height = (max(side, 0.0) / loaded.scale for side in (left, top, width, height))
    return Box(left, top, width, height, down_first)


def _through_jpeg(image: Image.Image) -> Image.Image:
    buffer = BytesIO()
    image.save(buffer, format="JPEG")
    return Image.open(buffer)


def _reason(error: Exception) -> str:
    """Return the library's own words: one line, printable, short."""
    words = " ".join(str(error).split()) or type(error).__name__
    return words.encode("ascii", "replace").decode()[:200]
