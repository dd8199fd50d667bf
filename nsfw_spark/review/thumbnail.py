"""Makes a thumbnail from an encoded image, with the decoder that scoring uses, its limits and its protection.

In: encoded bytes and a decoder. Out: WebP, or an `ImageError`. The whole image is visible, also the margins
that a model may not see.
"""

from __future__ import annotations

from io import BytesIO
from typing import Final, Unpack

from PIL import Image

from nsfw_spark.decode import DecodeOptions
from nsfw_spark.errors import ImageError
from nsfw_spark.model_card import Preprocessing
from nsfw_spark.scorer import Content, Decoder

THUMBNAIL_PIXELS: Final = 176
"""Longer side of a thumbnail."""
_SQUARE: Final = Preprocessing(size=256, fit="squash", jpeg_draft=2, mean=(0, 0, 0), std=(1, 1, 1))
_QUALITY: Final = 55  # about 4 kB: 300 thumbnails are a page of 1.6 MB


def thumbnail(content: Content, decoder: Decoder, **options: Unpack[DecodeOptions]) -> bytes:
    """Return a thumbnail of an image.

    Args:
        content: The encoded image, or why it could not be read.
        decoder: `decode`, or a function that survives what it does.
        options: Keywords of `decode`; `strict` changes nothing.

    Returns:
        WebP, RGB, upright, at most 176 pixels wide and high, without metadata.

    Raises:
        ImageError: The image cannot be decoded.
    """
    if isinstance(content, ImageError):
        raise content
    options["strict"] = False
    decoded = decoder(content, _SQUARE, **options)
    width, height = decoded.header.width, decoded.header.height
    if decoded.is_turned:
        width, height = height, width
    scale = min(1.0, THUMBNAIL_PIXELS / max(width, height))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = Image.fromarray(decoded.pixels).resize(size, Image.Resampling.LANCZOS)
    buffer = BytesIO()
    small.save(buffer, "WEBP", quality=_QUALITY)
    return buffer.getvalue()
