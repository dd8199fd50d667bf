"""Converts LAION's two published NSFW heads from Keras archives to safetensors.

    python tools/convert_laion_heads.py clip_autokeras_binary_nsfw.zip --output nsfw_spark/models/laion

In: one of the two zip archives of https://github.com/LAION-AI/CLIP-based-NSFW-Detector, commit d6bb8fe. The
tool knows them by their sha256 and refuses every other file, so the parser below trusts its input. Out: a
safetensors file of the same name, with the archive's numbers unchanged:

- `mean` and `variance`, float32 (D,): normalisation of the embedding;
- `layers.N.kernel`, float32 (inputs, outputs), and `layers.N.bias`, float32 (outputs,): dense layer N;
- `vocabulary.COLUMN`, float16 (V,): entry i is the number whose text with six decimals has the index i + 1.

The tool needs numpy and safetensors, but neither TensorFlow nor pickle.

Source:
    TensorFlow's formats: tensorflow/core/util/tensor_bundle and tensorflow/tsl/lib/io/table (the checkpoint);
    tensorflow/core/protobuf/saved_model.proto, meta_graph.proto and tensorflow/core/framework/graph.proto,
    node_def.proto, attr_value.proto, tensor.proto (the graph).
"""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

REPOSITORY: Final = "LAION-AI/CLIP-based-NSFW-Detector"
ARCHIVES: Final = {
    "905520bb0336accc73ee282c605d926aef90cf14248889d44b9cee50eef71f8a": "CLIP ViT-L/14",
    "78715ab9d64485167e8c9ade3b8e6761a17a16c24d114bd47431ac1dab46462b": "CLIP ViT-B/32",
}
"""The encoder of each archive's embeddings, by the archive's sha256."""

_FLOAT32: Final = 1  # DataType.DT_FLOAT
_FOOTER_BYTES: Final = 48
_LAYER: Final = re.compile(r"layer_with_weights-(\d+)/(\w+)/\.ATTRIBUTES/VARIABLE_VALUE")
_LOOKUP: Final = re.compile(r"layer_with_weights-\d+/encoding_layers/(\d+)/token_counts/.*/table-keys")
_TOKENS: Final = re.compile(r"Const_(\d+)")

Variables = dict[str, npt.NDArray[np.float32] | None]
"""The checkpoint's variables by name; None if the type is not float32."""
Tensors = dict[str, npt.NDArray[Any]]


def convert(archive: Path, directory: Path) -> Path:
    """Write the safetensors file of an archive into a directory.

    Raises:
        ValueError: The file is not one of LAION's two archives.
    """
    sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
    if sha256 not in ARCHIVES:
        raise ValueError(
            f"{archive} has the sha256 {sha256}; expected one of LAION's archives, {' or '.join(ARCHIVES)}. "
            f"Download it again from https://github.com/{REPOSITORY}, commit d6bb8fe"
        )
    with zipfile.ZipFile(archive) as file:
        members = {Path(name).name: name for name in file.namelist()}
        index, data, graph = (
            file.read(members[name])
            for name in ("variables.index", "variables.data-00000-of-00001", "saved_model.pb")
        )
    variables = dict(_variables(index, data))
    source = (
        f"LAION-AI/CLIP-based-NSFW-Detector, commit d6bb8fe, {archive.name}, sha256 {sha256}; licence MIT"
    )
    target = directory / f"{archive.stem}.safetensors"
    # One entry only: safetensors writes several in an order that changes from process to process.
    target.write_bytes(save(_network(variables) | _vocabularies(variables, graph), {"source": source}))
    return target


def _network(variables: Variables) -> Tensors:
    """Return the normalisation and the dense layers, numbered from 0."""
    matches = {_LAYER.fullmatch(name): array for name, array in variables.items() if array is not None}
    found = {(int(match[1]), match[2]): array for match, array in matches.items() if match}
    tensors = {name: array for (_, name), array in found.items() if name in {"mean", "variance"}}
    layers = sorted(layer for layer, name in found if name == "kernel")
    for number, layer in enumerate(layers):
        tensors |= {f"layers.{number}.{name}": found[layer, name] for name in ("kernel", "bias")}
    return tensors


