"""Computes how much memory decoding an image takes, from its header.

In: an image that Pillow has opened and not loaded. Out: bytes at the peak. The factors were measured;
tests/unit/test_decode_limits.py measures them again.
"""

from __future__ import annotations

from typing import Final

from PIL import Image

_LOADED: Final = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2}
"""Bytes of one pixel in Pillow, by mode; all other modes take 4."""
_CONVERTED: Final = {"RGB": 0, "L": 0, "La": 1, "I": 1, "F": 1, "I;16": 1, "I;16B": 1, "I;16L": 1}
"""Bytes of one pixel of the copy in RGB or L, by mode; all other modes take 4."""
_ANIMATION: Final = 16
"""Bytes of one pixel: canvas, previous canvas, the copy for Pillow, and Pillow's image."""
_WALKED: Final = {"GIF": 24, "PNG": 24, "WEBP": 28, "AVIF": 100}
"""Bytes of one pixel while frame after frame is decoded: also a frame not yet drawn, and copies. An AVIF
keeps eight frames that others refer to, each of up to 8 bytes a pixel."""

_BITS_PER_SAMPLE, _SAMPLES, _ROWS_PER_STRIP, _TILE_WIDTH, _TILE_LENGTH = 258, 277, 278, 322, 323  # TIFF tags
_ORIENTATION: Final = 0x0112


def memory_needed(image: Image.Image, content: bytes) -> int:
    """Return the bytes in use at the peak of loading an image and converting it; `content` counts too."""
    num_pixels = image.width * image.height
    if image.format in {"WEBP", "AVIF", "HEIF"}:
        return _ANIMATION * num_pixels + 2 * len(content)  # their parsers copy the file
    loaded, buffer = _LOADED.get(image.mode, 4), 0
    if image.format in {"JPEG", "MPO"}:
        buffer = _coefficients(image, content)
    elif image.format == "TIFF":
        buffer = _block(image)
    converted = _CONVERTED.get(image.mode, 4)
    return max(loaded * num_pixels + buffer, (loaded + converted) * num_pixels) + len(content)


def memory_of_walk(image: Image.Image, content: bytes) -> int:
    """Return the bytes in use at the peak of decoding an animation's frames one after the other."""
    return _WALKED[str(image.format)] * image.width * image.height + 2 * len(content)


def _coefficients(image: Image.Image, content: bytes) -> int:
    """Return the bytes that libjpeg keeps of a JPEG with several scans: 2 for each sample."""
    layers = image.layer  # type: ignore[attr-defined]  # (id, rows, columns, table) of each
    if not image.info.get("progressive") and _in_one_scan(image, content, len(layers)):
        return 0
    most = max(rows * columns for _, rows, columns, _ in layers) or 1
    samples = sum(rows * columns for _, rows, columns, _ in layers) / most
    return int(2 * samples * image.width * image.height)


def _in_one_scan(image: Image.Image, content: bytes, num_layers: int) -> bool:
    """Tell whether the first scan holds all layers; Pillow has read up to the end of its header."""
    if image.format == "MPO":  # Pillow has read further
        return False
    header = 6 + 2 * num_layers  # bytes: its length (2), layers (1 and 2 each), spectrum (3)
    start = image.fp.tell() - header  # type: ignore[attr-defined]
    return content[start : start + 3] == bytes((0, header, num_layers))


def _block(image: Image.Image) -> int:
    """Return the bytes of one strip or tile of a TIFF, or of turning it upright."""
    rows = min(_tag(image, _ROWS_PER_STRIP, image.height), image.height)
    bits = max(_tag(image, _BITS_PER_SAMPLE, 1) * _tag(image, _SAMPLES, 1), 8)
    block = _tag(image, _TILE_WIDTH, image.width) * _tag(image, _TILE_LENGTH, rows) * bits // 8
    turned = 4 * image.width * image.height if _tag(image, _ORIENTATION, 1) != 1 else 0
    return max(block, turned)


def _tag(image: Image.Image, tag: int, default: int) -> int:
    """Return the value of a TIFF's tag; the largest of several values."""
    value = image.tag_v2.get(tag, default)  # type: ignore[attr-defined]
    value = max(value, default=default) if isinstance(value, tuple) else value
    return value if isinstance(value, int) else default
