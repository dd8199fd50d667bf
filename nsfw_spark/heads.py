"""Heads: an encoder's output for a batch in, scores out.

In: `Encoded`, that is embeddings, class probabilities or boxes. Out: `Predictions`, the one type for what a
model says of a batch. `load_heads` builds the heads that a model card names. The networks are in
`nsfw_spark.laion` and `nsfw_spark.perceptron`. This module knows neither images nor devices; all of it is
numpy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, Protocol, cast

import numpy as np
import numpy.typing as npt

from nsfw_spark.encoders import Encoded
from nsfw_spark.errors import ConfigError
from nsfw_spark.laion import LaionNetwork, Vectors, check_golden_scores, read_head
from nsfw_spark.model_card import HeadCard, ModelCard, head_part
from nsfw_spark.perceptron import MlpNetwork, read_mlp
from nsfw_spark.weights import WeightsFile

_LEAST_SCORE: Final = 0.25  # exclusive
_MOST_OVERLAP: Final = np.float32(0.45)
"""Area of the intersection divided by that of the union. If two boxes overlap more, the better one stays."""


@dataclass(frozen=True)
class Predictions:
    """Scores of N images, and their cost."""

    nsfw_scores: npt.NDArray[np.float32]
    """float32, shape (N,), in [0, 1], 1 = NSFW; NaN or a number beyond if the model gave no score."""
    class_scores: npt.NDArray[np.float32] | None = None
    """float32, shape (N, C), one column for each class of the card; None if the model has no classes."""
    embeddings: npt.NDArray[np.float32] | None = None
    """float32, shape (N, D), each of L2 norm 1; None if the model has none."""
    encode_seconds: float = 0.0
    """Seconds that the device worked on these images."""
    batch_slots: float = 0.0
    """Capacity of the forward passes, in images; N if the batches were full."""
    wait_seconds: float = 0.0
    """Seconds that the task waited for the model."""
    other_scores: npt.NDArray[np.float32] | None = None
    """float32, shape (N, H), one column for each of the card's `other_heads`; None if it has none."""

    def __len__(self) -> int:
        return len(self.nsfw_scores)

    def rows(self, start: int, stop: int) -> Predictions:
        """Return the predictions of images `start` to `stop`, with their share of the cost."""
        share = (stop - start) / len(self)
        return Predictions(
            self.nsfw_scores[start:stop],
            None if self.class_scores is None else self.class_scores[start:stop],
            None if self.embeddings is None else self.embeddings[start:stop],
            self.encode_seconds * share,
            self.batch_slots * share,
            self.wait_seconds * share,
            None if self.other_scores is None else self.other_scores[start:stop],
        )


class Head(Protocol):
    """A loaded classifier."""

    def score(self, encoded: Encoded) -> Predictions:
        """Score N images."""


class DenseNetwork(Protocol):
    """A loaded network that scores embeddings."""

    def scores(self, embeddings: Vectors) -> Vectors:
        """Return float32, shape (N,), for embeddings, float32, shape (N, D), each of L2 norm 1."""


def load_heads(card: ModelCard, weights: Mapping[str, WeightsFile]) -> Head:
    """Load the heads that the card names.

    `weights` has the file of each head by part, as in `ModelCard.weights_sources`.

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
    if "nsfw" in networks:
        nsfw: Head = DenseHead(networks["nsfw"])
    else:
        nsfw = BoxHead(card.head) if card.head.library == "boxes" else ClassHead(card.head)
    others = [networks[name] for name in card.other_heads]
    return SeveralHeads(nsfw, others) if others else nsfw


class DenseHead:
    """Scores the embedding with a network."""

    def __init__(self, network: DenseNetwork) -> None:
        self._network = network

    def score(self, encoded: Encoded) -> Predictions:
        """Score N embeddings."""
        return Predictions(self._network.scores(_embeddings(encoded)))


class ClassHead:
    """Picks one class's probability. If the classes are levels, it adds those of the higher levels."""

    def __init__(self, card: HeadCard) -> None:
        self._index = card.classes.index(card.scored[0])
        self._is_cumulative = card.kind == "cumulative"

    def score(self, encoded: Encoded) -> Predictions:
        """Score N rows of class probabilities."""
        classes = encoded.probabilities
        assert classes is not None  # noqa: S101 - the card's validation guarantees it
        if self._is_cumulative:
            classes = _that_or_higher(classes)
        return Predictions(classes[:, self._index], classes)


