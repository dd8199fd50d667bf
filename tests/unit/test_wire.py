"""Messages arrive as they were sent; other bytes raise a `MessageError` and cost no memory."""

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

from nsfw_spark import errors, wire
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
from nsfw_spark.wire import MessageError

SMALL = 1 << 20  # bytes that a refused message may cost
EMPTY = (2, 0)  # lengths of the head {} and of no body


class Pair(NamedTuple):
    """Two ends of a connection."""

    here: socket.socket
    there: socket.socket

    def refuses(self, content: bytes, match: str, max_body: int = 100) -> None:
        """Send bytes and the end of the stream; the other end must refuse them, without memory for them."""
        self.here.sendall(content)
        self.here.close()
        with small_memory(), pytest.raises(MessageError, match=match):
            wire.receive(self.there, max_body)


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


def start(head_length: int, body_length: int) -> bytes:
    return struct.pack("<4sIQ", b"NSFW", head_length, body_length)


def test_messages_arrive_whole_and_in_order_and_then_the_end(pair: Pair) -> None:
    body = [b"one", np.arange(6, dtype=np.uint8).reshape(2, 3), b"", memoryview(b"two")]
    wire.send(pair.here, {"number": 1, "text": '"ü\n\0'}, body)
    wire.send(pair.here, {})
    pair.here.close()
    assert wire.receive(pair.there, 12) == (
        {"number": 1, "text": '"ü\n\0'},
        b"one\x00\x01\x02\x03\x04\x05two",
    )
    assert wire.receive(pair.there) == ({}, b"")
    assert wire.receive(pair.there) is None


def test_a_body_arrives_in_the_memory_of_the_receiver(pair: Pair) -> None:
    pixels, received = np.arange(12, dtype=np.uint8).reshape(2, 2, 3), np.zeros((2, 2, 3), np.uint8)
    wire.send(pair.here, {"kind": "pixels"}, [pixels])
    assert wire.receive_head(pair.there) == ({"kind": "pixels"}, 12)
    wire.receive_into(pair.there, received.data.cast("B"))
    assert np.array_equal(received, pixels)


@pytest.mark.parametrize("num_buffers", [511, 512, 513, 2000])
def test_more_buffers_than_the_kernel_takes_arrive_in_order(pair: Pair, num_buffers: int) -> None:
    buffers = [bytes([i % 256]) * (1 + i % 700) for i in range(num_buffers)]
    sender = threading.Thread(target=wire.send, args=(pair.here, {}, buffers))
    sender.start()  # it is more than the socket holds
    assert wire.receive(pair.there, SMALL) == ({}, b"".join(buffers))
    sender.join()


@settings(max_examples=300, deadline=None)
@given(content=st.binary(max_size=200))
@example(content=b"NSFW")
@example(content=start(*EMPTY) + b"{}")
@example(content=start(2, 10) + b"{}short")
@example(content=start(2, 2**64 - 1) + b"{}")
@example(content=start(2**32 - 1, 0))
@example(content=struct.pack("<4sIQ", b"nsfw", *EMPTY))
def test_random_bytes_are_a_message_error_or_a_message(content: bytes) -> None:
    with connected() as pair:
        pair.here.sendall(content)
        pair.here.close()
        with small_memory(), contextlib.suppress(MessageError):
            while wire.receive(pair.there, 100) is not None:
                pass


@pytest.mark.parametrize(
    "content", [b"N", b"NSFW" + bytes(11), bytes(16), b"GET / HTTP/1.1\r\n", start(65_537, 0)]
)
def test_what_is_no_start_of_a_message_is_refused(pair: Pair, content: bytes) -> None:
    pair.refuses(content, "expected the start of a message")


@pytest.mark.parametrize("content", [start(8, 0) + b"half", start(2, 8) + b"{}half"])
def test_a_stream_that_ends_within_a_message_is_refused(pair: Pair, content: bytes) -> None:
    pair.refuses(content, "expected 8 bytes, got 4")


@pytest.mark.parametrize("length", [101, 2**40, 2**64 - 1])
def test_a_body_beyond_the_limit_is_refused_at_once(pair: Pair, length: int) -> None:
    pair.refuses(start(2, length) + b"{}", f"announces {length} bytes of body; expected at most 100")


@pytest.mark.parametrize(
    "head",
    [b"", b"{", b"[1]", b"null", b"\xff\xfe{", b'{"a": 1}x', b"[" * 60_000, b"1" * 60_000],
    ids=lambda head: repr(head[:8]),
)
def test_what_is_no_json_object_is_refused(pair: Pair, head: bytes) -> None:
    pair.refuses(start(len(head), 0) + head, "expected")


def sent_error(error: BaseException) -> NsfwSparkError:
    """Return an error as it arrives."""
    with connected() as pair:
        wire.send(pair.here, wire.error_head(error, "a test"))
        message = wire.receive(pair.there)
        assert message is not None
        return wire.read_error(message[0])


@pytest.mark.parametrize(
    "kind", [NsfwSparkError, ConfigError, InputError, TableError, WeightsError, DeviceError]
)
def test_an_error_of_the_project_travels_as_itself(kind: type[NsfwSparkError]) -> None:
    error = sent_error(kind("what was got, what was expected: 'ä'"))
    assert (type(error), str(error)) == (kind, "what was got, what was expected: 'ä'")


def test_an_error_of_a_kind_of_the_projects_errors_travels_as_that_kind() -> None:
    error = sent_error(OutOfMemoryError("a batch of 1 images does not fit into cuda:0"))
    assert type(error) is DeviceError
    assert "a batch of 1 images does not fit into cuda:0" in str(error)


@pytest.mark.parametrize(
    "error", [RuntimeError("why"), ImageError("crashed", "why"), MemoryError("why"), KeyboardInterrupt("why")]
)
def test_another_error_is_named(error: BaseException) -> None:
    found = sent_error(error)
    assert type(found) is NsfwSparkError
    assert str(found) == f"unexpected {type(error).__name__} in a test: why"


def test_an_error_of_the_same_name_from_elsewhere_is_not_ours() -> None:
    class WeightsError(Exception):  # as any library might have one
        pass

    assert type(sent_error(WeightsError("why"))) is NsfwSparkError


@pytest.mark.parametrize("letter", ["x", "\0", "ü", "漢", "🙈", "\udcff"])
def test_a_long_message_is_cut_to_what_a_head_may_hold(letter: str) -> None:
    assert str(sent_error(DeviceError(letter * 100_000))).startswith(letter * 1000)


@settings(max_examples=300, deadline=None)
@given(name=st.sampled_from([*vars(errors), "", None, []]) | st.text())
def test_an_error_that_is_read_is_one_of_ours_and_never_marks_an_image(name: object) -> None:
    error = wire.read_error(json.loads(json.dumps({"error": name, "message": "why"})))
    assert isinstance(error, NsfwSparkError)
    assert not isinstance(error, ImageError)
