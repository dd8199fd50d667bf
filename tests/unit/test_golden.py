"""Golden scores: a machine on which LAION's heads compute something else is found out."""

from __future__ import annotations

from importlib import resources

import numpy as np
import pytest

from nsfw_spark.cards import built_in_models, load_card
from nsfw_spark.errors import DeviceError
from nsfw_spark.heads import load_heads
from nsfw_spark.laion import _PREFIXES, TOLERANCE, Vectors, check_golden_scores
from nsfw_spark.model_card import ModelCard
from nsfw_spark.weights import locate_weights

LAION = [name for name in built_in_models() if load_card(name).head.library == "laion"]


class Shifted:
    """A network whose scores are wrong by a little."""

    def __init__(self, scores: Vectors, shift: float) -> None:
        self._scores, self._shift = scores, np.float32(shift)

    def scores(self, embeddings: Vectors) -> Vectors:
        assert len(embeddings) == len(self._scores)
        return self._scores + self._shift


@pytest.mark.parametrize("encoding", ["plain", "exact"])
@pytest.mark.parametrize("name", LAION)
def test_each_of_laions_heads_gives_them(name: str, encoding: str) -> None:
    content = load_card(name).model_dump()
    content["head"]["head_encoding"] = encoding
    content["other_heads"] = {}
    card = ModelCard.model_validate(content)
    files = locate_weights(card, parts=["head"])
    assert files["head"].sha256 in _PREFIXES, "its golden scores are not known: nothing would be compared"
    load_heads(card, files)


@pytest.mark.parametrize("sha256", _PREFIXES)
def test_other_scores_are_a_device_error(sha256: str) -> None:
    path = resources.files("nsfw_spark").joinpath("models/laion/golden.npz")
    with path.open("rb") as file, np.load(file) as golden:
        scores = golden[f"{_PREFIXES[sha256]}_scores"]
    assert np.ptp(scores) > 0.7, "scores all over (0, 1) are compared"
    check_golden_scores(Shifted(scores, TOLERANCE / 3), sha256)
    for shift in (3 * TOLERANCE, -3 * TOLERANCE, np.nan):
        with pytest.raises(DeviceError, match=r"gives \[.*expected \[.*numpy"):
            check_golden_scores(Shifted(scores, shift), sha256)


def test_of_an_unknown_archive_nothing_is_expected() -> None:
    check_golden_scores(Shifted(np.float32([9]), 0), "0" * 64)
