"""Decode one image: encoded bytes → uint8 RGB (S, S, 3), or an `ImageError` that says why not.

`image.py` has the whole path of an image; each other file is one step of it. Knows nothing of models: the
caller passes the card's `Preprocessing`.
"""

from __future__ import annotations

from nsfw_spark.decode.frame import crop, load_frame
from nsfw_spark.decode.image import DecodedImage, DecodeOptions, decode
from nsfw_spark.decode.opening import (
    DEFAULT_MAX_BYTES,
    DEFAULT_MAX_PIXELS,
    FORMATS,
    Limits,
    open_image,
    too_long,
)
from nsfw_spark.decode.strict import CENTRE, MOST_VIEWS, View

__all__ = [
    "CENTRE",
    "DEFAULT_MAX_BYTES",
    "DEFAULT_MAX_PIXELS",
    "FORMATS",
    "MOST_VIEWS",
    "DecodeOptions",
    "DecodedImage",
    "Limits",
    "View",
    "crop",
    "decode",
    "load_frame",
    "open_image",
    "too_long",
]
