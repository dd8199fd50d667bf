"""Heads: what an encoder gives → nsfw_score in [0, 1], and the scores of further heads.

A head on the embedding is a network of `nsfw_spark.dense`; a classifier's head picks one of its classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, cast

import numpy as np
import numpy.typing as npt

from nsfw_spark.boxes import best_boxes
from nsfw_spark.dense import DenseNetwork, LaionNetwork
from nsfw_spark.encoders import Encoded
from nsfw_spark.encoders.encoder import library
from nsfw_spark.errors import ConfigError
from nsfw_spark.golden import check_golden_scores
from nsfw_spark.laion import read_head, read_vocabularies
from nsfw_spark.mlp import MlpNetwork, read_mlp
from nsfw_spark.model_card import HeadCard, ModelCard, head_part
from nsfw_spark.weights import WeightsFile


@dataclass(frozen=True)
class Scored:
    """Scores of N images."""

    nsfw_scores: npt.NDArray[np.float32]
    """float32, shape (N,), in [0, 1], 1 = NSFW; NaN where the model gave no number."""
    class_scores: npt.NDArray[np.float32] | None = None
    """float32, shape (N, C), one column a class of the card; None where the model has no classes."""
    other_scores: npt.NDArray[np.float32] | None = None
    """float32, shape (N, H), one column a head of the card's `other_heads`; None where it has none."""


class Head(Protocol):
    """A loaded classifier."""

    def score(self, encoded: Encoded) -> Scored:
        """Score N images."""


def load_heads(card: ModelCard, weights: Mapping[str, WeightsFile]) -> Head:
    """Build the heads that the card names.

    Args:
        card: The model.
        weights: The file of each head that has one, by part: see `ModelCard.weights_sources`.

    Raises:
        WeightsError: A file cannot be read, or does not hold the head.
        ConfigError: A head expects embeddings of another length than the encoder's.
        DeviceError: One of LAION's heads does not give its golden scores on this machine.
    """
    networks = {
        name: _network(card, name, weights.get(head_part(name)))
        for name, head in card.heads.items()
        if head.scores_embeddings
    }
    nsfw = DenseHead(networks["nsfw"]) if card.head.scores_embeddings else _classifier(card)
    others = [networks[name] for name in card.other_heads]
    return SeveralHeads(nsfw, others) if others else nsfw


class DenseHead:
    """Scores the embedding with a network."""

    def __init__(self, network: DenseNetwork) -> None:
        self._network = network

    def score(self, encoded: Encoded) -> Scored:
        """Score N embeddings of unit length."""
        return Scored(self._network.scores(_embeddings(encoded)))


class ClassHead:
    """Picks one class's probability; where classes are levels, that of the level or a higher one."""

    def __init__(self, card: HeadCard) -> None:
        self._index = card.classes.index(card.scored[0])
        self._is_cumulative = card.kind == "cumulative"

    def score(self, encoded: Encoded) -> Scored:
        """Score N rows of class probabilities."""
        classes = encoded.probabilities
        assert classes is not None  # noqa: S101 - the card's validation saw to it
        if self._is_cumulative:
            classes = _that_or_higher(classes)
        return Scored(classes[:, self._index], classes)


class BoxHead:
    """Of each class the score of its best box; of some classes the best is the image's."""

    def __init__(self, card: HeadCard) -> None:
        self._indices = [card.classes.index(name) for name in card.scored]

    def score(self, encoded: Encoded) -> Scored:
        """Score the boxes of N images."""
        assert encoded.boxes is not None  # noqa: S101 - the card's validation saw to it
        classes = best_boxes(encoded.boxes)  # (N, C)
        return Scored(classes[:, self._indices].max(axis=1), classes)


class SeveralHeads:
    """The head that decides, and other networks on the same embedding."""

    def __init__(self, nsfw: Head, others: Sequence[DenseNetwork]) -> None:
        self._nsfw, self._others = nsfw, others

    def score(self, encoded: Encoded) -> Scored:
        """Score N images with all heads."""
        columns = [network.scores(_embeddings(encoded)) for network in self._others]
        return replace(self._nsfw.score(encoded), other_scores=np.stack(columns, axis=1))


def _classifier(card: ModelCard) -> Head:
    if card.head.library == "boxes":
        library("cv2", card.encoder, "nudenet")  # so that it is not missed at the first image only
        return BoxHead(card.head)
    return ClassHead(card.head)


def _network(card: ModelCard, name: str, weights: WeightsFile | None) -> DenseNetwork:
    """Load a head that scores embeddings: the one of that name in the card."""
    head, dimension = card.heads[name], card.encoder.embedding_dim
    field = "the head" if name == "nsfw" else f"other_heads.{name}"
    if head.library == "mlp" and weights is not None:
        output = cast("Literal['sigmoid', 'clamp', 'linear']", head.score)  # by the card's validation
        return MlpNetwork(read_mlp(weights, dimension or 0, head.layers), output)
    if weights is None or weights.path is None:
        raise ConfigError(
            f"model card {card.name}: {field} of library {head.library} needs the file of its weights"
        )
    laion = read_head(weights.path)
    if laion.mean.shape != (dimension,):
        raise ConfigError(
            f"model card {card.name}: {field} expects embeddings of {laion.mean.size} numbers, "
            f"encoder.embedding_dim is {dimension}"
        )
    is_exact = head.head_encoding == "exact"
    network = LaionNetwork(laion, read_vocabularies(weights.path) if is_exact else None)
    check_golden_scores(network, weights.sha256)
    return network


def _embeddings(encoded: Encoded) -> npt.NDArray[np.float32]:
    assert encoded.embeddings is not None  # noqa: S101 - the card's validation saw to it
    return encoded.embeddings


def _that_or_higher(probabilities: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Sum each level's probability with those of the levels after it; the first level keeps its own.

    Source:
        `predict_proba` of Freepik's nsfw-image-detector 0.1.2.
    """
    levels = np.cumsum(probabilities[:, ::-1], axis=1)[:, ::-1]  # (N, C)
    levels = np.minimum(levels, 1)  # rounding may end a little above, and no score is; NaN stays NaN
    levels[:, 0] = probabilities[:, 0]
    return levels
