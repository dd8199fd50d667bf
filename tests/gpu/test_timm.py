"""On a CUDA device: classifiers in their own precision give the scores of float32 on the CPU."""

from __future__ import annotations

import numpy as np
import pytest

from nsfw_spark.cards import load_card
from nsfw_spark.encoders import load_encoder
from nsfw_spark.model_card import ModelCard
from nsfw_spark.weights import WeightsFile
from tests.conftest import pixels

SEED = 7
SCORE = {"float32": 1e-3, "bfloat16": 2e-2}
COSINE = {"float32": 0.9999, "bfloat16": 0.999}


@pytest.mark.parametrize(
    "name", ["adamcodd-vit-b-384", "falconsai-vit-b-224", "freepik-eva02-b-448", "marqo-vit-tiny-384"]
)
def test_the_gpu_gives_the_scores_of_the_cpu(name: str) -> None:
    content = load_card(name).model_dump()
    content["encoder"]["weights"] = {"random": SEED}
    card, weights = ModelCard.model_validate(content), WeightsFile(None, f"random:{SEED}")
    size, precision = card.preprocessing.size, card.encoder.precision
    batch = np.stack([pixels(size, size, seed=seed) for seed in range(4)])
    on_gpu, on_cpu = (load_encoder(card, weights, device).encode(batch) for device in ("cuda", "cpu"))
    np.testing.assert_allclose(on_gpu.probabilities, on_cpu.probabilities, rtol=0, atol=SCORE[precision])
    assert on_gpu.embeddings is not None
    assert on_cpu.embeddings is not None
    assert (on_gpu.embeddings * on_cpu.embeddings).sum(axis=1).min() >= COSINE[precision]
