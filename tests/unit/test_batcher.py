"""The batcher: requests of many tasks become batches, and each task gets its own scores back."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import numpy as np
import numpy.typing as npt
import pytest

from nsfw_spark import DeviceError, WeightsError, wire
from nsfw_spark.encoders import Encoded, OutOfMemoryError
from nsfw_spark.heads import Predictions
from nsfw_spark.host import HostSpec, Owner
from nsfw_spark.host.batcher import Batcher
from nsfw_spark.host.protocol import VERSION
from nsfw_spark.host.server import serve
from nsfw_spark.model import Model, ModelSpec
from tests.fakes import FakeEncoder, FakeHead, card

WAIT = 30.0  # seconds that a test waits before it fails
LINGER = 0.005  # seconds that the batcher waits for more requests
TOO_LARGE, BROKEN = 254, 255  # greys of no other request in a test


class BreakdownError(Exception):
    """An unexpected error of a model."""


class GatedEncoder(FakeEncoder):
    """Begins a batch only while `gate` is set, and reads its pixels as late as a GPU does.

    An image of grey TOO_LARGE does not fit into its memory, one of BROKEN breaks it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.is_at_gate = threading.Event(), threading.Event()
        self.gate.set()

    def start(self, parts: Sequence[npt.NDArray[np.uint8]]) -> Callable[[], Encoded]:
        self.is_at_gate.set()
        assert self.gate.wait(WAIT)
        if any((part == BROKEN).any() for part in parts):
            raise BreakdownError
        if any((part == TOO_LARGE).any() for part in parts):
            raise OutOfMemoryError("it does not fit")
        start = super().start

        def finish() -> Encoded:
            return start(parts)()  # the pixels must still be the same

        return finish


@contextmanager
def running(encoder: GatedEncoder, num_connections: int = 1, batch_size: int = 16) -> Iterator[Batcher]:
    """Yield a running batcher; end its thread by breaking the model."""
    batcher = Batcher(lambda: Model(encoder, FakeHead(), "fingerprint", batch_size))

    def run() -> None:
        with suppress(BreakdownError):
            batcher.run()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    batcher.loaded.result(WAIT)
    batcher.count_connection(num_connections)
    try:
        yield batcher
    finally:
        encoder.gate.set()
        batcher.submit(greys(BROKEN))
        thread.join(WAIT)
        assert not thread.is_alive()


def greys(value: int, num_images: int = 1) -> npt.NDArray[np.uint8]:
    return np.full((num_images, 2, 2, 3), value, np.uint8)


def values(predictions: Predictions) -> list[int]:
    return [round(score * 255) for score in predictions.nsfw_scores.tolist()]


@pytest.mark.parametrize(
    ("sizes", "batches"),
    [
        ([4, 4, 4, 4], [16]),
        ([4, 4, 4, 4, 4, 4], [16, 8]),
        ([6, 6, 6], [12, 6]),
        ([10, 10, 1], [10, 11]),
        ([16, 16], [16, 16]),
        ([1] * 40, [16, 16, 8]),
        ([20, 3], [16, 4, 3]),  # a request that was formed before the batch size shrank
    ],
)
def test_requests_of_several_tasks_become_batches_that_are_full_and_no_fuller(
    sizes: list[int], batches: list[int]
) -> None:
    encoder = GatedEncoder()
    encoder.gate.clear()
    with running(encoder, num_connections=len(sizes) + 1) as batcher:
        first = batcher.submit(greys(0))
        assert encoder.is_at_gate.wait(WAIT)
        requests = [batcher.submit(greys(i + 1, size)) for i, size in enumerate(sizes)]
        encoder.gate.set()
        assert values(first.result(WAIT)) == [0]
        for i, (size, request) in enumerate(zip(sizes, requests, strict=True)):
            assert values(request.result(WAIT)) == [i + 1] * size
        assert sorted(encoder.batches) == sorted([1, *batches])


def test_each_of_8_tasks_gets_its_own_scores_in_order() -> None:
    encoder = GatedEncoder()

    def task(number: int) -> int:
        rng, buffer, total = np.random.default_rng(number), np.empty((16, 2, 2, 3), np.uint8), 0
        for _ in range(100):
            pixels = buffer[: rng.integers(1, 17)]  # the same memory each time, as for a connection
            wanted = [number * 31 + i for i in range(len(pixels))]
            pixels[:] = np.array(wanted, np.uint8)[:, None, None, None]
            assert values(batcher.submit(pixels).result(WAIT)) == wanted
            total += len(wanted)
        return total

    with running(encoder, num_connections=8) as batcher, ThreadPoolExecutor(8) as pool:
        total = sum(pool.map(task, range(8)))
        assert sum(encoder.batches) == total
        assert max(encoder.batches) <= 16
        assert len(encoder.batches) < 8 * 100, "requests of several tasks share batches"


def test_a_batch_costs_its_tasks_what_it_cost_in_all() -> None:
    encoder = GatedEncoder()
    encoder.gate.clear()
    with running(encoder, num_connections=4) as batcher:
        first = batcher.submit(greys(0))
        assert encoder.is_at_gate.wait(WAIT)
        requests = [batcher.submit(greys(1, size)) for size in (2, 6)]
        encoder.gate.set()
        first.result(WAIT)
        small, large = (request.result(WAIT) for request in requests)
        assert (small.batch_slots, large.batch_slots) == (4.0, 12.0), "8 images in a batch of 16"
        assert small.encode_seconds * 3 == pytest.approx(large.encode_seconds)
        assert large.encode_seconds > 0


