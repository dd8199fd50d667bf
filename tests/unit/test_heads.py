"""Heads: embeddings or class probabilities in, scores out, one head or several."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from nsfw_spark.cards import load_card
from nsfw_spark.encoders import Encoded, unit_length
from nsfw_spark.errors import ConfigError, WeightsError
from nsfw_spark.heads import ClassHead, DenseHead, load_heads
from nsfw_spark.weights import WeightsFile, locate_weights
from tests.fakes import card, perceptron

GOLDEN = Path(__file__).parents[1] / "data" / "golden-l14-f16grid.npz"


def test_scores_of_a_batch_are_those_of_each_row() -> None:
    head = load_heads(card(), locate_weights(card()))
    embeddings = unit_length(np.random.default_rng(0).standard_normal((33, 768), dtype=np.float32))
    together = head.score(Encoded(embeddings)).nsfw_scores
    alone = [head.score(Encoded(row[None])).nsfw_scores.item() for row in embeddings]
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-6)


def test_a_class_head_picks_its_class_and_hands_on_all() -> None:
    probabilities = np.float32([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]])
    classes = {"library": "classes", "weights": None, "classes": ["a", "b", "c"]}
    for name, expected in [("a", [0.7, 0.1]), ("c", [0.1, 0.6])]:
        head = load_heads(card(head={**classes, "score": f"probability:{name}"}), {})
        assert isinstance(head, ClassHead)
        scored = head.score(Encoded(None, probabilities))
        np.testing.assert_array_equal(scored.nsfw_scores, np.float32(expected))
        np.testing.assert_array_equal(scored.class_scores, probabilities)


def test_the_cards_encoding_decides_what_the_head_computes() -> None:
    with np.load(GOLDEN) as vectors:
        encoded, expected = Encoded(vectors["embeddings"].astype(np.float32)), vectors["scores"]
    exact, plain = card(head={"head_encoding": "exact"}), card(head={"head_encoding": "plain"})
    assert card() == plain, "plain is the default"
    scores = [load_heads(each, locate_weights(each)).score(encoded).nsfw_scores for each in (exact, plain)]
    np.testing.assert_allclose(scores[0], expected, rtol=0, atol=1e-6)
    assert np.abs(scores[1] - expected).max() > 0.05


def test_several_heads_score_one_embedding_in_the_cards_order() -> None:
    several = card(other_heads={"b": perceptron(1, [4, 1], "linear"), "a": perceptron(2, [1], "clamp")})
    encoded = Encoded(unit_length(np.random.default_rng(0).standard_normal((9, 768), dtype=np.float32)))
    scored = load_heads(several, locate_weights(several)).score(encoded)
    assert scored.other_scores is not None
    assert scored.other_scores.shape == (9, 2)
    assert scored.other_scores.dtype == np.float32
    assert scored.other_scores[:, 0].min() < 0, "linear"
    assert scored.other_scores[:, 1].min() == 0, "clamp"
    alone = load_heads(card(), locate_weights(card())).score(encoded)
    np.testing.assert_array_equal(scored.nsfw_scores, alone.nsfw_scores)
    assert alone.other_scores is None


def test_a_classifiers_embedding_serves_other_heads_too() -> None:
    classes = {"library": "classes", "weights": None, "classes": ["a", "b"], "score": "probability:b"}
    both = card(
        encoder={"embedding_dim": 2}, head=classes, other_heads={"size": perceptron(1, [1], "linear")}
    )
    encoded = Encoded(np.float32([[1, 0], [0, 1]]), np.float32([[0.9, 0.1], [0.3, 0.7]]))
    scored = load_heads(both, locate_weights(both)).score(encoded)
    np.testing.assert_array_equal(scored.nsfw_scores, np.float32([0.1, 0.7]))
    np.testing.assert_array_equal(scored.class_scores, encoded.probabilities)
    assert scored.other_scores is not None
    assert scored.other_scores[0] != scored.other_scores[1]


def test_levels_are_summed_from_each_level_up() -> None:
    """By hand, with numbers that binary fractions hold; the first level, which is safe, keeps its own."""
    probabilities = np.float32([[0.5, 0.25, 0.125, 0.125], [0, 0, 0, 1]])
    classes = {"library": "classes", "weights": None, "classes": ["neutral", "low", "medium", "high"]}
    expected = [[0.5, 0.5, 0.25, 0.125], [0, 1, 1, 1]]
    for name, index in [("low", 1), ("medium", 2), ("high", 3)]:
        head = load_heads(card(head={**classes, "score": f"cumulative:{name}"}), {})
        scored = head.score(Encoded(None, probabilities))
        np.testing.assert_array_equal(scored.class_scores, np.float32(expected))
        np.testing.assert_array_equal(scored.nsfw_scores, np.float32(expected)[:, index])


def test_sums_of_levels_are_scores_however_they_round() -> None:
    rows = np.random.default_rng(0).dirichlet([0.1] * 9, 10_000).astype(np.float32)
    assert (rows[:, 1:].sum(axis=1) > 1).any(), "nothing rounds up: nothing is tested"
    classes = {"library": "classes", "weights": None, "classes": [str(i) for i in range(9)]}
    head = load_heads(card(head={**classes, "score": "cumulative:1"}), {})
    scores = head.score(Encoded(None, rows)).nsfw_scores
    assert scores.min() >= 0
    assert scores.max() <= 1
    assert np.isnan(head.score(Encoded(None, rows * np.float32(np.nan))).nsfw_scores).all()


@pytest.mark.parametrize("name", ["laion-vit-b-32", "laion-vit-l-14"])
def test_the_heads_of_the_built_in_cards_load(name: str) -> None:
    built_in = load_card(name)
    assert isinstance(load_heads(built_in, locate_weights(built_in, parts=["head"])), DenseHead)


def test_the_h14_card_loads_a_head_of_its_shape_and_no_other(tmp_path: Path) -> None:
    built_in = load_card("laion-vit-h-14")
    widths = [width for width in built_in.head.layers if width != "relu"]
    state = {}
    for number, (inputs, outputs) in enumerate(zip([1024, *widths[:-1]], widths, strict=True)):
        state[f"layers.{number}.weight"] = torch.zeros(outputs, inputs)
        state[f"layers.{number}.bias"] = torch.full((outputs,), 0.25)
    torch.save(state, tmp_path / "h14_nsfw.pth")
    head = load_heads(built_in, {"head": WeightsFile(tmp_path / "h14_nsfw.pth", "")})
    assert head.score(Encoded(np.ones((2, 1024), np.float32))).nsfw_scores.tolist() == [0.25, 0.25]
    del state["layers.6.bias"]
    torch.save(state, tmp_path / "h14_nsfw.pth")
    with pytest.raises(WeightsError, match="does not hold the layers that the model card names"):
        load_heads(built_in, {"head": WeightsFile(tmp_path / "h14_nsfw.pth", "")})


def test_a_head_for_longer_embeddings_is_a_config_error() -> None:
    shorter = card(encoder={"embedding_dim": 512})
    with pytest.raises(
        ConfigError, match=r"head expects embeddings of 768 numbers, encoder\.embedding_dim is 512"
    ):
        load_heads(shorter, locate_weights(shorter))


def test_another_head_that_does_not_fit_is_named() -> None:
    b32 = load_card("laion-vit-b-32").head.model_dump()
    wrong = card(other_heads={"second": b32})
    with pytest.raises(ConfigError, match=r"other_heads\.second expects embeddings of 512 numbers"):
        load_heads(wrong, locate_weights(wrong))


@pytest.mark.parametrize("weights", [{}, {"head": WeightsFile(None, "random:1")}])
def test_a_laion_head_without_a_file_is_a_config_error(weights: dict[str, WeightsFile]) -> None:
    with pytest.raises(ConfigError, match="needs the file of its weights"):
        load_heads(card(), weights)


def test_a_damaged_head_is_a_weights_error(tmp_path: Path) -> None:
    (tmp_path / "head.zip").write_bytes(b"damaged")
    with pytest.raises(WeightsError, match=r"head\.zip"):
        load_heads(card(), {"head": WeightsFile(tmp_path / "head.zip", "")})
