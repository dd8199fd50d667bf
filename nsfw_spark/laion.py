"""LAION's NSFW heads for CLIP ViT-L/14 and ViT-B/32: embeddings in, scores out.

In: a safetensors file that `tools/convert_laion_heads.py` made from LAION's Keras archive; the tool's
docstring lists the tensors. Out: the network, as published in LAION-AI/CLIP-based-NSFW-Detector at commit
d6bb8fe. This module does not know model cards: `nsfw_spark.heads` calls `read_head` for a card.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file

from nsfw_spark.errors import DeviceError, WeightsError

Vectors = npt.NDArray[np.float32]

TOLERANCE: Final = 1e-5
"""Largest allowed difference from a golden score. The networks differ from TensorFlow by up to 1.3e-6."""

_GOLDEN: Final = {
    "48e8a7f37f06a63ffd3251ffd48e9f1e31298ec61190531b1605c75d8657d755": "l14",
    "128c52c961d8ac6e9f2aa0618dfb8a42f45a56e3aa3d4257f26602174fcb26c3": "b32",
}
"""Prefix of a head's arrays in golden.npz, by the sha256 of the head's file."""
_EIGEN_BLOCK: Final = 256
"""TensorFlow adds up so many products before it adds the sum to the total. Measured: docs/heads.md."""
_ROWS_AT_ONCE: Final = 64  # their sums fit into the processor's cache


@dataclass(frozen=True)
class LaionHead:
    """The numbers of one head: normalisation, then dense layers."""

    mean: Vectors
    """float32, shape (D,): subtracted from the embedding."""
    variance: Vectors
    """float32, shape (D,): the embedding is divided by its square root."""
    layers: tuple[tuple[Vectors, Vectors], ...]
    """Dense layers in order: kernel float32 (inputs, outputs), bias float32 (outputs,)."""
    vocabularies: dict[int, npt.NDArray[np.float16]]
    """By column of the embedding: float16, shape (V,). The text of entry i has the index i + 1."""


class LaionNetwork:
    """LAION's classifier: normalise, dense layers with ReLU, sigmoid.

    By default it computes what NeMo Curator and LAION's PyTorch port compute. With `is_exact` it equals the
    original TensorFlow model to the last bits of float32: it prints the numbers of a few columns, looks each
    text up in a vocabulary, and normalises the index. One difference is on purpose: AutoKeras reads NaN as 0;
    here an embedding with NaN gets the score NaN.

    Source:
        LAION-AI/CLIP-based-NSFW-Detector, commit d6bb8fe; autokeras' MultiCategoryEncoding.
    """

    def __init__(self, head: LaionHead, *, is_exact: bool = False) -> None:
        self._mean, self._deviation, self._layers = head.mean, np.sqrt(head.variance), head.layers
        self._is_exact = is_exact
        self._indices = {
            column: {f"{number:f}": index for index, number in enumerate(numbers.tolist(), start=1)}
            for column, numbers in head.vocabularies.items()
            if is_exact
        }

    def scores(self, embeddings: Vectors) -> Vectors:
        """Score embeddings, float32, shape (N, D); vectors of another length than 1 saturate the score."""
        hidden = (self._looked_up(embeddings) if self._is_exact else embeddings) - self._mean  # (N, D)
        hidden /= self._deviation  # in place, here and below: new memory takes as long as the arithmetic
        for i, (kernel, bias) in enumerate(self._layers):
            if i:
                np.maximum(hidden, 0, out=hidden)
            # The order of additions shows only in the first layer: hundreds of products, some of them large.
            hidden = _as_tensorflow(hidden, kernel) if self._is_exact and i == 0 else hidden @ kernel
            hidden += bias
        return sigmoid(hidden[:, 0])

    def _looked_up(self, embeddings: Vectors) -> Vectors:
        """Replace the numbers of some columns by the index of their text in a vocabulary, 0 if absent."""
        encoded = embeddings.copy()
        for column, indices in self._indices.items():
            encoded[:, column] = [indices.get(f"{x:f}", 0) for x in embeddings[:, column].tolist()]
        encoded[np.isnan(embeddings).any(axis=1)] = np.nan  # without this, NaN could get a score
        return encoded


def sigmoid(logits: Vectors) -> Vectors:
    """Return the logistic function of float32 logits, any shape, as float32 in [0, 1]."""
    with np.errstate(over="ignore"):  # exp overflows to infinity, and 1 / infinity is 0, as it should be
        return np.asarray(1 / (1 + np.exp(-logits)), np.float32)


def read_head(path: Path) -> LaionHead:
    """Read a head from its safetensors file.

    Raises:
        WeightsError: The file is no such file, or its tensors do not fit together.
    """
    try:
        return _assembled(load_file(path))
    except (LookupError, OSError, SafetensorError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(
            f"{path} is not a safetensors file of one of LAION's heads ({reason}). If it is LAION's Keras "
            f"archive, convert it in a checkout of nsfw-spark: python tools/convert_laion_heads.py {path}. "
            "Otherwise reinstall nsfw-spark, or correct head.weights in the model card"
        ) from error


def check_golden_scores(network: LaionNetwork, sha256: str) -> None:
    """Check that a head whose file has a known sha256 gives the scores that it gave in TensorFlow.

    Raises:
        DeviceError: A score differs by more than `TOLERANCE`.
    """
    prefix = _GOLDEN.get(sha256)
    if prefix is None:
        return
    path = resources.files("nsfw_spark").joinpath("models/laion/golden.npz")
    with path.open("rb") as file, np.load(file) as golden:
        embeddings, expected = golden[f"{prefix}_embeddings"], golden[f"{prefix}_scores"]  # (4, D), (4,)
    scores = network.scores(embeddings)
    if not np.abs(scores - expected).max() <= TOLERANCE:  # NaN included
        raise DeviceError(
            f"LAION's head {prefix} gives {scores.tolist()} on this machine for its golden embeddings; "
            f"expected {expected.tolist()}, to {TOLERANCE:g}. The head's file is the right one, so numpy "
            f"{np.__version__}, or the library that multiplies matrices for it, computes wrong numbers here: "
            "install another version"
        )


def _as_tensorflow(rows: Vectors, kernel: Vectors) -> Vectors:
    """Multiply matrices with the rounding of TensorFlow's library Eigen on x86-64, on any processor.

    Eigen adds one product after the other to a float32 sum and rounds once (a fused multiply-add). After
    each 256 products it adds the sum to the total. numpy can do the same in float64, which holds a product of
    two float32 numbers exactly.
    """
    result = np.zeros((len(rows), kernel.shape[1]), np.float32)
    exact = kernel.astype(np.float64)
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        block_of_rows = rows[start : start + _ROWS_AT_ONCE]
        columns = np.ascontiguousarray(block_of_rows.T, np.float64)[..., None]  # (D, n, 1)
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


def _assembled(tensors: dict[str, npt.NDArray[Any]]) -> LaionHead:
    """Sort tensors into a head; ValueError or KeyError if they do not fit together."""
    num_layers = sum(name.endswith(".kernel") for name in tensors)
    layers = tuple((tensors[f"layers.{i}.kernel"], tensors[f"layers.{i}.bias"]) for i in range(num_layers))
    widths = [tensors["mean"].size, *(bias.size for _, bias in layers)]
    expected: dict[str, tuple[int, ...]] = {"mean": (widths[0],), "variance": (widths[0],)}
    for i in range(num_layers):
        expected |= {f"layers.{i}.kernel": (widths[i], widths[i + 1]), f"layers.{i}.bias": (widths[i + 1],)}
    for name, shape in expected.items():
        tensor = tensors[name]
        if tensor.shape != shape or tensor.dtype != np.float32:
            raise ValueError(f"{name} is {tensor.dtype} {tensor.shape}, expected float32 {shape}")
    if not layers or widths[-1] != 1:
        raise ValueError(f"its {num_layers} layers end in {widths[-1]} outputs, expected 1")
    vocabularies = {
        int(name.removeprefix("vocabulary.")): tensor.astype(np.float16).ravel()
        for name, tensor in tensors.items()
        if name.startswith("vocabulary.")
    }
    if any(column >= widths[0] or column < 0 for column in vocabularies):
        raise ValueError(f"a vocabulary belongs to column {max(vocabularies)} of {widths[0]}")
    return LaionHead(tensors["mean"], tensors["variance"], layers, vocabularies)
