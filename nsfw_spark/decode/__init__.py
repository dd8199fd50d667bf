"""Decode one image: encoded bytes → uint8 RGB (S, S, 3), or an `ImageError` with the reason.

`image.py` has the whole path of an image; the other files are its steps. Knows nothing of models: the caller
passes the card's `Preprocessing`.
"""

from __future__ import annotations

from nsfw_spark.decode.image import DecodedImage, DecodeOptions, decode
from nsfw_spark.decode.opening import DEFAULT_MAX_BYTES, DEFAULT_MAX_PIXELS, FORMATS, too_long
from nsfw_spark.decode.strict import CENTRE, MOST_VIEWS, View

__all__ = [
    "CENTRE",
    "DEFAULT_MAX_BYTES",
    "DEFAULT_MAX_PIXELS",
    "FORMATS",
    "MOST_VIEWS",
    "DecodeOptions",
    "DecodedImage",
    "View",
    "decode",
    "too_long",
]
