"""Reads LAION's NSFW heads from LAION's own Keras archives.

In: `clip_autokeras_binary_nsfw.zip` (ViT-L/14) or `clip_autokeras_nsfw_b32.zip` (ViT-B/32), as published
in LAION-AI/CLIP-based-NSFW-Detector at commit d6bb8fe. Out: arrays by layer, and the vocabularies that
AutoKeras put before them. How an archive is built `keras_archive` knows; `nsfw_spark.dense_heads` computes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from nsfw_spark.errors import DeviceError, WeightsError
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


Vectors = npt.NDArray[np.float32]

_EIGEN_BLOCK: Final = 256
"""Products that TensorFlow adds up before it adds the sum to the others. Found by trying: docs/heads.md."""
_ROWS_AT_ONCE: Final = 64  # whose sums stay in the processor's cache


class DenseNetwork(Protocol):
    """A loaded network."""

    def scores(self, embeddings: Vectors) -> Vectors:
        """Return float32, shape (N,), of embeddings, float32, shape (N, D), of unit length."""


class LaionNetwork:
    """LAION's classifier: normalise, dense layers with ReLU, sigmoid.

    Without vocabularies it is what NeMo Curator and LAION's PyTorch port compute. With them it is the
    original TensorFlow model, to the last bits of float32: a few columns are printed and looked up, and what
    is then normalised is the index. One thing differs on purpose: NaN, which is 0 to AutoKeras, stays NaN.

    Source:
        LAION-AI/CLIP-based-NSFW-Detector, commit d6bb8fe; autokeras' MultiCategoryEncoding.
    """

    def __init__(self, head: LaionHead, vocabularies: Vocabularies | None = None) -> None:
        self._mean = head.mean
        self._deviation = np.sqrt(head.variance)
        self._layers = head.layers
        self._vocabularies = vocabularies

    def scores(self, embeddings: Vectors) -> Vectors:
        """See `DenseNetwork`. Vectors that are not of unit length saturate the score."""
        is_exact = self._vocabularies is not None
        hidden = (self._looked_up(embeddings) if is_exact else embeddings) - self._mean  # (N, D)
        hidden /= self._deviation  # in place, here and below: new memory takes as long as the arithmetic
        for i, (kernel, bias) in enumerate(self._layers):
            if i:
                np.maximum(hidden, 0, out=hidden)
            # Sums over hundreds of products, some of them large: only there does the order show.
            hidden = _as_tensorflow(hidden, kernel) if is_exact and i == 0 else hidden @ kernel
            hidden += bias
        return sigmoid(hidden[:, 0])

    def _looked_up(self, embeddings: Vectors) -> Vectors:
        """Replace the numbers of some columns by the index of their text in a vocabulary, 0 where absent."""
        encoded = embeddings.copy()
        for column, vocabulary in (self._vocabularies or {}).items():
            encoded[:, column] = [vocabulary.get(f"{x:f}", 0) for x in embeddings[:, column].tolist()]
        encoded[np.isnan(embeddings).any(axis=1)] = np.nan  # else it could get a score
        return encoded


def sigmoid(logits: Vectors) -> Vectors:
    """Return the logistic function of float32 logits, any shape, as float32 in [0, 1]."""
    with np.errstate(over="ignore"):  # exp overflows to infinity, and 1 / infinity is the 0 it should be
        return np.asarray(1 / (1 + np.exp(-logits)), np.float32)


def _as_tensorflow(rows: Vectors, kernel: Vectors) -> Vectors:
    """Multiply matrices, rounding as TensorFlow's library Eigen does on x86-64, whatever processor this is.

    One product after the other is added to a float32, rounded once (a fused multiply-add), and after each 256
    the sum goes to the total. In float64, which holds such a product as it is, that can be done in numpy.
    """
    result = np.zeros((len(rows), kernel.shape[1]), np.float32)
    exact = kernel.astype(np.float64)
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        columns = np.ascontiguousarray(rows[start : start + _ROWS_AT_ONCE].T, np.float64)[
            ..., None
        ]  # (D, n, 1)
        total = result[start : start + _ROWS_AT_ONCE]
        partial, product = np.empty_like(total), np.empty(total.shape)
        for block in range(0, len(kernel), _EIGEN_BLOCK):
            partial[:] = 0
            for i in range(block, min(block + _EIGEN_BLOCK, len(kernel))):
                np.multiply(columns[i], exact[i], out=product)
                product += partial
                partial[:] = product
            total += partial
    return result


TOLERANCE: Final = 1e-5
"""The networks differ from TensorFlow's by up to 1.3e-6 on these."""

_PREFIXES: Final = {
    "905520bb0336accc73ee282c605d926aef90cf14248889d44b9cee50eef71f8a": "l14",
    "78715ab9d64485167e8c9ade3b8e6761a17a16c24d114bd47431ac1dab46462b": "b32",
}
"""By sha256 of the archive, the beginning of the names in the file."""


def check_golden_scores(network: DenseNetwork, sha256: str) -> None:
    """Make sure that a head that LAION published gives the scores that it gave there.

    Args:
        network: The head, loaded.
        sha256: Of its archive. Of archives that are not known, nothing is.

    Raises:
        DeviceError: It gives others.
    """
    prefix = _PREFIXES.get(sha256)
    if prefix is None:
        return
    with (
        resources.files("nsfw_spark").joinpath("models/laion/golden.npz").open("rb") as file,
        np.load(file) as golden,
    ):
        embeddings, expected = golden[f"{prefix}_embeddings"], golden[f"{prefix}_scores"]  # (4, D), (4,)
    found = network.scores(embeddings)
    if not np.abs(found - expected).max() <= TOLERANCE:  # NaN included
        raise DeviceError(
            f"LAION's head {prefix} gives {found.tolist()} on this machine for its golden embeddings; "
            f"expected {expected.tolist()}, to {TOLERANCE:g}. Its file is the right one, so that numpy "
            f"{np.__version__}, or the library that multiplies matrices for it, computes wrongly here: "
            "install another version"
        )
