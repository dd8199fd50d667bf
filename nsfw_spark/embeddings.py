"""Scores embeddings that were computed elsewhere: a model without its encoder.

In: a model card and vectors. Out: the scores of the card's heads. No encoder and no library of one is loaded.
Nobody can check whether the card's encoder made the vectors; so the fingerprint is that of the heads alone,
and differs from that of every whole model.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from nsfw_spark.cards import built_in_models, load_card
from nsfw_spark.encoders import Encoded
from nsfw_spark.errors import ConfigError
from nsfw_spark.heads import Head, Predictions, load_heads
from nsfw_spark.model_card import ModelCard, head_part
from nsfw_spark.scorer import Timings
from nsfw_spark.weights import WeightsFile, locate_weights

_TOLERANCE: Final = 1e-3
"""Difference of a length from 1: float16 causes less, and it changes no score noticeably."""


class EmbeddingsScorer:
    """The heads of a model, ready to score embeddings. Make one with `load_embeddings_scorer`.

    Attributes:
        card: The model's card.
        fingerprint: Hash of the heads alone.
        dimension: D.
        timings: Seconds spent since the last `take_timings`.
    """

    def __init__(self, card: ModelCard, head: Head, fingerprint: str) -> None:
        assert card.encoder.embedding_dim is not None  # noqa: S101 - the card's validation saw to it
        self.card, self.fingerprint, self.dimension = card, fingerprint, card.encoder.embedding_dim
        self.timings = Timings()
        self._head = head

    def score(self, vectors: npt.NDArray[np.float32]) -> Predictions:
        """Score vectors, float32, shape (N, D), of any length except zero.

        Vectors of unit length are scored as they are, the others are normalised. `vectors` is not changed.

        Returns:
            Scores, NaN for a vector without direction; and the vectors of unit length that were scored.
        """
        started = time.perf_counter()
        units, num_normalized = _unit_length(vectors)
        with np.errstate(invalid="ignore"):  # a vector without direction becomes NaN
            predictions = replace(self._head.score(Encoded(units)), embeddings=units)
        self.timings.normalized += num_normalized
        self.timings.encode_seconds += time.perf_counter() - started
        return predictions

    def take_timings(self) -> Timings:
        """Return the seconds spent since the last call."""
        timings, self.timings = self.timings, Timings()
        return timings


def load_embeddings_scorer(card: ModelCard, model_dir: Path | None = None) -> EmbeddingsScorer:
    """Load a card's heads into this process.

    Args:
        card: The model whose encoder made the embeddings.
        model_dir: Directory with weights; else the Hugging Face cache, else they are downloaded.

    Raises:
        ConfigError: The model scores no embeddings.
        WeightsError: A head's weights are absent, or are not the ones that the card pins.
    """
    weights = _heads_weights(card, model_dir)
    return EmbeddingsScorer(card, load_heads(card, weights), _fingerprint(card, weights))


def head_fingerprint(card: ModelCard, model_dir: Path | None = None) -> str:
    """Return the fingerprint of a card's heads: 16 hexadecimal digits.

    Raises:
        ConfigError, WeightsError: See `load_embeddings_scorer`.
    """
    return _fingerprint(card, _heads_weights(card, model_dir))


def _heads_weights(card: ModelCard, model_dir: Path | None) -> dict[str, WeightsFile]:
    if not card.head.scores_embeddings:
        able = [name for name in built_in_models() if load_card(name).head.scores_embeddings]
        raise ConfigError(
            f"the model {card.name} has no head for embeddings: its encoder ends in class probabilities. "
            f"Expected a model whose card says `head: library: laion` or `mlp`, such as {', '.join(able)}"
        )
    return locate_weights(card, model_dir, download=True, parts=[head_part(name) for name in card.heads])


def _fingerprint(card: ModelCard, weights: Mapping[str, WeightsFile]) -> str:
    decisive = {
        "input": "embeddings",  # so that no whole model has the same fingerprint
        "heads": card.decisive_of_heads(),
        "weights": {part: file.sha256 for part, file in weights.items()},
    }
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]


def _unit_length(vectors: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], int]:
    """Return the vectors scaled to unit length, and the number of those that were not."""
    with np.errstate(over="ignore", invalid="ignore"):
        lengths = np.sqrt(np.vecdot(vectors, vectors))  # (M,)
    others = np.flatnonzero(~(np.abs(lengths - 1) <= _TOLERANCE))
    if not others.size:
        return vectors, 0
    exact = vectors[others].astype(np.float64)  # float64 holds the square of any float32
    with np.errstate(invalid="ignore", divide="ignore"):
        exact /= np.linalg.norm(exact, axis=1, keepdims=True)
    units = vectors.copy()
    units[others] = exact
    return units, int(np.isfinite(exact).all(axis=1).sum())