class BoxHead:
    """Scores each class by its best box, and the image by the highest of the flagged classes."""

    def __init__(self, card: HeadCard) -> None:
        self._indices = [card.classes.index(name) for name in card.scored]

    def score(self, encoded: Encoded) -> Predictions:
        """Score the boxes of N images."""
        assert encoded.boxes is not None  # noqa: S101 - the card's validation guarantees it
        classes = best_boxes(encoded.boxes)  # (N, C)
        return Predictions(classes[:, self._indices].max(axis=1), classes)


class SeveralHeads:
    """Scores with the head that decides, and with other networks on the same embedding."""

    def __init__(self, nsfw: Head, others: Sequence[DenseNetwork]) -> None:
        self._nsfw, self._others = nsfw, others

    def score(self, encoded: Encoded) -> Predictions:
        """Score N images with all heads."""
        columns = [network.scores(_embeddings(encoded)) for network in self._others]
        return replace(self._nsfw.score(encoded), other_scores=np.stack(columns, axis=1))


def _network(card: ModelCard, name: str, weights: WeightsFile | None) -> DenseNetwork:
    """Load the head of that name, which scores embeddings."""
    head, dimension = card.heads[name], card.encoder.embedding_dim
    field = "the head" if name == "nsfw" else f"other_heads.{name}"
    if head.library == "mlp" and weights is not None:
        output = cast("Literal['sigmoid', 'clamp', 'linear']", head.score)  # the card's validation checked it
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
    network = LaionNetwork(laion, is_exact=head.head_encoding == "exact")
    check_golden_scores(network, weights.sha256)
    return network


def _embeddings(encoded: Encoded) -> npt.NDArray[np.float32]:
    assert encoded.embeddings is not None  # noqa: S101 - the card's validation guarantees it
    return encoded.embeddings


def _that_or_higher(probabilities: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Add to each level's probability those of the levels after it; the first level keeps its own.

    Source:
        `predict_proba` of Freepik's nsfw-image-detector 0.1.2.
    """
    levels = np.cumsum(probabilities[:, ::-1], axis=1)[:, ::-1]  # (N, C)
    levels = np.minimum(levels, 1)  # rounding may end a little above 1, and no score may; NaN stays NaN
    levels[:, 0] = probabilities[:, 0]
    return levels


def best_boxes(boxes: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the score of the best box of each class.

    As in NudeNet, a box counts for its best class only, and of overlapping boxes the best one stays, whatever
    their classes. NudeNet cuts boxes at the image's margin first. This function does not, because the margin
    is not known here; it matters only for boxes that reach into the padding.

    Args:
        boxes: float32, shape (N, 4 + C, A), as in `Encoded.boxes`.

    Returns:
        float32, shape (N, C), each 0 or above 0.25; NaN for an image with a box that is not finite.

    Source:
        `_postprocess` of nudenet 3.4.2, with `NMSBoxes` of OpenCV 5.0.
    """
    return np.stack([_best_of_image(image) for image in boxes])


def _best_of_image(boxes: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    best = np.zeros(len(boxes) - 4, np.float32)  # (C,)
    if not np.isfinite(boxes).all():
        return np.full_like(best, np.nan)  # no box would count as safe
    candidates = np.flatnonzero(boxes[4:].max(axis=0) > _LEAST_SCORE)
    scores, classes = boxes[4:, candidates].max(axis=0), boxes[4:, candidates].argmax(axis=0)
    centre, extent = boxes[:2, candidates], boxes[2:4, candidates]
    rectangles = np.concatenate([centre - extent / 2, extent]).astype(np.float64)  # left, top, width, height
    rest = np.argsort(-scores, kind="stable")
    while rest.size:  # non-maximum suppression: keep the best box, drop those that overlap it
        first, rest = rest[0], rest[1:]
        best[classes[first]] = max(best[classes[first]], scores[first])
        rest = rest[_overlaps(rectangles[:, [first]], rectangles[:, rest]) <= _MOST_OVERLAP]
    return best


def _overlaps(box: npt.NDArray[np.float64], others: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Divide intersection by union, of one box (4, 1) with each of others (4, A); round as OpenCV does."""
    is_first = box[:2] < others[:2]
    before, after = np.where(is_first, box[2:], others[2:]), np.where(is_first, others[2:], box[2:])
    shared = np.minimum(before - np.abs(others[:2] - box[:2]), after)  # (2, A): width and height
    intersection = np.where((shared > 0).all(axis=0), shared[0] * shared[1], 0)
    areas = box[2] * box[3] + others[2] * others[3]
    is_empty = areas <= np.finfo(np.float64).eps
    distance = 1 - intersection / np.where(is_empty, 1, areas - intersection)
    return 1 - np.where(is_empty, 0, distance).astype(np.float32)
