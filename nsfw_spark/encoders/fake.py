"""A test double in place of an encoder: embeddings from a few pixels, in no time and without weights.

It is part of the package because benchmarks and users' own tests need it: a card with `library:
sampled_pixels` runs the whole pipeline with a real head and no download. Its scores mean nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from nsfw_spark.encoders.encoder import Encoded, Encoder, joined, unit_length
from nsfw_spark.errors import ConfigError
from nsfw_spark.model_card import ModelCard
from nsfw_spark.weights import WeightsFile


class SampledPixelsEncoder(Encoder):
    """Multiplies every 14th pixel by a seeded matrix.

    The embeddings depend on the image and are reproducible, which tests need. The encoder takes almost no
    time, so that benchmarks measure the pipeline around it.
    """

    _STEP = 14

    def __init__(self, card: ModelCard, weights: WeightsFile) -> None:
        if card.encoder.weights.random is None or card.encoder.embedding_dim is None:
            raise ConfigError(
                f"model card {card.name}: sampled_pixels needs encoder.weights.random, got {weights.path}, "
                f"and encoder.embedding_dim, got {card.encoder.embedding_dim}"
            )
        self.device = "cpu"
        rng = np.random.default_rng(card.encoder.weights.random)
        side = -(-card.preprocessing.size // self._STEP)  # pixels sampled along each side
        shape = (side * side * 3, card.encoder.embedding_dim)
        self._matrix = rng.standard_normal(shape, dtype=np.float32)

    def start(self, parts: Sequence[npt.NDArray[np.uint8]]) -> Callable[[], Encoded]:
        """Encode a batch: see `Encoder.start`."""
        sample = joined([part[:, :: self._STEP, :: self._STEP] for part in parts])
        values = sample.reshape(len(sample), -1).astype(np.float32)
        # + 1: even a black image then has a length to divide by.
        encoded = Encoded(unit_length((values + 1) @ self._matrix))
        return lambda: encoded
