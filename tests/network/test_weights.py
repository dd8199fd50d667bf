"""With the internet: the published weights are where the cards say, and load into the architecture."""

from __future__ import annotations

from pathlib import Path

import pytest

from nsfw_spark import load_scorer
from nsfw_spark.model_card import load_card
from nsfw_spark.weights import fetch_weights
from tests.conftest import PHOTOS


@pytest.mark.parametrize("name", ["laion-vit-b-32", "laion-vit-l-14"])
def test_fetched_weights_score_photographs_as_safe(name: str, tmp_path: Path) -> None:
    fetch_weights(load_card(name), tmp_path)
    scorer = load_scorer(name, device="cpu", model_dir=tmp_path)
    photos = ["coffee.jpg", "stairs.jpg", "raccoon.jpg"]
    scores = scorer.score([(PHOTOS / "photos" / photo).read_bytes() for photo in photos])
    assert [score.status for score in scores] == ["ok"] * len(photos)
    assert all(score.nsfw_score is not None and score.nsfw_score < 0.5 for score in scores)
