"""Heads: embeddings or class probabilities in, scores in [0, 1] out, in float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nsfw_spark.encoders import Encoded, unit_length
from nsfw_spark.errors import ConfigError, WeightsError
from nsfw_spark.heads import ClassHead, DenseHead, load_head
from nsfw_spark.laion import LaionHead
from nsfw_spark.model_card import load_card
from nsfw_spark.weights import WeightsFile, locate_weights
from tests.fakes import card

# (x - mean) / sqrt(variance), then |x0| + 2 |x1| by way of two ReLUs each, then a sigmoid of 3 less.
BY_HAND = LaionHead(
    mean=np.float32([1, 2]),
    variance=np.float32([4, 9]),
    layers=(
        (np.float32([[1, -1, 0, 0], [0, 0, 1, -1]]), np.float32([0, 0, 0, 0])),
        (np.float32([[1], [1], [2], [2]]), np.float32([-3])),
    ),
)


def test_a_dense_head_normalises_then_layers_then_sigmoid() -> None:
    # Normalised: (0, 0), (1, -1), (-2, 2).
    embeddings = np.float32([[1, 2], [3, -1], [-3, 8]])
    scores = DenseHead(BY_HAND).score(Encoded(embeddings)).nsfw_scores
    np.testing.assert_allclose(scores, 1 / (1 + np.exp([3.0, 0.0, -3.0])), rtol=1e-6)
    assert scores.dtype == np.float32


def test_the_last_layer_has_no_relu() -> None:
    score = DenseHead(BY_HAND).score(Encoded(np.float32([[1, 2]]))).nsfw_scores.item()
    assert score < 0.5


@pytest.mark.parametrize("scale", [1e3, 1e6, 1e30])
def test_huge_logits_saturate_without_a_warning(scale: float) -> None:
    positive = DenseHead(BY_HAND).score(Encoded(np.float32([[scale, 0]]))).nsfw_scores
    flipped = LaionHead(
        BY_HAND.mean, BY_HAND.variance, (BY_HAND.layers[0], (-BY_HAND.layers[1][0], np.float32([0])))
    )
    negative = DenseHead(flipped).score(Encoded(np.float32([[scale, 0]]))).nsfw_scores
    assert (positive.item(), negative.item()) == (1, 0)


def test_an_embedding_that_is_not_a_number_gives_no_score() -> None:
    embeddings = np.float32([[np.nan, 0], [1, 2]])
    scores = DenseHead(BY_HAND).score(Encoded(embeddings)).nsfw_scores
    assert np.isnan(scores[0])
    assert np.isfinite(scores[1])


def test_scores_of_a_batch_are_those_of_each_row() -> None:
    head = load_head(card(), locate_weights(card())["head"])
    embeddings = unit_length(np.random.default_rng(0).standard_normal((33, 768), dtype=np.float32))
    together = head.score(Encoded(embeddings)).nsfw_scores
    alone = [head.score(Encoded(row[None])).nsfw_scores.item() for row in embeddings]
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-6)


def test_a_class_head_picks_its_class_and_hands_on_all() -> None:
    probabilities = np.float32([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]])
    classes = {"library": "classes", "weights": None, "classes": ["a", "b", "c"]}
    for name, expected in [("a", [0.7, 0.1]), ("c", [0.1, 0.6])]:
        head = load_head(card(head={**classes, "score": f"probability:{name}"}), None)
        assert isinstance(head, ClassHead)
        scored = head.score(Encoded(None, probabilities))
        np.testing.assert_array_equal(scored.nsfw_scores, np.float32(expected))
        np.testing.assert_array_equal(scored.class_scores, probabilities)


@pytest.mark.parametrize("name", ["laion-vit-b-32", "laion-vit-l-14"])
def test_the_heads_of_the_built_in_cards_load(name: str) -> None:
    built_in = load_card(name)
    head = load_head(built_in, locate_weights(card(head=built_in.head.model_dump()))["head"])
    assert isinstance(head, DenseHead)


def test_a_head_for_longer_embeddings_is_a_config_error() -> None:
    shorter = card(encoder={"embedding_dim": 512})
    with pytest.raises(
        ConfigError, match=r"expects embeddings of 768 numbers, encoder\.embedding_dim is 512"
    ):
        load_head(shorter, locate_weights(shorter)["head"])


@pytest.mark.parametrize("weights", [None, WeightsFile(None, "random:1")])
def test_a_dense_head_without_a_file_is_a_config_error(weights: WeightsFile | None) -> None:
    with pytest.raises(ConfigError, match="needs the file of its weights"):
        load_head(card(), weights)


def test_a_damaged_head_is_a_weights_error(tmp_path: Path) -> None:
    (tmp_path / "head.zip").write_bytes(b"damaged")
    with pytest.raises(WeightsError, match=r"head\.zip"):
        load_head(card(), WeightsFile(tmp_path / "head.zip", ""))
