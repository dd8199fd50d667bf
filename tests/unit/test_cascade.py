"""A cascade: the second model decides where the first is not sure, and nowhere else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nsfw_spark import Cascade, ConfigError, ImageScore, Scorer, cascade
from nsfw_spark.encoders import Encoded
from nsfw_spark.heads import Predictions
from nsfw_spark.model import Model
from nsfw_spark.options import Band
from nsfw_spark.scorer import Content
from tests.conftest import grey
from tests.fakes import FakeEncoder, FakeHead, card, perceptron

LOW, HIGH = 0.3, 0.7
GREYS = {value: grey(value) for value in range(0, 256, 15)}
BAD = {None: "missing", b"": "undecodable", b"text": "undecodable", b"%PDF-1.7": "unsupported"}


class Darkness(FakeHead):
    """The score is 1 - brightness; above `broken_above` of that it is NaN."""

    def score(self, encoded: Encoded) -> Predictions:
        assert encoded.embeddings is not None
        dark = Encoded(1 - encoded.embeddings)
        return replace(super().score(dark), class_scores=np.stack([encoded.embeddings[:, 0]] * 2, axis=1))


def scorer(name: str, head: FakeHead, batch_size: int) -> tuple[Scorer, FakeEncoder]:
    encoder = FakeEncoder()
    classes = {"library": "classes", "weights": None, "classes": ["a", "b"], "score": "probability:b"}
    model_card = card(name=name, **({"head": classes} if isinstance(head, Darkness) else {}))
    return Scorer(model_card, Model(encoder, head, f"fingerprint of {name}", batch_size)), encoder


def two_models(batch_size: int = 4, broken_above: float = 1.0) -> tuple[Cascade, FakeEncoder]:
    """Return a cascade, brightness and then darkness, and the second's encoder."""
    first, _ = scorer("bright", FakeHead(), batch_size)
    second, encoder = scorer("dark", Darkness(broken_above), batch_size)
    return Cascade(first, second, LOW, HIGH), encoder


@settings(max_examples=60, deadline=None)
@given(
    images=st.lists(st.one_of(st.sampled_from(sorted(GREYS)), st.sampled_from(list(BAD))), max_size=40),
    batch_size=st.integers(1, 9),
)
def test_each_image_is_decided_by_the_model_that_should(
    images: list[int | bytes | None], batch_size: int
) -> None:
    contents = [GREYS[image] if isinstance(image, int) else image for image in images]
    rows = two_models(batch_size)[0].score(contents)
    assert len(rows) == len(images)
    for image, row in zip(images, rows, strict=True):
        if not isinstance(image, int):
            assert row.status == BAD[image]
            assert (row.nsfw_score, row.first_score, row.second_score, row.decided_by) == (None,) * 4
        elif LOW <= image / 255 <= HIGH:
            assert row.first_score == pytest.approx(image / 255, abs=1e-6)
            assert row.second_score == row.nsfw_score == pytest.approx(1 - image / 255, abs=1e-6)
            assert row.decided_by == "dark"
        else:
            assert row.nsfw_score == row.first_score == pytest.approx(image / 255, abs=1e-6)
            assert (row.second_score, row.decided_by) == (None, "bright")


def test_the_second_model_sees_nothing_else_and_full_batches() -> None:
    both, encoder = two_models(batch_size=4)
    rows = both.score([GREYS[value] for value in (120, 0, 135, 255, 105, 0, 150, 120, 15)])
    assert encoder.batches == [4, 1]
    assert [row.decided_by for row in rows].count("dark") == 5
    timings = both.take_timings()
    assert (timings.second, timings.encoded) == (5, 9 + 5)
    assert both.take_timings().second == 0


def test_without_uncertain_images_the_second_model_sees_nothing() -> None:
    both, encoder = two_models()
    assert [row.decided_by for row in both.score([grey(0), grey(255)])] == ["bright"] * 2
    assert encoder.batches == []


def test_class_scores_are_of_the_model_that_decided_and_embeddings_of_the_first() -> None:
    sure, unsure = two_models()[0].score([grey(0), grey(120)])
    assert sure.class_scores is None
    assert unsure.class_scores is not None
    assert list(unsure.class_scores) == ["a", "b"]
    assert unsure.embedding is not None
    assert unsure.embedding[0] == pytest.approx(120 / 255, abs=1e-6)


def test_an_image_to_which_the_second_model_gives_no_number_has_no_score() -> None:
    both, _ = two_models(broken_above=0.5)
    broken, good = both.score([grey(120), grey(135)])
    assert (broken.status, broken.nsfw_score, broken.first_score) == ("not_finite", None, None)
    assert broken.error is not None
    assert broken.error.startswith("the model dark gave nan")
    assert good.decided_by == "dark"


@pytest.mark.parametrize("limit", ["_MOST_WAITING", "_MOST_BYTES"])
def test_what_waits_for_the_second_model_is_bounded(monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    monkeypatch.setattr(cascade, limit, 2 if limit == "_MOST_WAITING" else 2 * len(grey(120)))
    both, encoder = two_models(batch_size=64)
    taken = 0

    def contents() -> Iterator[Content]:
        nonlocal taken
        for _ in range(6):
            taken += 1
            yield grey(120)

    rows = both.stream(contents())
    next(rows)
    assert encoder.batches == [2], "two wait, and no more"
    assert len(list(rows)) == 5
    assert taken == 6
    assert encoder.batches == [2, 2, 2]


def test_scores_of_another_cascade_have_another_fingerprint() -> None:
    def made(first: str = "a", second: str = "b", low: float = LOW, high: float = HIGH) -> str:
        one, two = scorer(first, FakeHead(), 4)[0], scorer(second, FakeHead(), 4)[0]
        return Cascade(one, two, low, high).fingerprint

    others = [made("b"), made("b", "a"), made(second="c"), made(low=0.31), made(high=0.71)]
    assert len({made(), *others}) == 6
    assert made() == made()


@pytest.mark.parametrize("text", ["", "0.1", "0.9:0.1", "-1:0.5", "0.5:1.1", "a:b", "0.1:0.2:0.3", "nan:1"])
def test_what_is_no_band_is_a_config_error(text: str) -> None:
    with pytest.raises(ConfigError, match=r"expected LOW:HIGH, two scores such as 0\.1:0\.9; got"):
        Band.parse(text)


def test_both_ends_of_a_band_are_in_it() -> None:
    band = Band.parse("0.25:0.75")
    assert [score in band for score in (0.25, 0.75, 0.2, 0.8, None)] == [True, True, False, False, False]
    for low, high in ((0.7, 0.9), (0.3, 0.6)):  # as float32, which scores are, 0.7 is less, and 0.6 more
        assert all(float(np.float32(score)) in Band.of(low, high) for score in (low, high))


def test_other_heads_are_those_of_the_first_model() -> None:
    class WithOther(FakeHead):
        def score(self, encoded: Encoded) -> Predictions:
            scored = super().score(encoded)
            return replace(scored, other_scores=scored.nsfw_scores[:, None] * 10)

    model_card = card(other_heads={"beauty": perceptron(1, [1], "linear")})
    first = Scorer(model_card, Model(FakeEncoder(), WithOther(), "first", 4))
    rows: list[ImageScore] = Cascade(first, scorer("dark", Darkness(), 4)[0], LOW, HIGH).score([grey(102)])
    assert rows[0].decided_by == "dark"
    assert rows[0].other_scores == pytest.approx({"beauty": 4.0}, abs=1e-5)
