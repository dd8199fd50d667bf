"""Frames: what is sent arrives; what is no frame is a `FrameError`, and costs no memory."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
import tracemalloc
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nsfw_spark import errors
from nsfw_spark.encoders import OutOfMemoryError
from nsfw_spark.errors import (
    ConfigError,
    DeviceError,
    ImageError,
    InputError,
    NsfwSparkError,
    TableError,
    WeightsError,
)
from nsfw_spark.heads import Predictions
from nsfw_spark.host import wire
from nsfw_spark.host.wire import FrameError, Kind

SMALL = 1 << 20  # bytes that a refused frame may cost


class Pair(NamedTuple):
    """Two ends of a connection."""

    here: socket.socket
    there: socket.socket

    def received(self, limit: int = SMALL) -> tuple[Kind, bytes]:
        header = wire.receive_header(self.there)
        assert header is not None
        return header[0], wire.receive_payload(self.there, header[1], limit)


@contextlib.contextmanager
def connected() -> Iterator[Pair]:
    here, there = socket.socketpair()
    with here, there:
        there.settimeout(20)  # a test that waits in vain fails
        yield Pair(here, there)


@pytest.fixture
def pair() -> Iterator[Pair]:
    with connected() as pair:
        yield pair


@contextlib.contextmanager
def small_memory() -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < SMALL
    finally:
        tracemalloc.stop()


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


def scores_payload(sent: Predictions) -> bytes:
    with connected() as pair:
        wire.send_scores(pair.here, sent)
        return pair.received()[1]


@pytest.mark.parametrize("kind", Kind)
def test_a_frame_of_each_kind_arrives_as_it_was_sent(pair: Pair, kind: Kind) -> None:
    parts = [b"one", np.arange(6, dtype=np.uint8).reshape(2, 3), b"", memoryview(b"two")]
    wire.send(pair.here, kind, parts)
    wire.send(pair.here, kind)
    assert pair.received() == (kind, b"one\x00\x01\x02\x03\x04\x05two")
    assert pair.received() == (kind, b"")


def test_the_end_of_the_stream_is_no_frame(pair: Pair) -> None:
    pair.here.close()
    assert wire.receive_header(pair.there) is None


def test_json_arrives_as_it_was_sent(pair: Pair) -> None:
    wire.send_json(pair.here, Kind.HELLO, version=1, key="k", task='"ü\n\0')
    kind, payload = pair.received()
    assert (kind, wire.read_json(payload)) == (Kind.HELLO, {"version": 1, "key": "k", "task": '"ü\n\0'})


@pytest.mark.parametrize("num_images", [1, 2, 64])
@pytest.mark.parametrize("num_classes", [0, 1, 4])
@pytest.mark.parametrize("num_dimensions", [0, 1, 512])
@pytest.mark.parametrize("num_heads", [0, 1, 2])
def test_predictions_arrive_to_the_last_bit(
    num_images: int, num_classes: int, num_dimensions: int, num_heads: int
) -> None:
    sent = predictions(num_images, num_classes, num_dimensions, num_heads)
    got = wire.read_scores(scores_payload(sent), num_images)
    for name in ("nsfw_scores", "class_scores", "embeddings", "other_scores"):
        one, other = getattr(sent, name), getattr(got, name)
        assert (one is None) == (other is None), name
        assert one is None or (one.dtype == other.dtype and np.array_equal(one, other)), name
    assert (got.encode_seconds, got.batch_slots) == (0.25, 16.0)


def test_columns_of_a_larger_array_arrive(pair: Pair) -> None:
    """As a head gives them: a view that is not contiguous."""
    probabilities = np.random.default_rng(0).random((5, 2), np.float32)
    wire.send_scores(pair.here, Predictions(probabilities[:, 1], probabilities))
    got = wire.read_scores(pair.received()[1], 5)
    assert np.array_equal(got.nsfw_scores, probabilities[:, 1])
    assert got.class_scores is not None
    assert np.array_equal(got.class_scores, probabilities)


def test_what_is_no_number_arrives_as_such() -> None:
    sent = Predictions(np.array([np.nan, np.inf, -1], np.float32))
    got = wire.read_scores(scores_payload(sent), 3)
    np.testing.assert_array_equal(got.nsfw_scores, sent.nsfw_scores)


@pytest.mark.parametrize("num_buffers", [511, 512, 513, 2000])
def test_more_buffers_than_the_kernel_takes_arrive_in_order(pair: Pair, num_buffers: int) -> None:
    buffers = [bytes([i % 256]) * (1 + i % 700) for i in range(num_buffers)]
    sender = threading.Thread(target=wire.send, args=(pair.here, Kind.PIXELS, buffers))
    sender.start()  # it is more than the socket holds
    assert pair.received() == (Kind.PIXELS, b"".join(buffers))
    sender.join()


@settings(max_examples=300, deadline=None)
@given(content=st.binary(max_size=200))
@example(content=b"NSFW")
@example(content=struct.pack("<4sIQ", b"NSFW", Kind.READY, 10) + b"{}")
@example(content=struct.pack("<4sIQ", b"NSFW", Kind.READY, 2**64 - 1))
@example(content=struct.pack("<4sIQ", b"NSFW", 0, 0))
@example(content=struct.pack("<4sIQ", b"NSFW", 8, 0))
@example(content=struct.pack("<4sIQ", b"nsfw", Kind.READY, 0))
def test_random_bytes_are_a_frame_error_or_a_frame(content: bytes) -> None:
    with connected() as pair:
        pair.here.sendall(content)
        pair.here.close()
        with small_memory(), contextlib.suppress(FrameError):
            while (header := wire.receive_header(pair.there)) is not None:
                wire.receive_payload(pair.there, header[1], 100)


@pytest.mark.parametrize("content", [b"N", b"NSFW" + bytes(11), bytes(16), b"GET / HTTP/1.1\r\n"])
def test_what_is_no_header_is_a_frame_error(pair: Pair, content: bytes) -> None:
    pair.here.sendall(content)
    pair.here.close()
    with pytest.raises(FrameError, match="expected the header of a frame"):
        wire.receive_header(pair.there)


def test_a_stream_that_ends_within_a_payload_is_a_frame_error(pair: Pair) -> None:
    pair.here.sendall(b"half")
    pair.here.close()
    with pytest.raises(FrameError, match=r"expected 8 bytes, got 4"):
        wire.receive_payload(pair.there, 8, 100)


@pytest.mark.parametrize("length", [101, 2**40, 2**64 - 1])
def test_a_length_beyond_the_limit_is_a_frame_error_at_once(pair: Pair, length: int) -> None:
    with small_memory(), pytest.raises(FrameError, match=f"announces {length} bytes; expected at most 100"):
        wire.receive_payload(pair.there, length, 100)


@pytest.mark.parametrize(
    "payload",
    [b"", b"{", b"[1]", b"null", b"\xff\xfe{", b'{"a": 1}x', b"[" * 60_000, b"1" * 60_000],
    ids=lambda payload: repr(payload[:8]),
)
def test_what_is_no_json_object_is_a_frame_error(payload: bytes) -> None:
    with pytest.raises(FrameError, match="expected"):
        wire.read_json(payload)


VALID = scores_payload(predictions(3, 2, 4, 1))


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_mutated_scores_are_a_frame_error_or_have_the_right_shape(data: st.DataObject) -> None:
    payload = bytearray(VALID)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(payload) - 1))
        payload[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
        payload = payload or bytearray(b"x")
    with small_memory(), contextlib.suppress(FrameError):
        got = wire.read_scores(bytes(payload), 3)
        assert got.nsfw_scores.shape == (3,)
        assert got.class_scores is None or len(got.class_scores) == 3
        assert got.embeddings is None or len(got.embeddings) == 3
        assert got.other_scores is None or len(got.other_scores) == 3


@pytest.mark.parametrize(
    "counts",
    [
        (4, 2, 1, 4),
        (2, 2, 1, 4),
        (0, 2, 1, 4),
        (3, 2, 1, 5),
        (3, 2, 2, 4),
        (3, 2**32 - 1, 2**32 - 1, 2**32 - 1),
        (2**32 - 1, 2, 1, 4),
    ],
)
def test_counts_that_do_not_fit_are_a_frame_error(counts: tuple[int, int, int, int]) -> None:
    payload = struct.pack("<IIII", *counts) + VALID[16:]
    with small_memory(), pytest.raises(FrameError, match="expected the scores of 3 images"):
        wire.read_scores(payload, 3)


@pytest.mark.parametrize("num_images", [0, 1, 2, 4])
def test_scores_of_other_images_than_were_sent_are_a_frame_error(num_images: int) -> None:
    with pytest.raises(FrameError, match=f"expected the scores of {num_images} images"):
        wire.read_scores(VALID, num_images)


@pytest.mark.parametrize(
    "kind", [NsfwSparkError, ConfigError, InputError, TableError, WeightsError, DeviceError]
)
def test_an_error_of_the_project_travels_as_itself(pair: Pair, kind: type[NsfwSparkError]) -> None:
    wire.send_error(pair.here, kind("what was got, what was expected: 'ä'"))
    error = wire.read_error(pair.received()[1])
    assert (type(error), str(error)) == (kind, "what was got, what was expected: 'ä'")


def test_an_error_of_a_kind_of_the_projects_errors_travels_as_that_kind(pair: Pair) -> None:
    wire.send_error(pair.here, OutOfMemoryError("a batch of 1 images does not fit into cuda:0"))
    error = wire.read_error(pair.received()[1])
    assert type(error) is DeviceError
    assert "a batch of 1 images does not fit into cuda:0" in str(error)


@pytest.mark.parametrize(
    "error", [RuntimeError("why"), ImageError("crashed", "why"), MemoryError("why"), KeyboardInterrupt("why")]
)
def test_another_error_is_named(pair: Pair, error: BaseException) -> None:
    wire.send_error(pair.here, error)
    got = wire.read_error(pair.received()[1])
    assert type(got) is NsfwSparkError
    assert type(error).__name__ in str(got)
    assert "why" in str(got)


def test_an_error_of_the_same_name_from_elsewhere_is_not_ours(pair: Pair) -> None:
    class WeightsError(Exception):  # as any library might have one
        pass

    wire.send_error(pair.here, WeightsError("why"))
    assert type(wire.read_error(pair.received()[1])) is NsfwSparkError


@pytest.mark.parametrize("letter", ["x", "\0", "ü", "漢", "🙈", "\udcff"])
def test_a_long_message_is_cut_to_what_a_task_takes(pair: Pair, letter: str) -> None:
    wire.send_error(pair.here, DeviceError(letter * 100_000))
    error = wire.read_error(pair.received(wire.MAX_JSON)[1])
    assert str(error).startswith(letter * 1000)


@settings(max_examples=300, deadline=None)
@given(name=st.sampled_from([*vars(errors), ""]) | st.text())
def test_an_error_that_is_read_is_one_of_ours_and_never_marks_an_image(name: str) -> None:
    payload = json.dumps({"error": name, "message": "why"}).encode()
    error = wire.read_error(payload)
    assert isinstance(error, NsfwSparkError)
    assert not isinstance(error, ImageError)


@settings(max_examples=200, deadline=None)
@given(payload=st.binary(max_size=100) | st.sampled_from([b"{}", b'{"error": null}', b'{"error": []}']))
def test_an_error_that_is_no_json_is_a_frame_error(payload: bytes) -> None:
    with contextlib.suppress(FrameError):
        assert isinstance(wire.read_error(payload), NsfwSparkError)