def _vocabularies(variables: Variables, graph: bytes) -> Tensors:
    """Return the vocabularies of the columns that AutoKeras took for categories.

    The checkpoint names the columns and the graph holds the vocabularies, both in the columns' order.
    """
    columns = sorted(int(match[1]) for name in variables if (match := _LOOKUP.fullmatch(name)))
    constants = {_TOKENS.fullmatch(name): tokens for name, tokens in _string_constants(graph)}
    # A constant of one string describes the archive's objects.
    lists = sorted((int(name[1]), tokens) for name, tokens in constants.items() if name and len(tokens) > 1)
    return {
        f"vocabulary.{column}": _numbers([token.decode() for token in tokens])
        for column, (_, tokens) in zip(columns, lists, strict=True)
    }


def _numbers(tokens: list[str]) -> npt.NDArray[np.float16]:
    """Return the float16 numbers whose texts are the tokens: LAION trained on float16 embeddings."""
    numbers = np.array(tokens, np.float64).astype(np.float16)
    if [f"{number:f}" for number in numbers.tolist()] != tokens:
        raise ValueError("a vocabulary holds a text that no float16 number has")
    return numbers


def _variables(index: bytes, data: bytes) -> Iterator[tuple[str, npt.NDArray[np.float32] | None]]:
    """Yield the name and numbers of each variable of a TensorFlow checkpoint."""
    for key, value in _table_entries(index):
        if not key:  # the table's own header
            continue
        entry = dict(_fields(value))  # BundleEntryProto: 1 dtype, 2 shape, 4 offset, 5 size
        if entry.get(1) != _FLOAT32:
            yield key.decode(), None
            continue
        dims = [dict(_fields(dim)).get(1, 0) for _, dim in _fields(entry.get(2, b""))]
        yield key.decode(), np.frombuffer(data, "<f4", entry[5] // 4, entry.get(4, 0)).reshape(dims)


def _string_constants(saved_model: bytes) -> Iterator[tuple[str, list[bytes]]]:
    """Yield the name and the strings of each constant of a graph; no strings if it holds numbers."""
    # SavedModel.meta_graphs, MetaGraphDef.graph_def, GraphDef.node
    for node in _nested(saved_model, 2, 2, 1):
        if next(_nested(node, 2), b"") == b"Const":
            # NodeDef.attr, a map whose only entry with a tensor is `value`; AttrValue.tensor, string_val
            yield next(_nested(node, 1)).decode(), list(_nested(node, 5, 2, 8, 8))


def _nested(message: bytes, number: int, *below: int) -> Iterator[bytes]:
    """Yield the strings or messages at a path of field numbers in a protobuf message."""
    for field, value in _fields(message):
        if field == number and isinstance(value, bytes):
            yield from _nested(value, *below) if below else (value,)


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Yield the (number, value) pairs of a protobuf message; a nested message stays bytes."""
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
            case 5:  # a checksum, or a float: not needed
                at += 4
            case wire:
                raise ValueError(f"unexpected protobuf wire type {wire}")


def _table_entries(table: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the (key, value) pairs of an uncompressed LevelDB table."""
    footer = table[-_FOOTER_BYTES:]
    _, _, at = _handle(footer, 0)  # of the meta-index, which TensorFlow leaves empty
    for _, handle in _block_entries(table, *_handle(footer, at)[:2]):
        yield from _block_entries(table, *_handle(handle, 0)[:2])


def _block_entries(table: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield the (key, value) pairs of one block; a key omits the prefix that it shares with the last one."""
    block = table[offset : offset + size]
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
    """Return a block's offset and size, and the position of the next handle."""
    offset, at = _varint(buffer, at)
    size, at = _varint(buffer, at)
    return offset, size, at


def _varint(buffer: bytes, at: int) -> tuple[int, int]:
    """Decode a base-128 number; return it and the position of the next byte."""
    number = shift = 0
    while True:
        byte = buffer[at]
        number |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:  # the top bit says whether another byte follows
            return number, at


def main() -> None:
    """Convert the archives named on the command line."""
    parser = argparse.ArgumentParser(description="Convert LAION's Keras archives to safetensors.")
    parser.add_argument("archives", nargs="+", type=Path, metavar="FILE", help="one of LAION's zip archives")
    parser.add_argument("--output", type=Path, help="directory for the safetensors file; default: FILE's own")
    options = parser.parse_args()
    for archive in options.archives:
        try:
            print(convert(archive, options.output or archive.parent))
        except (OSError, ValueError) as error:
            sys.exit(str(error))


if __name__ == "__main__":
    main()
