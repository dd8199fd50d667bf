"""Seeds: small valid inputs of each kind, made by code."""

from __future__ import annotations

import io
import socket
import tarfile
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from PIL import Image

from nsfw_spark import wire
from nsfw_spark.decode import DecodedImage, View
from nsfw_spark.errors import ImageError, ImageHeader
from nsfw_spark.heads import Predictions
from nsfw_spark.host.protocol import scores_message
from nsfw_spark.isolation.replies import reply_of
from tests.conftest import LAION_HEADS, encoded, pixels
from tests.hidden import HIDDEN

CARDS = Path(str(resources.files("nsfw_spark") / "models"))


def hidden() -> dict[str, bytes]:
    """Return images of several frames, pages, backgrounds, tiles and thumbnails."""
    return {name: hidden.content for name, hidden in HIDDEN.items()}


def images() -> dict[str, bytes]:
    """Return an image of each format, in the variants that other code reads."""
    rgb, sixteen = pixels(48, 32), np.arange(48 * 32, dtype=np.uint16).reshape(32, 48) * 40
    photo = Image.fromarray(rgb)
    exif = Image.Exif()
    exif[0x0112] = 6
    return {
        "jpeg": encoded(rgb, "JPEG", exif=exif, icc_profile=b"\0" * 128, comment=b"why"),
        "progressive jpeg": encoded(rgb, "JPEG", progressive=True, subsampling=0),
        "cmyk jpeg": encoded(photo.convert("CMYK"), "JPEG"),
        "mpo": encoded(rgb, "MPO", **_several()),
        "png": encoded(rgb, "PNG", dpi=(72, 72)),
        "palette png": encoded(photo.quantize(16), "PNG", transparency=0, bits=4),
        "16-bit png": encoded(sixteen, "PNG"),
        "animated png": encoded(rgb, "PNG", **_several()),
        "webp": encoded(rgb, "WEBP", exif=exif),
        "lossless webp": encoded(rgb, "WEBP", lossless=True),
        "animated webp": encoded(rgb, "WEBP", **_several()),
        "gif": encoded(rgb, "GIF"),
        "animated gif": encoded(rgb, "GIF", **_several()),
        "bmp": encoded(rgb, "BMP"),
        "palette bmp": encoded(photo.quantize(16), "BMP"),
        "tiff": encoded(rgb, "TIFF"),
        "lzw tiff": encoded(rgb, "TIFF", compression="tiff_lzw"),
        "deflated tiff": encoded(rgb, "TIFF", compression="tiff_adobe_deflate", **_several()),
        "jpeg tiff": encoded(rgb, "TIFF", compression="jpeg"),
        "fax tiff": encoded(photo.convert("1"), "TIFF", compression="group4"),
        "avif": encoded(rgb, "AVIF", exif=exif),
    }


def _several() -> dict[str, Any]:
    """Return arguments of Pillow's `save` for two frames; new ones, because `save` changes the images."""
    return {"save_all": True, "append_images": [Image.fromarray(pixels(48, 32, seed=1))]}


def tars() -> dict[str, bytes]:
    """Return tars of images, texts, links and long names, in each compression and dialect."""
    return {
        "tar": _tar("w"),
        "pax tar": _tar("w", format=tarfile.PAX_FORMAT),
        "old tar": _tar("w", format=tarfile.USTAR_FORMAT),
        "gzip": _tar("w:gz"),
        "bzip2": _tar("w:bz2"),
        "xz": _tar("w:xz"),
    }


def _tar(mode: str, **options: Any) -> bytes:  # noqa: ANN401 - tarfile's
    buffer = io.BytesIO()
    link = tarfile.TarInfo("link.png")
    link.type, link.linkname = tarfile.SYMTYPE, "a.png"
    with tarfile.open(fileobj=buffer, mode=mode, **options) as archive:  # type: ignore[call-overload]
        for name in ("a.png", "a.txt", "größe/" + "n" * 90 + ".json", "no-name"):
            content = encoded(pixels(4, 4), "PNG")
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        archive.addfile(link)
    return buffer.getvalue()


def cards() -> dict[str, bytes]:
    """Return the built-in cards."""
    return {path.stem: path.read_bytes() for path in CARDS.glob("*.yaml")}


def laion_heads() -> dict[str, bytes]:
    """Return LAION's smaller head, and a tiny one, with more names and shapes than numbers."""
    one = np.ones(1, np.float32)
    tiny = {"mean": one, "variance": one, "layers.0.kernel": one[None], "layers.0.bias": one}
    return {
        "b32": (LAION_HEADS / "clip_autokeras_nsfw_b32.safetensors").read_bytes(),
        "tiny": safetensors.numpy.save(tiny | {"vocabulary.0": one.astype(np.float16)}),
    }


def conversations() -> dict[str, bytes]:
    """Return messages of a task, a model host, and a child that decodes."""
    one, two = np.array([0.5, 0.25, 1], np.float32), np.ones((3, 2), np.float32)
    square, header = np.zeros((4, 4, 3), np.uint8), ImageHeader(60, 40, "PNG")
    return {
        "hello": _sent({"kind": "hello", "version": 1, "key": "k", "task": "t", "model": 0}),
        "pixels": _sent({"kind": "pixels"}, [square, square]),
        "scores": _sent(*scores_message(Predictions(one, two, two, 0.5, 3))),
        "error": _sent({"kind": "error", **wire.error_head(ValueError("why"), "the model host")}),
        "decoded": _sent(*reply_of(DecodedImage(square, header, (View("frame 2", square),), 2))),
        "bad image": _sent(*reply_of(ImageError("undecodable", "damaged", header))),
    }


def _sent(head: dict[str, Any], body: Sequence[np.ndarray[Any, Any]] = ()) -> bytes:
    here, there = socket.socketpair()
    with here, there:
        wire.send(here, head, body)
        return there.recv(1 << 16)


def npy_files() -> dict[str, bytes]:
    """Return matrices of floats, row by row, column by column and of foreign byte order; one of objects."""
    rows = np.arange(24, dtype=np.float32).reshape(6, 4)
    arrays = {
        "rows": rows,
        "columns": np.asfortranarray(rows),
        "half": rows.astype(np.float16),
        "big-endian": rows.astype(">f8"),
        "objects": np.array([[{}, []]], object),
    }
    return {name: _npy(array) for name, array in arrays.items()}


def _npy(array: np.ndarray[Any, Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()
