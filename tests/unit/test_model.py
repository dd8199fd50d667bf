"""The model: batches that do not fit are halved, and the size of a GPU's batches is found by trying."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nsfw_spark import DeviceError
from nsfw_spark.encoders import Encoded, OutOfMemoryError
from nsfw_spark.heads import Predictions
from nsfw_spark.model import Model, fastest_batch_size
from tests.fakes import FakeEncoder, FakeHead


class SmallEncoder(FakeEncoder):
    """Has memory for `capacity` images, and tells a clock how long a batch took: `seconds` of its size."""

    def __init__(self, capacity: int, seconds: Callable[[int], float] = float) -> None:
        super().__init__()
        self.capacity = capacity
        self.now = 0.0
        self._seconds = seconds

    def start(self, parts: Sequence[npt.NDArray[np.uint8]]) -> Callable[[], Encoded]:
        num_images = sum(len(part) for part in parts)
        if num_images > self.capacity:
            raise OutOfMemoryError(f"a batch of {num_images} images does not fit into {self.device}")
        self.now += self._seconds(num_images)
        return super().start(parts)

    def clock(self) -> float:
        return self.now


def small_model(capacity: int, batch_size: int = 16) -> tuple[Model, SmallEncoder]:
    encoder = SmallEncoder(capacity)
    return Model(encoder, FakeHead(), "fingerprint", batch_size), encoder


def greys(*values: int) -> npt.NDArray[np.uint8]:
    """Return an image of 2 x 2 pixels for each value; `FakeEncoder` gives it the score value / 255."""
    return np.repeat(np.array(values, np.uint8), 12).reshape(-1, 2, 2, 3)


def values(predictions: Predictions) -> list[int]:
    """Return which grey each image was, by its score."""
    return [round(score * 255) for score in predictions.nsfw_scores.tolist()]


@pytest.mark.parametrize(
    ("capacity", "num_images", "warnings"),
    [
        (16, 16, 0),
        (15, 16, 1),
        (8, 16, 1),
        (5, 16, 2),
        (1, 16, 4),
        (4, 7, 1),
        (2, 15, 3),
        (1, 3, 1),
        (3, 3, 0),
    ],
)
def test_a_batch_that_does_not_fit_is_halved_until_it_does(
    capacity: int, num_images: int, warnings: int, caplog: pytest.LogCaptureFixture
) -> None:
    model, encoder = small_model(capacity)
    images = list(range(num_images))
    assert values(model.predict(greys(*images))) == images
    assert model.batch_size == (16 if warnings == 0 else num_images >> warnings)
    assert sum(encoder.batches) == num_images, "no image is encoded twice"
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * warnings


def test_a_smaller_batch_size_stays_and_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    model, encoder = small_model(capacity=4)
    for _ in range(3):
        assert values(model.predict(greys(*range(16)))) == list(range(16))
    assert encoder.batches == [4] * 12
    assert [record.getMessage() for record in caplog.records] == [
        "a batch of 16 images does not fit into cpu; from now on 8 at once",
        "a batch of 8 images does not fit into cpu; from now on 4 at once",
    ]


@settings(max_examples=100, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=8),
    batch_size=st.integers(1, 40),
    capacity=st.integers(1, 40),
)
def test_parts_of_any_size_give_their_scores_in_order(
    sizes: list[int], batch_size: int, capacity: int
) -> None:
    model, encoder = small_model(capacity, batch_size)
    images = list(range(sum(sizes)))
    parts = np.split(greys(*images), np.cumsum(sizes)[:-1])
    predictions = model.start(parts)()
    assert values(predictions) == images
    assert predictions.embeddings is not None
    assert np.array_equal(predictions.embeddings[:, 0], predictions.nsfw_scores)
    assert max(encoder.batches) <= min(capacity, batch_size)
    assert predictions.batch_slots >= len(images)


def test_one_image_that_does_not_fit_is_an_error() -> None:
    model, encoder = small_model(capacity=0)
    with pytest.raises(OutOfMemoryError, match="a batch of 1 images does not fit into cpu") as error:
        model.predict(greys(1, 2, 3, 4))
    assert isinstance(error.value, DeviceError)
    encoder.capacity = 16
    assert values(model.predict(greys(5, 6))) == [5, 6], "the model goes on"


def test_costs_are_shared_by_rows() -> None:
    arrays = [np.arange(8 * columns, dtype=np.float32).reshape(8, columns) for columns in (1, 2, 3)]
    whole = Predictions(
        arrays[0][:, 0], arrays[1], arrays[2], encode_seconds=8.0, batch_slots=16.0, wait_seconds=4.0
    )
    assert whole.rows(2, 5).other_scores is None
    whole = replace(whole, other_scores=arrays[1])
    part = whole.rows(2, 5)
    assert part.other_scores is not None
    assert np.array_equal(part.other_scores, arrays[1][2:5])
    assert part.nsfw_scores.tolist() == [2, 3, 4]
    assert part.class_scores is not None
    assert np.array_equal(part.class_scores, arrays[1][2:5])
    assert part.embeddings is not None
    assert np.array_equal(part.embeddings, arrays[2][2:5])
    assert (part.encode_seconds, part.batch_slots, part.wait_seconds) == (3.0, 6.0, 1.5)
    assert Predictions(np.zeros(2, np.float32)).rows(0, 1).class_scores is None


def test_empty_batches_keep_their_place() -> None:
    model, encoder = small_model(capacity=16)
    none = greys()
    batches = [none, greys(1, 2), none, none, greys(3), none]
    assert [values(predictions) for predictions in model.predict_each(batches)] == [
        [],
        [1, 2],
        [],
        [],
        [3],
        [],
    ]
    assert encoder.batches == [2, 1]
    assert list(model.predict_each([])) == []


def test_batches_are_taken_as_they_are_needed() -> None:
    model, _ = small_model(capacity=16)
    taken: list[int] = []

    def batches() -> Iterator[list[npt.NDArray[np.uint8]]]:
        for value in range(9):
            taken.append(value)
            yield list(greys(value))

    assert values(next(model.predict_each(batches()))) == [0]
    assert len(taken) <= 3


def found(encoder: SmallEncoder, sizes: Sequence[int] = (32, 64, 128, 256)) -> tuple[int, Model]:
    model = Model(encoder, FakeHead(), "fingerprint", 1)
    return fastest_batch_size(model, 2, sizes, encoder.clock), model


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (lambda num_images: num_images * 1.0, 32),  # all the same
        (lambda num_images: 100.0 + num_images, 256),  # larger is always better
        (
            lambda num_images: num_images / (1.0 if num_images < 128 else 2.0),
            32,
        ),  # it does not look past a step
        (lambda num_images: num_images / min(num_images, 64), 64),
        (lambda num_images: num_images / (1.04 if num_images == 64 else 1.0), 64),
        (lambda num_images: num_images / (1.02 if num_images == 64 else 1.0), 32),
        (lambda num_images: num_images * num_images * 1.0, 32),  # larger is worse
    ],
)
def test_the_last_size_that_is_3_percent_faster_is_taken(
    seconds: Callable[[int], float], expected: int
) -> None:
    assert found(SmallEncoder(1000, seconds))[0] == expected


@pytest.mark.parametrize(
    ("capacity", "expected"), [(255, 128), (100, 64), (64, 64), (32, 32), (20, 16), (1, 1)]
)
def test_a_size_that_does_not_fit_ends_the_search(
    capacity: int, expected: int, caplog: pytest.LogCaptureFixture
) -> None:
    encoder = SmallEncoder(capacity, lambda num_images: 100.0 + num_images)
    size, model = found(encoder)
    assert size == expected
    assert max(encoder.batches) <= capacity
    assert "does not fit" in caplog.text
    model.batch_size = size  # as load_model does
    caplog.clear()
    assert len(model.predict(greys(*range(256)))) == 256
    assert not caplog.records, "it fits"


def test_a_device_that_has_no_room_for_one_image_ends_the_search_with_an_error() -> None:
    with pytest.raises(OutOfMemoryError):
        found(SmallEncoder(0))
