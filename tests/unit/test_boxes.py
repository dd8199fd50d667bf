"""Boxes: the best box of each class counts, as in NudeNet; the best of the flagged classes is the score."""

from __future__ import annotations

from io import BytesIO

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from nudenet import NudeDetector
from PIL import Image

from nsfw_spark import load_scorer
from nsfw_spark.cards import load_card
from nsfw_spark.encoders import Encoded
from nsfw_spark.heads import BoxHead, best_boxes, load_heads
from nsfw_spark.scorer import Scorer
from tests.conftest import PHOTOS, encoded
from tests.fakes import card

Floats = npt.NDArray[np.float32]
TOLERANCE = 1e-3
"""Of a score: upscaled pixels differ by up to 1 of 255, and by nothing else."""
NO_BOX = [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]


def image_of(*places: list[float]) -> Floats:
    """Return the boxes of one image, (1, 4 + 3, A): of each place x, y, width, height and three scores."""
    return np.float32(places or [NO_BOX]).T[None]


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        ([], [0, 0, 0]),
        ([[50, 50, 20, 20, 0.9, 0.1, 0]], [0.9, 0, 0]),
        ([[50, 50, 20, 20, 0.25, 0, 0]], [0, 0, 0]),
        ([[50, 50, 20, 20, 0.26, 0, 0]], [0.26, 0, 0]),
        ([[50, 50, 20, 20, 0.9, 0.8, 0]], [0.9, 0, 0]),
        ([[50, 50, 20, 20, 0.6, 0, 0], [52, 50, 20, 20, 0, 0.7, 0]], [0, 0.7, 0]),
        ([[50, 50, 20, 20, 0.6, 0, 0], [61, 50, 20, 20, 0, 0.7, 0]], [0.6, 0.7, 0]),
        (
            [[50, 50, 20, 20, 0, 0, 0.4], [150, 50, 20, 20, 0, 0, 0.7], [50, 150, 9, 9, 0, 0, 0.5]],
            [0, 0, 0.7],
        ),
    ],
    ids=["none", "best class", "too low", "just enough", "one class a box", "hidden", "beside", "best box"],
)
def test_the_best_box_of_a_class_counts(places: list[list[float]], expected: list[float]) -> None:
    np.testing.assert_allclose(best_boxes(image_of(*places)), [expected], rtol=1e-6)


def by_opencv(boxes: Floats) -> Floats:
    """Return the best score of each class of one image, (4 + C, A), as NudeNet computes it."""
    best = np.zeros(len(boxes) - 4, np.float32)
    scores, classes = boxes[4:].max(axis=0), boxes[4:].argmax(axis=0)
    corners = np.concatenate([boxes[:2] - boxes[2:4] / 2, boxes[2:4]]).T.tolist()
    kept = np.asarray(cv2.dnn.NMSBoxes(corners, scores.tolist(), 0.25, 0.45), np.intp)
    np.maximum.at(best, classes[kept], scores[kept])
    return best


@pytest.mark.parametrize("digits", [0, 1, 9], ids=["equal boxes and scores", "equal scores", "all different"])
def test_random_boxes_are_suppressed_as_opencv_does_to_the_bit(digits: int) -> None:
    """Whole-numbered boxes touch, coincide, are empty, and have scores of exactly 0.25."""
    rng = np.random.default_rng(digits)
    for _ in range(200):
        num_boxes, num_classes = rng.integers(1, 60), rng.integers(1, 19)
        boxes = np.concatenate([rng.uniform(-20, 60, (2, num_boxes)), rng.uniform(0, 40, (2, num_boxes))])
        scores = rng.uniform(0, 1, (num_classes, num_boxes))
        if digits < 9:
            boxes, scores = np.round(boxes / 5) * 5 if digits == 0 else boxes, np.round(scores * 8) / 8
        image = np.float32(np.concatenate([boxes, scores]))
        assert best_boxes(image[None])[0].tobytes() == by_opencv(image).tobytes()


