"""Stand-ins for models: numpy, deterministic, in a microsecond. Each says which property it gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from nsfw_spark.encoders import Encoded, Encoder
from nsfw_spark.heads import Scored
from nsfw_spark.model_card import ModelCard


class FakeEncoder(Encoder):
    """An image's embedding is a point on the unit circle that tells its mean brightness.

    Its first number is the brightness, 0 for black and 1 for white; so with `FakeHead` the score of a grey
    image of value v is v / 255, which tells from a score whose it is. `batches` lists the sizes of the
    batches that were encoded.
    """

    def __init__(self) -> None:
        self.device = "cpu"
        self.batches: list[int] = []

    def start(self, parts: Sequence[npt.NDArray[np.uint8]]) -> Callable[[], Encoded]:
        pixels = np.concatenate(parts)
        self.batches.append(len(pixels))
        brightness = pixels.reshape(len(pixels), -1).mean(axis=1) / 255  # (N,)
        encoded = Encoded(np.stack([brightness, np.sqrt(1 - brightness**2)], axis=1).astype(np.float32))
        return lambda: encoded


class FakeHead:
    """The score is the embedding's first number; above `broken_above` it is NaN, as a broken model's."""

    def __init__(self, broken_above: float = 1.0) -> None:
        self._broken_above = broken_above

    def score(self, encoded: Encoded) -> Scored:
        assert encoded.embeddings is not None
        scores = encoded.embeddings[:, 0]
        return Scored(np.where(scores > self._broken_above, np.float32(np.nan), scores))


CARD: dict[str, Any] = {
    "name": "fake",
    "summary": "Sampled pixels and a real head",
    "source": "https://example.org",
    "licence": "none",
    "encoder": {
        "library": "sampled_pixels",
        "architecture": "none",
        "embedding_dim": 768,
        "weights": {"random": 1},
    },
    "head": {
        "library": "laion",
        "weights": {"package": "nsfw_spark", "file": "models/laion/clip_autokeras_binary_nsfw.zip"},
    },
    "preprocessing": {"size": 224, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
    "seconds_per_image": {"cpu": 0.001, "cuda": 0.001},
}
"""The content of `card()`, for tests that write card files."""


def card_content(**changes: Any) -> dict[str, Any]:  # noqa: ANN401 - any value, wrong ones too
    """Return the content of a card; what `changes` says of a section is merged into it."""
    merged = {key: dict(value) if isinstance(value, dict) else value for key, value in CARD.items()}
    for key, value in changes.items():
        if isinstance(value, dict) and key in merged:
            merged[key].update(value)
        else:
            merged[key] = value
    return merged


def card(**changes: Any) -> ModelCard:  # noqa: ANN401
    """Return a small valid card: no download, no torch; reproducible scores that depend on the image.

    Its embeddings are `sampled_pixels` of seed 1, its head is LAION's for ViT-L/14. `changes` are those of
    `card_content`: `card(encoder={"weights": {"random": 2}})`.
    """
    return ModelCard.model_validate(card_content(**changes))
