"""Frames: what a task and the model host say to each other.

A frame is 16 bytes of header (magic, kind, length of the payload) and the payload: JSON or raw numbers, never
pickle. Whoever receives one names the largest payload that makes sense at that point. A task speaks first::

    task                            host
    HELLO   {version, key, task, model} ─►
                                 ◄─ WELCOME {pid}
                                 ◄─ BEAT … while the model loads, or a batch waits and computes
                                 ◄─ READY   {fingerprint, device, batch_size, self_check}, or ERROR
    PIXELS  uint8 (N, S, S, 3)   ─►
                                 ◄─ BEAT …
                                 ◄─ SCORES  float32, or ERROR {error, message}

One request at a time on a connection: a task that wants two batches in flight opens two.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Iterable
from enum import IntEnum
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt

from nsfw_spark import errors
from nsfw_spark.errors import NsfwSparkError
from nsfw_spark.heads import Predictions

VERSION: Final = 4
MAX_JSON: Final = 65_536  # bytes
_MAGIC: Final = b"NSFW"
_HEADER: Final = struct.Struct("<4sIQ")  # magic, kind, bytes of payload
_SCORES: Final = struct.Struct("<IIIIdd")  # N, C, H, D, encode_seconds, batch_slots
_FLOAT: Final = 4  # bytes of a float32
_MAX_BUFFERS: Final = 512  # in one sendmsg; POSIX systems take 1,024


class FrameError(Exception):
    """What was received is not a frame, or not one that fits here."""


class Kind(IntEnum):
    """What a frame is."""

    HELLO = 1
    WELCOME = 2
    BEAT = 3
    READY = 4
    PIXELS = 5
    SCORES = 6
    ERROR = 7


def send(connection: socket.socket, kind: Kind, payload: Iterable[Any] = ()) -> None:
    """Send a frame whose payload is some buffers in a row, without putting them together first."""
    parts = [memoryview(part).cast("B") for part in payload]
    header = _HEADER.pack(_MAGIC, kind, sum(part.nbytes for part in parts))
    parts.insert(0, memoryview(header))
    while parts:
        sent = connection.sendmsg(parts[:_MAX_BUFFERS])
        while parts and sent >= parts[0].nbytes:
            sent -= parts.pop(0).nbytes
        if sent:
            parts[0] = parts[0][sent:]


def send_json(connection: socket.socket, kind: Kind, **content: Any) -> None:  # noqa: ANN401 - as JSON has it
    """Send a frame whose payload is JSON."""
    send(connection, kind, [json.dumps(content).encode()])


def send_scores(connection: socket.socket, predictions: Predictions) -> None:
    """Send predictions: four counts, two costs, and the arrays that there are."""
    tables = (predictions.class_scores, predictions.other_scores, predictions.embeddings)
    widths = [0 if table is None else table.size // len(predictions) for table in tables]
    head = _SCORES.pack(len(predictions), *widths, predictions.encode_seconds, predictions.batch_slots)
    arrays = (predictions.nsfw_scores, *tables)
    numbers = [np.ascontiguousarray(array, np.float32) for array in arrays if array is not None]
    send(connection, Kind.SCORES, [head, *numbers])


def send_error(connection: socket.socket, error: BaseException) -> None:
    """Send an error: one of this project's as what `errors` calls it, another as a `NsfwSparkError`."""
    ours = next((kind.__name__ for kind in type(error).__mro__ if _is_ours(kind)), None)
    message = str(error)
    if ours is None or isinstance(error, errors.ImageError):  # an image is decoded by its task
        ours, message = "NsfwSparkError", f"unexpected {type(error).__name__} in the model host: {message}"
    # JSON needs up to 12 bytes for a character.
    send_json(connection, Kind.ERROR, error=ours, message=message[: MAX_JSON // 16])


def receive_header(connection: socket.socket) -> tuple[Kind, int] | None:
    """Receive the beginning of a frame.

    Returns:
        Its kind and the bytes of its payload, which are still to be received; None at the end of the stream.

    Raises:
        FrameError: Not a frame, or the stream ends within the header.
    """
    header = bytearray(_HEADER.size)
    num_received = _receive_all(connection, memoryview(header))
    if num_received == 0:
        return None
    magic, kind, length = _HEADER.unpack(header)
    if num_received < len(header) or magic != _MAGIC or kind not in set(Kind):
        raise FrameError(f"expected the header of a frame, got {bytes(header[:num_received])!r}")
    return Kind(kind), length


def receive_into(connection: socket.socket, buffer: memoryview) -> None:
    """Fill a buffer.

    Raises:
        FrameError: The stream ends before.
    """
    if (num_received := _receive_all(connection, buffer)) < buffer.nbytes:
        raise FrameError(f"expected {buffer.nbytes} bytes, got {num_received} and the end of the stream")


def receive_payload(connection: socket.socket, length: int, limit: int) -> bytes:
    """Receive a payload.

    Raises:
        FrameError: It is longer than the limit, or the stream ends before.
    """
    if length > limit:
        raise FrameError(f"a frame announces {length} bytes; expected at most {limit}")
    payload = bytearray(length)
    receive_into(connection, memoryview(payload))
    return bytes(payload)


def read_json(payload: bytes) -> dict[str, Any]:
    """Read a payload of JSON.

    Raises:
        FrameError: Not a JSON object.
    """
    try:
        content = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise FrameError(f"expected JSON: {error}") from error
    if not isinstance(content, dict):
        raise FrameError(f"expected a JSON object, got {type(content).__name__}")
    return content


def read_scores(payload: bytes, num_images: int) -> Predictions:
    """Read the payload of SCORES.

    Raises:
        FrameError: The counts do not fit the length or the images that were sent.
    """
    if len(payload) < _SCORES.size:
        raise FrameError(f"expected at least {_SCORES.size} bytes of scores, got {len(payload)}")
    count, num_classes, num_heads, num_dimensions, encode_seconds, batch_slots = _SCORES.unpack_from(payload)
    expected = _SCORES.size + _FLOAT * count * (1 + num_classes + num_heads + num_dimensions)
    if count != num_images or len(payload) != expected:
        raise FrameError(
            f"expected the scores of {num_images} images, got {len(payload)} bytes for {count} images "
            f"with {num_classes} classes, {num_heads} other heads and {num_dimensions} dimensions"
        )
    numbers = np.frombuffer(payload, np.float32, offset=_SCORES.size)
    ends = count * np.cumsum([1, num_classes, num_heads])
    scores, classes, others, embeddings = np.split(numbers, ends)
    return Predictions(
        scores,
        _table(classes, count, num_classes),
        _table(embeddings, count, num_dimensions),
        encode_seconds,
        batch_slots,
        other_scores=_table(others, count, num_heads),
    )


def read_error(payload: bytes) -> NsfwSparkError:
    """Return the error that a payload of ERROR names."""
    content = read_json(payload)
    message, kind = str(content.get("message")), getattr(errors, str(content.get("error")), None)
    if kind is None or not _is_ours(kind) or kind is errors.ImageError:
        return NsfwSparkError(message)
    return cast("NsfwSparkError", kind(message))


def _is_ours(kind: Any) -> bool:  # noqa: ANN401 - anything that has a name in `errors`
    """Whether this is one of the classes of `errors`, and not another of the same name."""
    is_error = isinstance(kind, type) and issubclass(kind, NsfwSparkError)
    return is_error and getattr(errors, kind.__name__, None) is kind


def _table(numbers: npt.NDArray[np.float32], rows: int, columns: int) -> npt.NDArray[np.float32] | None:
    return numbers.reshape(rows, columns) if columns else None


def _receive_all(connection: socket.socket, buffer: memoryview) -> int:
    """Receive until the buffer is full or the stream ends; return how many bytes came."""
    num_received = 0
    while num_received < buffer.nbytes:
        # MSG_WAITALL: one call, outside the interpreter's lock, for megabytes of pixels.
        num = connection.recv_into(buffer[num_received:], 0, socket.MSG_WAITALL)
        if num == 0:
            break
        num_received += num
    return num_received