def test_each_image_has_its_own_boxes() -> None:
    boxes = np.concatenate([image_of([50, 50, 20, 20, 0.9, 0, 0]), image_of([50, 50, 20, 20, 0, 0.8, 0])])
    np.testing.assert_allclose(best_boxes(boxes), [[0.9, 0, 0], [0, 0.8, 0]], rtol=1e-6)


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_boxes_that_are_no_numbers_give_no_score(broken: float) -> None:
    boxes = np.concatenate([image_of(NO_BOX), image_of([broken, *NO_BOX[1:]])])
    best = best_boxes(boxes)
    assert best[0].tolist() == [0, 0, 0]
    assert np.isnan(best[1]).all(), "a broken model would make every image safe"


def test_the_score_is_that_of_the_worst_of_the_flagged_classes() -> None:
    classes = {"library": "boxes", "weights": None, "classes": ["x", "y", "z"], "score": "highest:x, z"}
    head = load_heads(card(head=classes), {})
    assert isinstance(head, BoxHead)
    places = ([50, 50, 9, 9, 0.3, 0, 0], [90, 50, 9, 9, 0, 0.9, 0], [50, 90, 9, 9, 0, 0, 0.4])
    scored = head.score(Encoded(None, boxes=np.concatenate([image_of(*places), image_of(*[NO_BOX] * 3)])))
    np.testing.assert_allclose(scored.nsfw_scores, [0.4, 0], rtol=1e-6)
    np.testing.assert_allclose(scored.class_scores, [[0.3, 0.9, 0.4], [0, 0, 0]], rtol=1e-6)


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return load_scorer("nudenet-320n", device="cpu")


def photo(name: str) -> bytes:
    return (PHOTOS / "photos" / name).read_bytes()


def by_nudenet(content: bytes) -> dict[str, float]:
    best = dict.fromkeys(load_card("nudenet-320n").head.classes, 0.0)
    for found in NudeDetector().detect(content):
        best[found["class"]] = max(best[found["class"]], found["score"])
    return best


IN_COLOUR = (
    *("astronaut.jpg", "astronaut-face.jpg", "astronaut-portrait.jpg", "cat.jpg", "cat-eyes.webp"),
    *("coffee.jpg", "coffee-portrait.avif", "deep-field-panorama.jpg", "grace-hopper.jpg", "retina.jpg"),
    *("raccoon-panorama.jpg", "raccoon-portrait.webp", "space-shuttle-model.png"),
)


@pytest.mark.parametrize("name", IN_COLOUR)
def test_it_finds_what_nudenet_finds(scorer: Scorer, name: str) -> None:
    content = photo(name)
    score = scorer.score([content])[0]
    assert score.class_scores == pytest.approx(by_nudenet(content), rel=0, abs=TOLERANCE)
    assert score.nsfw_score == 0.0


def test_there_is_something_to_find() -> None:
    """Otherwise the test above could not fail."""
    assert by_nudenet(photo("grace-hopper.jpg"))["FACE_FEMALE"] > 0.5


def test_swapped_channels_would_be_noticed() -> None:
    """What parity guards against moves a score by far more than its tolerance."""
    pixels = np.asarray(Image.open(BytesIO(photo("grace-hopper.jpg"))))
    swapped = encoded(pixels[..., ::-1], "PNG")
    straight = encoded(pixels, "PNG")
    difference = abs(by_nudenet(swapped)["FACE_FEMALE"] - by_nudenet(straight)["FACE_FEMALE"])
    assert difference > 100 * TOLERANCE


def test_other_classes_can_be_the_score() -> None:
    face = load_scorer("nudenet-320n", device="cpu", score_class="FACE_FEMALE")
    content = photo("grace-hopper.jpg")
    score = face.score([content])[0]
    assert score.nsfw_score == pytest.approx(by_nudenet(content)["FACE_FEMALE"], abs=TOLERANCE)
