"""Heads: what an encoder gives → nsfw_score in [0, 1].

Always float32: a head's normalisation holds variances up to 2,009,215, and float16 ends at 65,504.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from nsfw_spark.encoders import Encoded
from nsfw_spark.errors import ConfigError
from nsfw_spark.laion import LaionHead, read_head
from nsfw_spark.model_card import HeadCard, ModelCard
from nsfw_spark.weights import WeightsFile


@dataclass(frozen=True)
class Scored:
    """Scores of N images."""

    nsfw_scores: npt.NDArray[np.float32]
    """float32, shape (N,), in [0, 1], 1 = NSFW; NaN where the model gave no number."""
    class_scores: npt.NDArray[np.float32] | None = None
    """float32, shape (N, C), one column a class of the card; None where the model has no classes."""


class Head(Protocol):
    """A loaded classifier."""

    def score(self, encoded: Encoded) -> Scored:
        """Score N images."""


def load_head(card: ModelCard, weights: WeightsFile | None) -> Head:
    """Build the head that the card names.

    Args:
        card: The model.
        weights: The head's file; None where the card has none.

    Raises:
        WeightsError: The file cannot be read.
        ConfigError: The head expects embeddings of another length than the encoder's.
    """
    if card.head.library == "classes":
        return ClassHead(card.head)
    if weights is None or weights.path is None:
        raise ConfigError(f"model card {card.name}: a laion head needs the file of its weights")
    head = read_head(weights.path)
    if head.mean.shape != (card.encoder.embedding_dim,):
        raise ConfigError(
            f"model card {card.name}: the head expects embeddings of {head.mean.size} numbers, "
            f"encoder.embedding_dim is {card.encoder.embedding_dim}"
        )
    return DenseHead(head)


class DenseHead:
    """LAION's classifier: normalise, dense layers with ReLU, sigmoid.

    Source:
        LAION-AI/CLIP-based-NSFW-Detector, commit d6bb8fe. As NeMo Curator and LAION's PyTorch port do,
        this leaves out the vocabulary lookup of a few columns (AutoKeras' categorical encoding), which
        moves scores of float32 embeddings by at most 3.5e-5 (L/14) and 1.4e-4 (B/32).
    """

    def __init__(self, head: LaionHead) -> None:
        self._mean = head.mean
        self._deviation = np.sqrt(head.variance)
        self._layers = head.layers

    def score(self, encoded: Encoded) -> Scored:
        """Score N embeddings of unit length; others saturate the score."""
        assert encoded.embeddings is not None  # noqa: S101 - the card's validation saw to it
        hidden = encoded.embeddings - self._mean  # (N, D)
        hidden /= self._deviation  # in place, here and below: new memory takes as long as the arithmetic
        for kernel, bias in self._layers[:-1]:
            hidden = hidden @ kernel
            hidden += bias
            np.maximum(hidden, 0, out=hidden)
        kernel, bias = self._layers[-1]
        logits = (hidden @ kernel + bias)[:, 0]  # (N,)
        with np.errstate(over="ignore"):  # exp overflows to infinity, and 1 / infinity is the 0 it should be
            return Scored(np.asarray(1 / (1 + np.exp(-logits)), np.float32))


class ClassHead:
    """Picks one class's probability."""

    def __init__(self, card: HeadCard) -> None:
        self._index = card.classes.index(card.score.removeprefix("probability:"))

    def score(self, encoded: Encoded) -> Scored:
        """Score N rows of class probabilities."""
        assert encoded.probabilities is not None  # noqa: S101 - the card's validation saw to it
        return Scored(encoded.probabilities[:, self._index], encoded.probabilities)
