"""An encoder that costs nothing and knows nothing, for tests and benchmarks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from nsfw_spark.encoders.encoder import Encoded, Encoder, joined, unit_length
from nsfw_spark.errors import ConfigError
from nsfw_spark.model_card import ModelCard
from nsfw_spark.weights import WeightsFile


class SampledPixelsEncoder(Encoder):
    """Every 14th pixel times a seeded matrix.

    Its embeddings depend on the image, reproducibly, which is what tests need; and all time spent is
    that of the pipeline around it, which is what benchmarks need.
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
        # Not centred on zero: so even a black image has a length to divide by.
        encoded = Encoded(unit_length((values + 1) @ self._matrix))
        return lambda: encoded
