"""Reads numbers and strings out of a Keras archive, with numpy alone: no TensorFlow, no pickle.

In: a zip with a TensorFlow SavedModel. Out: arrays by the names of its variables, and the
strings that its graph holds. What they mean this module does not know; `nsfw_spark.laion` does.

`variables.index` is a LevelDB table of name → place, `variables.data-00000-of-00001` holds the raw
little-endian numbers, `saved_model.pb` is a protobuf message with the graph.

Source:
    TensorFlow's formats: tensorflow/core/util/tensor_bundle and tensorflow/tsl/lib/io/table (the checkpoint);
    tensorflow/core/protobuf/saved_model.proto, meta_graph.proto and tensorflow/core/framework/graph.proto,
    node_def.proto, attr_value.proto, tensor.proto (the graph).
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

DAMAGED: Final = (  # what zipfile, zlib, numpy and the parser below raise on damaged archives
    ArithmeticError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    ValueError,
    zipfile.BadZipFile,
    zlib.error,
)
_INDEX: Final = "variables/variables.index"
_DATA: Final = "variables/variables.data-00000-of-00001"
_GRAPH: Final = "saved_model.pb"
_TABLE_MAGIC: Final = bytes.fromhex("57fb808b247547db")
_FOOTER_BYTES: Final = 48
_FLOAT32: Final = 1  # DataType.DT_FLOAT
_MAX_BYTES: Final = {_INDEX: 1 << 16, _DATA: 16 << 20, _GRAPH: 16 << 20}  # real: 1.5 kB, 0.9 MB, 3.8 MB
_MAX_ENTRIES: Final = 1 << 12  # the real ones hold about 40; blocks may overlap, and so hold more than bytes
_MAX_SHIFT: Final = 63  # bits of the largest number that protobuf and LevelDB know


def read_variables(path: Path) -> dict[str, npt.NDArray[np.float32] | None]:
    """Read the variables of an archive.

    Returns:
        By name; float32 of any shape, None for one of another type.

    Raises:
        One of `DAMAGED`: The file is not such an archive.
    """
    with zipfile.ZipFile(path) as archive:
        return dict(_variables(_member(archive, _INDEX), _member(archive, _DATA)))


def read_string_constants(path: Path) -> dict[str, list[bytes]]:
    """Read the constants of an archive's graph by the name of their node: the strings in each, if any.

    Raises:
        One of `DAMAGED`: The file is not such an archive.
    """
    with zipfile.ZipFile(path) as archive:
        return dict(_string_constants(_member(archive, _GRAPH)))


def _member(archive: zipfile.ZipFile, suffix: str) -> bytes:
    for member in archive.infolist():
        if member.filename.endswith(suffix):
            if member.file_size > _MAX_BYTES[suffix]:
                raise ValueError(f"{suffix} is {member.file_size} bytes, over {_MAX_BYTES[suffix]}")
            return archive.read(member)
    raise KeyError(suffix)


def _variables(index: bytes, data: bytes) -> Iterator[tuple[str, npt.NDArray[np.float32] | None]]:
    for number, (key, value) in enumerate(_table_entries(index)):
        if number == _MAX_ENTRIES:
            raise ValueError(f"variables.index has more than {_MAX_ENTRIES} entries")
        if not key:  # what the table says of itself
            continue
        entry = dict(_fields(value))  # BundleEntryProto: 1 dtype, 2 shape, 4 offset, 5 size
        if entry.get(1) != _FLOAT32:
            yield key.decode(), None
            continue
        offset, size = int(entry.get(4, 0)), int(entry[5])
        dims = [dict(_fields(dim)).get(1, 0) for _, dim in _fields(entry.get(2, b""))]
        if offset + size > len(data):
            raise ValueError(f"{key.decode()} ends at byte {offset + size} of {len(data)}")
        numbers = np.frombuffer(data, "<f4", size // 4, offset)
        yield key.decode(), numbers.reshape([int(dim) for dim in dims])


def _string_constants(saved_model: bytes) -> Iterator[tuple[str, list[bytes]]]:
    # SavedModel.meta_graphs, MetaGraphDef.graph_def, GraphDef.node
    for meta_graph in _all(saved_model, 2):
        for graph in _all(meta_graph, 2):
            for node in _all(graph, 1):
                if next(_all(node, 2), b"") == b"Const":
                    yield next(_all(node, 1)).decode(), _strings(node)


def _strings(node: bytes) -> list[bytes]:
    """Return the strings of a constant; none if it holds numbers."""
    # NodeDef.attr, a map whose only entry with a tensor is `value`; AttrValue.tensor; TensorProto.string_val
    values = [value for entry in _all(node, 5) for value in _all(entry, 2)]
    return [string for value in values for tensor in _all(value, 8) for string in _all(tensor, 8)]


def _all(message: bytes, number: int) -> Iterator[bytes]:
    """Yield the fields of that number that a protobuf message holds, each a nested message or a string."""
    for found, value in _fields(message):
        if found == number and isinstance(value, bytes):
            yield value


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
                if at > len(message):
                    raise ValueError(f"a protobuf field ends at byte {at} of {len(message)}")
                yield tag >> 3, message[at - length : at]
            case 5:  # an entry's checksum, a node's factor: the archive as a whole is pinned by sha256
                at += 4
            case wire:
                raise ValueError(f"unexpected protobuf wire type {wire}")


def _varint(buffer: bytes, at: int) -> tuple[int, int]:
    """Decode a base-128 number; return it and where the next byte is."""
    number = shift = 0
    while True:
        byte = buffer[at]
        number |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if shift > _MAX_SHIFT + 7:
            raise ValueError("a number does not end")
        if byte < 0x80:  # noqa: PLR2004 - the top bit says whether another byte follows
            return number, at
