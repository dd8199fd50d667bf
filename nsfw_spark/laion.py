"""Reads LAION's NSFW heads from LAION's own Keras archives.

In: `clip_autokeras_binary_nsfw.zip` (ViT-L/14) or `clip_autokeras_nsfw_b32.zip` (ViT-B/32), as published
in LAION-AI/CLIP-based-NSFW-Detector at commit d6bb8fe. Out: arrays by layer, and the vocabularies that
AutoKeras put before them. How an archive is built `keras_archive` knows; `nsfw_spark.dense_heads` computes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from nsfw_spark.errors import WeightsError
from nsfw_spark.keras_archive import DAMAGED, read_string_constants, read_variables

Vocabularies = dict[int, dict[str, int]]
"""By column of the embedding: token → its index from 1."""

_LAYER: Final = re.compile(r"layer_with_weights-(\d+)/(\w+)/\.ATTRIBUTES/VARIABLE_VALUE")
_LOOKUP: Final = re.compile(r"layer_with_weights-\d+/encoding_layers/(\d+)/token_counts/.*/table-keys")
_TOKENS: Final = re.compile(r"Const_(\d+)")


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
        return _assemble(read_variables(path))
    except DAMAGED as error:
        raise _no_archive(path, error) from error


def read_vocabularies(path: Path) -> Vocabularies:
    """Read the vocabularies of the columns that AutoKeras took for categories.

    The checkpoint names the columns and the graph holds the vocabularies, both in the columns' order.

    Raises:
        WeightsError: The file is not such an archive, or is damaged.
    """
    try:
        names = [_LOOKUP.fullmatch(name) for name in read_variables(path)]
        columns = sorted(int(name[1]) for name in names if name)
        found = {_TOKENS.fullmatch(name): tokens for name, tokens in read_string_constants(path).items()}
        # A constant of one string is the description of the archive's objects.
        lists = sorted((int(name[1]), tokens) for name, tokens in found.items() if name and len(tokens) > 1)
        if not columns or len(columns) != len(lists):
            raise ValueError(f"it has {len(columns)} columns of categories and {len(lists)} vocabularies")
    except DAMAGED as error:
        raise _no_archive(path, error) from error
    return {
        column: {token.decode("latin-1"): index for index, token in enumerate(tokens, start=1)}
        for column, (_, tokens) in zip(columns, lists, strict=True)
    }


def _assemble(variables: Mapping[str, npt.NDArray[np.float32] | None]) -> LaionHead:
    matches = {_LAYER.fullmatch(name): array for name, array in variables.items() if array is not None}
    tensors = {(int(match[1]), match[2]): array for match, array in matches.items() if match}
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


def _no_archive(path: Path, error: Exception) -> WeightsError:
    return WeightsError(
        f"{path} is not one of LAION's Keras archives ({error}); expected a zip that holds "
        "saved_model.pb, variables/variables.index and variables/variables.data-00000-of-00001. "
        "Reinstall nsfw-spark, or mend the card's head.weights."
    )
