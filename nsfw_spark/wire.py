"""Messages between this process and a child process, over a Unix socket, and a child's environment.

A message is 16 bytes that give two lengths, a head of JSON and a body of raw bytes. It never holds pickles:
a process that an image has taken over must not take over its peer. This module does not know what heads and
bodies mean: `nsfw_spark.host.protocol` and `nsfw_spark.isolation.replies` define that.

`multiprocessing.connection` does not fit: it copies what it receives, and pixels must land in the memory from
which the GPU reads. It also has no timeout inside a message, so a stopped peer would block the other side.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import sys
from collections.abc import Iterable, Mapping
from typing import Any, Final

from nsfw_spark import errors
from nsfw_spark.errors import NsfwSparkError

MAX_HEAD: Final = 65_536  # bytes
_MAGIC: Final = b"NSFW"
_START: Final = struct.Struct("<4sIQ")  # magic, bytes of the head, bytes of the body
_MAX_BUFFERS: Final = 512  # in one sendmsg; POSIX systems take 1,024
_MAX_ERROR: Final = MAX_HEAD // 16  # characters; JSON needs up to 12 bytes for one
_ERRORS: Final = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, NsfwSparkError) and kind is not errors.ImageError
}
"""The errors that a message may carry. `ImageError` has a message of its own: only a decoder may raise it."""


class MessageError(Exception):
    """The received bytes are no message, or the message is not valid at this point."""


def send(connection: socket.socket, head: Mapping[str, Any], body: Iterable[Any] = ()) -> None:
    """Send a message. Its body is given as buffers, which are sent one after the other without a copy."""
    encoded = json.dumps(head).encode()
    buffers = [memoryview(buffer).cast("B") for buffer in body]
    start = _START.pack(_MAGIC, len(encoded), sum(buffer.nbytes for buffer in buffers))
    buffers.insert(0, memoryview(start + encoded))
    while buffers:
        sent = connection.sendmsg(buffers[:_MAX_BUFFERS])
        while buffers and sent >= buffers[0].nbytes:
            sent -= buffers.pop(0).nbytes
        if sent:
            buffers[0] = buffers[0][sent:]


def receive(connection: socket.socket, max_body: int = 0) -> tuple[dict[str, Any], bytes] | None:
    """Receive a message.

    Returns:
        The head and the body, of at most `max_body` bytes; None at the end of the stream.

    Raises:
        MessageError: The bytes are no message, the body is too long, or the stream ends within the message.
    """
    if (message := receive_head(connection)) is None:
        return None
    head, length = message
    if length > max_body:
        raise MessageError(f"a message announces {length} bytes of body; expected at most {max_body}")
    body = bytearray(length)
    receive_into(connection, memoryview(body))
    return head, bytes(body)


def receive_head(connection: socket.socket) -> tuple[dict[str, Any], int] | None:
    """Receive a message up to its body, so that the caller can choose the memory for the body.

    Returns:
        The head, and the length of the body, which `receive_into` must read next; None at the end.
    """
    start = bytearray(_START.size)
    num_received = _fill(connection, memoryview(start))
    if num_received == 0:
        return None
    magic, head_length, body_length = _START.unpack(start)
    if num_received < len(start) or magic != _MAGIC or head_length > MAX_HEAD:
        raise MessageError(f"expected the start of a message, got {bytes(start[:num_received])!r}")
    encoded = bytearray(head_length)
    receive_into(connection, memoryview(encoded))
    try:
        head = json.loads(encoded)
    except (ValueError, RecursionError) as error:
        raise MessageError(f"expected JSON: {error}") from error
    if not isinstance(head, dict):
        raise MessageError(f"expected a JSON object, got {type(head).__name__}")
    return head, body_length


def receive_into(connection: socket.socket, buffer: memoryview) -> None:
    """Fill a buffer from the socket.

    Raises:
        MessageError: The stream ends before the buffer is full.
    """
    if (num_received := _fill(connection, buffer)) < buffer.nbytes:
        raise MessageError(f"expected {buffer.nbytes} bytes, got {num_received} and the end of the stream")


def error_head(error: BaseException, process: str) -> dict[str, str]:
    """Return a head that carries an error; a foreign one becomes a `NsfwSparkError` that names `process`."""
    name = next((kind.__name__ for kind in type(error).__mro__ if _ERRORS.get(kind.__name__) is kind), None)
    if name is None or isinstance(error, errors.ImageError):
        return error_head(NsfwSparkError(f"unexpected {type(error).__name__} in {process}: {error}"), process)
    return {"error": name, "message": str(error)[:_MAX_ERROR]}


def read_error(head: Mapping[str, Any]) -> NsfwSparkError:
    """Return the error that `error_head` described."""
    return _ERRORS.get(str(head.get("error")), NsfwSparkError)(str(head.get("message")))


def child_environment(**changes: str) -> dict[str, str]:
    """Return the environment for a fresh Python interpreter that finds the same packages as this one.

    Children are fresh interpreters, because a fork would inherit threads, CUDA and locks in any state.
    """
    packages = [os.path.abspath(entry) for entry in sys.path if entry]  # noqa: PTH100 - text to text
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(packages),  # includes the files that Spark added for this job
        "PYTHONSAFEPATH": "1",  # excludes the working directory
        **changes,
    }


def _fill(connection: socket.socket, buffer: memoryview) -> int:
    """Receive until the buffer is full or the stream ends; return the number of bytes."""
    num_received = 0
    while num_received < buffer.nbytes:
        # MSG_WAITALL receives megabytes of pixels in one call, without the interpreter's lock.
        num = connection.recv_into(buffer[num_received:], 0, socket.MSG_WAITALL)
        if num == 0:
            break
        num_received += num
    return num_received