def shortest_wait(num_connections: int) -> float:
    """Return the shortest time of a lone request in many tries: its wait on an idle machine too."""
    with running(GatedEncoder(), num_connections) as batcher:
        seconds = []
        for _ in range(50):
            started = time.monotonic()
            batcher.submit(greys(1)).result(WAIT)
            seconds.append(time.monotonic() - started)
        return min(seconds)


def test_a_request_waits_a_little_for_those_of_others() -> None:
    assert shortest_wait(num_connections=2) >= LINGER


def test_a_request_does_not_wait_where_nobody_else_is() -> None:
    assert shortest_wait(num_connections=1) < LINGER


def test_a_request_that_nobody_waits_for_any_more_is_not_computed() -> None:
    encoder = GatedEncoder()
    encoder.gate.clear()
    with running(encoder, num_connections=4) as batcher:
        first = batcher.submit(greys(0))
        assert encoder.is_at_gate.wait(WAIT)
        gone, here = batcher.submit(greys(1, 5)), batcher.submit(greys(2, 3))
        assert gone.cancel()
        assert not first.cancel(), "it is being computed"
        encoder.gate.set()
        assert values(here.result(WAIT)) == [2, 2, 2]
        assert encoder.batches == [1, 3]


def test_it_tells_for_how_long_it_is_at_a_batch() -> None:
    encoder = GatedEncoder()
    encoder.gate.clear()
    with running(encoder) as batcher:
        assert batcher.busy_seconds() == 0
        request = batcher.submit(greys(0))
        assert encoder.is_at_gate.wait(WAIT)
        deadline = time.monotonic() + WAIT
        while batcher.busy_seconds() < 0.05:
            assert time.monotonic() < deadline
        encoder.gate.set()
        request.result(WAIT)
        assert batcher.busy_seconds() == 0


@pytest.mark.parametrize("error", [WeightsError("absent"), DeviceError("none"), RuntimeError("a bug")])
def test_what_went_wrong_when_loading_is_what_the_tasks_get(error: Exception) -> None:
    def load() -> Model:
        raise error

    batcher = Batcher(load)
    batcher.run()
    assert batcher.loaded.exception(0) is error


def test_an_image_that_does_not_fit_is_its_tasks_error_and_the_next_one_is_computed() -> None:
    with running(GatedEncoder()) as batcher:
        with pytest.raises(OutOfMemoryError):
            batcher.submit(greys(TOO_LARGE)).result(WAIT)
        assert values(batcher.submit(greys(3, 2)).result(WAIT)) == [3, 3]
        assert batcher.busy_seconds() == 0


def test_an_image_that_does_not_fit_is_no_error_of_those_who_share_its_batch() -> None:
    encoder = GatedEncoder()
    encoder.gate.clear()
    with running(encoder, num_connections=4) as batcher:
        first = batcher.submit(greys(0))
        assert encoder.is_at_gate.wait(WAIT)
        before, large, after = (batcher.submit(greys(value, 2)) for value in (1, TOO_LARGE, 2))
        encoder.gate.set()
        first.result(WAIT)
        with pytest.raises(OutOfMemoryError):
            large.result(WAIT)
        assert (values(before.result(WAIT)), values(after.result(WAIT))) == ([1, 1], [2, 2])


def test_a_model_that_breaks_ends_it() -> None:
    batcher = Batcher(lambda: Model(GatedEncoder(), FakeHead(), "fingerprint", 16))
    request = batcher.submit(greys(BROKEN))
    with pytest.raises(BreakdownError):
        batcher.run()
    assert not request.done(), "the process ends, and its task sees that"


def test_a_model_that_hangs_gives_no_sign_of_life() -> None:
    """So its task can tell a hang from a long batch, and kill the host."""
    encoder = GatedEncoder()
    encoder.gate.clear()
    spec = HostSpec((ModelSpec(card(preprocessing={"size": 2})),), Owner("a test"), timeout_seconds=0.4)
    here, there = socket.socketpair()
    with running(encoder, num_connections=0) as batcher, here:
        serving = threading.Thread(target=serve, args=(there, "key", spec, [batcher]), daemon=True)
        serving.start()
        here.settimeout(WAIT)
        wire.send(here, {"kind": "hello", "version": VERSION, "key": "key", "task": "a test", "model": 0})
        assert [received(here) for _ in range(2)] == ["welcome", "ready"]
        wire.send(here, {"kind": "pixels"}, [greys(7)])
        assert received(here) == "beat", "it is busy"
        here.settimeout(2.0)
        with pytest.raises(TimeoutError):
            [received(here) for _ in range(100)]  # some may be in flight
        encoder.gate.set()
        here.settimeout(WAIT)
        assert received(here) == "scores"
        here.close()
        serving.join(WAIT)


def received(connection: socket.socket) -> str:
    message = wire.receive(connection, 100)
    assert message is not None
    return str(message[0]["kind"])
