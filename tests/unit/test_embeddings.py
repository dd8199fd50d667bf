"""Scores of embeddings: the head's own, of vectors of any length, without an encoder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nsfw_spark.cards import load_card
from nsfw_spark.embeddings import EmbeddingsScorer, head_fingerprint, load_embeddings_scorer
from nsfw_spark.encoders import Encoded, unit_length
from nsfw_spark.errors import ConfigError, WeightsError
from nsfw_spark.heads import load_heads
from nsfw_spark.model_card import ModelCard
from nsfw_spark.weights import fingerprint, locate_weights
from tests.fakes import brightness_card, card, perceptron

GOLDEN = Path(__file__).parents[1] / "data" / "golden-l14.npz"
UNITS = unit_length(np.random.default_rng(0).standard_normal((20, 768), dtype=np.float32))


@pytest.fixture(scope="module")
def scorer() -> EmbeddingsScorer:
    return load_embeddings_scorer(card())


def test_scores_are_the_published_ones(scorer: EmbeddingsScorer) -> None:
    golden = np.load(GOLDEN)
    scored = scorer.score(golden["embeddings"].astype(np.float32))
    # The published scores look up a few columns in a vocabulary: see LaionNetwork.
    np.testing.assert_allclose(scored.nsfw_scores, golden["scores"].reshape(-1), rtol=0, atol=4e-5)


def test_vectors_of_unit_length_are_scored_as_they_are(scorer: EmbeddingsScorer) -> None:
    vectors = UNITS * np.float32(1.0005)
    scored = scorer.score(vectors)
    head = load_heads(card(), locate_weights(card()))
    assert scorer.take_timings().normalized == 0
    assert scored.embeddings is vectors
    np.testing.assert_array_equal(scored.nsfw_scores, head.score(Encoded(vectors)).nsfw_scores)


@pytest.mark.parametrize("length", [1e-25, 0.99, 1.01, 30, 1e25])
def test_other_vectors_are_normalised_and_counted(scorer: EmbeddingsScorer, length: float) -> None:
    vectors = UNITS.copy()
    vectors[3:7] *= np.float32(length)
    before = vectors.copy()
    scored = scorer.score(vectors)
    assert scorer.take_timings().normalized == 4
    np.testing.assert_allclose(scored.nsfw_scores, scorer.score(UNITS).nsfw_scores, rtol=0, atol=2e-6)
    np.testing.assert_allclose(scored.embeddings, UNITS, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(vectors, before, err_msg="the caller's vectors were changed")


@pytest.mark.parametrize("value", [0, np.nan, np.inf])
def test_a_vector_without_direction_gets_no_score_and_harms_no_other(
    scorer: EmbeddingsScorer, value: float
) -> None:
    vectors = UNITS.copy()
    vectors[5] = value
    scored = scorer.score(vectors)
    assert np.flatnonzero(np.isnan(scored.nsfw_scores)).tolist() == [5]
    assert scorer.take_timings().normalized == 0


def test_no_vectors_no_scores(scorer: EmbeddingsScorer) -> None:
    scored = scorer.score(np.empty((0, 768), np.float32))
    assert (len(scored.nsfw_scores), scorer.take_timings().normalized) == (0, 0)


def test_the_fingerprint_is_the_heads_alone() -> None:
    other_encoder = card(encoder={"weights": {"random": 2}})
    assert (
        head_fingerprint(card())
        == head_fingerprint(other_encoder)
        == load_embeddings_scorer(card()).fingerprint
    )
    assert head_fingerprint(card()) != fingerprint(card(), locate_weights(card()))
    other_head = card(
        head={
            "weights": {"package": "nsfw_spark", "file": "models/laion/clip_autokeras_nsfw_b32.safetensors"}
        }
    )
    assert head_fingerprint(card()) != head_fingerprint(other_head)
    assert len(head_fingerprint(card())) == 16


def test_each_heads_weights_encoding_and_layers_are_in_the_fingerprint() -> None:
    def two(seed: int, layers: list[int | str]) -> ModelCard:
        return card(other_heads={"beauty": perceptron(seed, layers, score="linear")})

    cards = [card(), card(head={"head_encoding": "exact"}), two(1, [4, 1]), two(2, [4, 1])]
    cards += [two(1, [4, "relu", 1]), card(head=perceptron(1, [4, 1]))]
    for prints in (
        [head_fingerprint(each) for each in cards],
        [fingerprint(each, locate_weights(each)) for each in cards],
    ):
        assert len(set(prints)) == len(cards)


def test_other_heads_score_the_same_vectors() -> None:
    both = card(other_heads={"beauty": perceptron(1, [8, 1], score="linear"), "odd": perceptron(2, [1])})
    vectors = UNITS * np.float32(7)
    scored = load_embeddings_scorer(both).score(vectors)
    assert scored.other_scores is not None
    assert scored.other_scores.shape == (20, 2)
    assert np.ptp(scored.other_scores, axis=0).min() > 0.01
    alone = load_embeddings_scorer(card(head=perceptron(2, [1]))).score(UNITS)
    np.testing.assert_allclose(scored.other_scores[:, 1], alone.nsfw_scores, rtol=0, atol=1e-6)
    one_head = load_embeddings_scorer(card()).score(vectors)
    np.testing.assert_array_equal(scored.nsfw_scores, one_head.nsfw_scores)
    assert one_head.other_scores is None


def test_a_model_without_a_head_for_embeddings_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"fake has no head.*aesthetic-vit-l-14, laion-vit-b-32"):
        load_embeddings_scorer(brightness_card(tmp_path / "model.onnx"))
    with pytest.raises(ConfigError, match="open-nsfw has no head for embeddings"):
        head_fingerprint(load_card("open-nsfw"))


def test_only_the_heads_weights_are_looked_for(tmp_path: Path) -> None:
    no_encoder = card(encoder={"weights": {"path": tmp_path / "absent", "random": None}})
    with pytest.raises(WeightsError, match="absent"):
        locate_weights(no_encoder)
    assert load_embeddings_scorer(no_encoder).dimension == 768


BLOCKED = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "open_clip", "timm", "onnx", "onnxruntime", "pyspark"}:
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
"""

SCORING = """
import numpy as np
from nsfw_spark.embeddings import load_embeddings_scorer
from nsfw_spark.cards import load_card
from nsfw_spark.model_card import ModelCard
scorer = load_embeddings_scorer(load_card("laion-vit-l-14"))
scored = scorer.score(np.eye(768, dtype=np.float32)[:5])
assert ((0 <= scored.nsfw_scores) & (scored.nsfw_scores <= 1)).all(), scored
"""


@pytest.mark.parametrize(("code", "is_blocked"), [(SCORING, False), ("import torch", True)])
def test_it_needs_no_encoders_library(tmp_path: Path, code: str, *, is_blocked: bool) -> None:
    """The second case shows that the first could fail."""
    nowhere = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "PATH": ""}
    command = [sys.executable, "-c", BLOCKED + code]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=nowhere, cwd=Path(__file__).parents[2]
    )
    assert ("is blocked" in done.stderr) == is_blocked, done.stderr
    assert (done.returncode == 0) == (not is_blocked), done.stderr
