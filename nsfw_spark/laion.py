"""Reads LAION's NSFW heads from LAION's own Keras archives, with numpy alone.

In: `clip_autokeras_binary_nsfw.zip` (ViT-L/14) or `clip_autokeras_nsfw_b32.zip` (ViT-B/32), as published
in LAION-AI/CLIP-based-NSFW-Detector at commit d6bb8fe. Out: arrays by layer. No TensorFlow, no pickle.

A Keras archive holds a TensorFlow checkpoint: `variables.index` is a LevelDB table of name → place,
`variables.data-00000-of-00001` holds the raw little-endian numbers. This module knows that format and
nothing of what the numbers mean; `nsfw_spark.heads` computes with them.

Source:
    tensorflow/core/util/tensor_bundle and tensorflow/tsl/lib/io/table (format description of LevelDB).
"""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from nsfw_spark.errors import WeightsError

_TABLE_MAGIC: Final = bytes.fromhex("57fb808b247547db")
_FOOTER_BYTES: Final = 48
_FLOAT32: Final = 1  # DataType.DT_FLOAT
_MAX_MEMBER_BYTES: Final = 16 << 20  # the real ones hold 0.9 MB: a zip bomb stops here
_DAMAGED: Final = (  # what zipfile, zlib, numpy and the parser below raise on damaged archives
    ArithmeticError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    ValueError,
    zipfile.BadZipFile,
    zlib.error,
)
_LAYER: Final = re.compile(r"layer_with_weights-(\d+)/(\w+)/\.ATTRIBUTES/VARIABLE_VALUE")


@dataclass(frozen=True)
class LaionHead:
    """The numbers of one head: normalisation, then dense layers."""

    mean: npt.NDArray[np.float32]
    """float32, shape (D,): subtracted from the embedding."""
    variance: npt.NDArray[np.float32]
    """float32, shape (D,): the embedding is divided by its square root."""
    layers: tuple[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]], ...]
    """Dense layers in order: kernel float32 (inputs, outputs), bias float32 (outputs,)."""


def read_head(path: Path) -> LaionHead:
    """Read the head from a Keras archive.

    Args:
        path: One of LAION's two zip archives.

    Raises:
        WeightsError: The file is not such an archive, or is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            index = _member(archive, "variables/variables.index")
            data = _member(archive, "variables/variables.data-00000-of-00001")
        return _assemble(dict(_float_tensors(index, data)))
    except _DAMAGED as error:
        raise WeightsError(
            f"{path} is not one of LAION's Keras archives ({error}); expected a zip that holds "
            "variables/variables.index and variables/variables.data-00000-of-00001. "
            "Reinstall nsfw-spark, or mend the card's head.weights."
        ) from error


def _assemble(tensors: dict[tuple[int, str], npt.NDArray[np.float32]]) -> LaionHead:
    norms = [layer for layer, name in tensors if name == "mean"]
    kernels = sorted(layer for layer, name in tensors if name == "kernel")
    if len(norms) != 1 or not kernels:
        raise ValueError(f"it holds {len(norms)} normalisation and {len(kernels)} dense layers")
    mean, variance = tensors[norms[0], "mean"], tensors[norms[0], "variance"]
    layers = tuple((tensors[layer, "kernel"], tensors[layer, "bias"]) for layer in kernels)
    shape = mean.shape
    for kernel, bias in layers:
        if variance.shape != mean.shape or (kernel.shape[0], *bias.shape) != (*shape, *kernel.shape[1:]):
            raise ValueError("its layers do not fit one another")
        shape = bias.shape
    return LaionHead(mean, variance, layers)


def _member(archive: zipfile.ZipFile, suffix: str) -> bytes:
    for member in archive.infolist():
        if member.filename.endswith(suffix):
            if member.file_size > _MAX_MEMBER_BYTES:
                raise ValueError(f"{suffix} is {member.file_size} bytes, over {_MAX_MEMBER_BYTES}")
            return archive.read(member)
    raise KeyError(suffix)


def _float_tensors(index: bytes, data: bytes) -> Iterator[tuple[tuple[int, str], npt.NDArray[np.float32]]]:
    """Yield ((layer number, variable name), float32 array) of each layer's variables."""
    for key, value in _table_entries(index):
        layer = _LAYER.fullmatch(key.decode())
        entry = dict(_fields(value))  # BundleEntryProto: 1 dtype, 2 shape, 4 offset, 5 size
        if layer is None or entry.get(1) != _FLOAT32:
            continue  # counters, vocabularies and the object graph
        offset, size = int(entry.get(4, 0)), int(entry[5])
        dims = [dict(_fields(dim)).get(1, 0) for _, dim in _fields(entry.get(2, b""))]
        if offset + size > len(data):
            raise ValueError(f"{key.decode()} ends at byte {offset + size} of {len(data)}")
        yield (
            (int(layer[1]), layer[2]),
            np.frombuffer(data, "<f4", size // 4, offset).reshape([int(dim) for dim in dims]),
        )


def _table_entries(table: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the (key, value) pairs of an uncompressed LevelDB table."""
    if table[-8:] != _TABLE_MAGIC:
        raise ValueError("variables.index does not end with LevelDB's magic number")
    footer = table[-_FOOTER_BYTES:]
    _, _, at = _handle(footer, 0)  # the meta-index, which TensorFlow leaves empty
    for _, place in _block_entries(table, *_handle(footer, at)[:2]):
        yield from _block_entries(table, *_handle(place, 0)[:2])


def _block_entries(table: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield the (key, value) pairs of one block; a key leaves out what it shares with the last."""
    block = table[offset : offset + size]
    if table[offset + size] != 0:
        raise ValueError("variables.index is compressed; expected an uncompressed table")
    num_restarts = int.from_bytes(block[-4:], "little")
    at, key = 0, b""
    while at < size - 4 - 4 * num_restarts:
        shared, at = _varint(block, at)
        unshared, at = _varint(block, at)
        length, at = _varint(block, at)
        key = key[:shared] + block[at : at + unshared]
        at += unshared + length
        yield key, block[at - length : at]


def _handle(buffer: bytes, at: int) -> tuple[int, int, int]:
    """Return a block's offset and size, and where the next handle begins."""
    offset, at = _varint(buffer, at)
    size, at = _varint(buffer, at)
    return offset, size, at


def _fields(message: int | bytes) -> Iterator[tuple[int, Any]]:
    """Yield the (number, value) pairs of a protobuf message: ints, or bytes for what is nested."""
    if isinstance(message, int):
        raise ValueError("expected a nested protobuf message, got a number")  # noqa: TRY004
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        match tag & 7:
            case 0:
                value, at = _varint(message, at)
                yield tag >> 3, value
            case 2:
                length, at = _varint(message, at)
                at += length
                yield tag >> 3, message[at - length : at]
            case 5:  # the entry's checksum: the archive as a whole is pinned by sha256
                at += 4
            case wire:
                raise ValueError(f"unexpected protobuf wire type {wire} in variables.index")


def _varint(buffer: bytes, at: int) -> tuple[int, int]:
    """Decode a base-128 number; return it and where the next byte is."""
    number = shift = 0
    while True:
        byte = buffer[at]
        number |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:  # noqa: PLR2004 - the top bit says whether another byte follows
            return number, at
