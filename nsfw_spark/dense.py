"""Dense networks on embeddings, in numpy and float32: embeddings in, one number each out.

Float32 whatever the encoder computes in: LAION's normalisation holds variances up to 2,009,215, and float16
ends at 65,504.
"""

from __future__ import annotations

from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from nsfw_spark.laion import LaionHead, Vocabularies

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
