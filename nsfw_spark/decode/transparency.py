"""Shows what a viewer shows of a transparent image: the image on a background.

In: an image of any mode, its pixels loaded. Out: mode RGB; takes no more memory besides than that.
"""

from __future__ import annotations

from typing import Final

from PIL import Image

from nsfw_spark.decode.pieces import pieces
from nsfw_spark.decode.reasons import refused

_WITH_ALPHA: Final = frozenset({"RGBA", "LA"})
_OPAQUE: Final = 255


def is_transparent(image: Image.Image) -> bool:
    """Tell whether anything behind the image would show through, at any pixel.

    Raises:
        ImageError: Pillow cannot tell.
    """
    try:
        return image.has_transparency_data and any(_shows_through(piece) for _, piece in pieces(image))
    except Exception as error:  # noqa: BLE001 - what Pillow's conversions raise is not documented
        raise refused(error, "transparency") from None


def on_background(image: Image.Image, background: str) -> Image.Image:
    """Return the image, mode RGB, on a background of one colour, by its name."""
    flat = Image.new("RGB", image.size, background)
    for place, piece in pieces(image):
        layer = _with_alpha(piece)
        flat.paste(layer, place, mask=layer)
    return flat


def _shows_through(piece: Image.Image) -> bool:
    lowest, _ = _with_alpha(piece).getchannel("A").getextrema()
    return isinstance(lowest, int) and lowest < _OPAQUE


def _with_alpha(piece: Image.Image) -> Image.Image:
    return piece if piece.mode in _WITH_ALPHA else piece.convert("RGBA")
