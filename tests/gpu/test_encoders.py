"""On a CUDA device: the half-precision encoder gives the embeddings of the float32 one."""

from __future__ import annotations

import numpy as np
import pytest

from nsfw_spark.cards import load_card
from nsfw_spark.encoders import load_encoder
from nsfw_spark.model_card import EncoderCard, ModelCard, WeightsSource
from nsfw_spark.weights import WeightsFile
from tests.conftest import pixels

SEED = 7


def seeded(name: str) -> ModelCard:
    card = load_card(name)
    weights = WeightsSource(random=SEED)
    encoder = EncoderCard.model_validate({**card.encoder.model_dump(), "weights": weights})
    return card.model_copy(update={"encoder": encoder})


@pytest.mark.parametrize("name", ["laion-vit-b-32", "laion-vit-l-14", "laion-vit-h-14"])
def test_the_gpu_gives_the_embeddings_of_the_cpu(name: str) -> None:
    card, weights = seeded(name), WeightsFile(None, f"random:{SEED}")
    batch = np.stack([pixels(224, 224, seed=seed) for seed in range(4)])
    on_gpu = load_encoder(card, weights, "cuda").encode(batch).embeddings
    on_cpu = load_encoder(card, weights, "cpu").encode(batch).embeddings
    assert on_gpu is not None
    assert on_cpu is not None
    # float16 has 11 bits: 24 layers of it, or 32, move the direction by less than half a degree.
    assert (on_gpu * on_cpu).sum(axis=1).min() >= 0.9999
