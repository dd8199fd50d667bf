"""Scores of the model host arrive to the last bit; wrong messages are refused."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nsfw_spark.heads import Predictions
from nsfw_spark.host.protocol import read_scores, scores_message
from nsfw_spark.wire import MessageError


def predictions(
    num_images: int, num_classes: int = 0, num_dimensions: int = 0, num_heads: int = 0
) -> Predictions:
    rng = np.random.default_rng(num_images)
    widths = (1, num_classes, num_dimensions, num_heads)
    scores, classes, embeddings, others = (rng.random((num_images, width), np.float32) for width in widths)
    return Predictions(
        scores[:, 0],
        classes if num_classes else None,
        embeddings if num_dimensions else None,
        encode_seconds=0.25,
        batch_slots=16.0,
        other_scores=others if num_heads else None,
    )


def message(sent: Predictions) -> tuple[dict[str, Any], bytes]:
    """Return the head and the body as they arrive."""
    head, body = scores_message(sent)
    return json.loads(json.dumps(head)), b"".join(array.tobytes() for array in body)


HEAD, BODY = message(predictions(3, 2, 4, 1))


@pytest.mark.parametrize("num_images", [1, 2, 64])
@pytest.mark.parametrize("num_classes", [0, 1, 4])
@pytest.mark.parametrize("num_dimensions", [0, 1, 512])
@pytest.mark.parametrize("num_heads", [0, 1, 2])
def test_predictions_arrive_to_the_last_bit(
    num_images: int, num_classes: int, num_dimensions: int, num_heads: int
) -> None:
    sent = predictions(num_images, num_classes, num_dimensions, num_heads)
    found = read_scores(*message(sent), num_images)
    for name in ("nsfw_scores", "class_scores", "embeddings", "other_scores"):
        one, other = getattr(sent, name), getattr(found, name)
        assert (one is None) == (other is None), name
        assert one is None or (one.dtype == other.dtype and np.array_equal(one, other)), name
    assert (found.encode_seconds, found.batch_slots) == (0.25, 16.0)


def test_columns_of_a_larger_array_arrive() -> None:
    """A model's head returns such arrays: views that are not contiguous."""
    probabilities = np.random.default_rng(0).random((5, 2), np.float32)
    found = read_scores(*message(Predictions(probabilities[:, 1], probabilities)), 5)
    assert np.array_equal(found.nsfw_scores, probabilities[:, 1])
    assert found.class_scores is not None
    assert np.array_equal(found.class_scores, probabilities)


def test_what_is_no_number_arrives_as_such() -> None:
    sent = Predictions(np.array([np.nan, np.inf, -1], np.float32))
    np.testing.assert_array_equal(read_scores(*message(sent), 3).nsfw_scores, sent.nsfw_scores)


@settings(max_examples=300, deadline=None)
@given(
    widths=st.lists(st.integers(-3, 9) | st.none() | st.booleans() | st.text(), max_size=4) | st.integers(),
    cut=st.integers(0, len(BODY)),
)
def test_damaged_scores_are_a_message_error_or_have_the_right_shape(widths: object, cut: int) -> None:
    with contextlib.suppress(MessageError):
        found = read_scores({**HEAD, "widths": widths}, BODY[:cut], 3)
        assert found.nsfw_scores.shape == (3,)
        assert found.class_scores is None or len(found.class_scores) == 3
        assert found.embeddings is None or len(found.embeddings) == 3
        assert found.other_scores is None or len(found.other_scores) == 3


@pytest.mark.parametrize(
    "widths",
    [
        [],
        [2, 1],
        [2, 1, 4, 0],
        [2, 1, 5],
        [2, 2, 4],
        [2, 1, -4],
        [-2, 3, 6],
        [2.0, 1.0, 4.0],
        [2, True, 4],
        [2, 1, "4"],
        [2**32 - 1] * 3,
        [2**4000, 1, 4],
    ],
    ids=lambda widths: repr(widths)[:20],
)
def test_widths_that_do_not_fit_are_refused(widths: list[object]) -> None:
    with pytest.raises(MessageError, match="expected the scores of 3 images"):
        read_scores({**HEAD, "widths": widths}, BODY, 3)


@pytest.mark.parametrize(
    "change", [{"widths": None}, {"widths": 3}, {"encode_seconds": None}, {"batch_slots": "many"}]
)
def test_what_is_no_head_of_scores_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(MessageError, match="expected the head of scores"):
        read_scores({**HEAD, **change}, BODY, 3)
    with pytest.raises(MessageError, match="expected the head of scores"):
        read_scores({key: value for key, value in HEAD.items() if key not in change}, BODY, 3)


@pytest.mark.parametrize("num_images", [0, 1, 2, 4])
def test_scores_of_other_images_than_were_sent_are_refused(num_images: int) -> None:
    with pytest.raises(MessageError, match=f"expected the scores of {num_images} images"):
        read_scores(HEAD, BODY, num_images)
