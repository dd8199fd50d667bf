"""Messages: what a scorer's process and the child that decodes for it say to each other.

A message is 12 bytes that tell two lengths, a head of JSON, and a body of raw bytes, never pickle: a child
that an image has taken over must not take over its parent. The child speaks first::

    parent                                   child
                                             ◄─ {}: it is ready
    {preprocessing, options}, content        ─►
                                             ◄─ {header, views, frames}, pixels uint8 (V, S, S, 3)
                                                or {header, status, message}: an `ImageError`
                                                or {unexpected}: a defect of this project
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Mapping
from typing import Any, BinaryIO, Final, get_args

import numpy as np
import numpy.typing as npt

from nsfw_spark.decode import CENTRE, MOST_VIEWS, DecodedImage, View
from nsfw_spark.errors import ImageError, ImageHeader, NsfwSparkError, Status

_LENGTHS: Final = struct.Struct("<IQ")  # bytes of head and body
_MAX_HEAD: Final = 65_536  # bytes
_MAX_WORDS: Final = 1_000  # characters of somebody else's error
_FAILURES: Final = tuple(status for status in get_args(Status) if status != "ok")


class MessageError(Exception):
    """What was received is not a message, or ends within one."""


def send(connection: socket.socket, head: Mapping[str, Any], body: bytes | memoryview = b"") -> None:
    """Send a message."""
    encoded = json.dumps(head).encode()
    connection.sendall(_LENGTHS.pack(len(encoded), len(body)) + encoded)
    connection.sendall(body)


def receive(stream: BinaryIO, max_body: int) -> tuple[dict[str, Any], bytes] | None:
    """Receive a message.

    Args:
        stream: The connection, buffered.
        max_body: Bytes of the longest body that makes sense.

    Returns:
        Its head and body; None at the end of the stream.

    Raises:
        MessageError: Not a message, or too long, or the stream ends within it.
    """
    if not (lengths := stream.read(_LENGTHS.size)):
        return None
    if len(lengths) < _LENGTHS.size:
        raise MessageError(f"expected {_LENGTHS.size} bytes of lengths, got {len(lengths)}")
    head_length, body_length = _LENGTHS.unpack(lengths)
    if head_length > _MAX_HEAD or body_length > max_body:
        raise MessageError(
            f"got {head_length} bytes of head and {body_length} of body announced; expected at most "
            f"{_MAX_HEAD} and {max_body}"
        )
    encoded, body = stream.read(head_length), stream.read(body_length)
    if len(encoded) < head_length or len(body) < body_length:
        raise MessageError("the stream ends within a message")
    try:
        head = json.loads(encoded)
    except (ValueError, RecursionError) as error:
        raise MessageError(f"expected JSON: {error}") from error
    if not isinstance(head, dict):
        raise MessageError(f"expected a JSON object, got {type(head).__name__}")
    return head, body


def reply_of(outcome: DecodedImage | Exception) -> tuple[dict[str, Any], bytes | memoryview]:
    """Return the head and body that tell what became of an image."""
    if isinstance(outcome, Exception) and not isinstance(outcome, ImageError):
        return {"unexpected": f"{type(outcome).__name__}: {outcome}"[:_MAX_WORDS]}, b""
    header = outcome.header
    head: dict[str, Any] = {"header": header and [header.width, header.height, header.format]}
    if isinstance(outcome, DecodedImage):
        views = {"views": [view.name for view in outcome.further], "frames": outcome.num_frames}
        pixels = [outcome.pixels, *(view.pixels for view in outcome.further)]
        return {**head, **views}, np.stack(pixels).data.cast("B")
    return {**head, "status": outcome.status, "message": outcome.message}, b""


def read_reply(
    head: Mapping[str, Any], body: bytes, shape: tuple[int, int, int]
) -> DecodedImage | ImageError:
    """Return what became of an image.

    Args:
        head: Of the reply.
        body: Of the reply.
        shape: Of the pixels that are expected, of one view.

    Raises:
        MessageError: It is no reply.
        NsfwSparkError: A defect of this project, or of the installation, came to light.
    """
    if "unexpected" in head:
        raise NsfwSparkError(f"unexpected error where an image is decoded: {head['unexpected']}")
    try:
        header = None
        if head["header"] is not None:
            width, height, format_ = head["header"]
            header = ImageHeader(int(width), int(height), str(format_))
        if header is not None and "status" not in head:
            return _decoded(head, np.frombuffer(body, np.uint8).reshape(-1, *shape), header)
        status, message = head["status"], str(head["message"])
    except (KeyError, TypeError, ValueError) as error:
        raise MessageError(f"expected a reply: {error!r}") from error
    if status not in _FAILURES:
        raise MessageError(f"expected the status of a failure, got {status!r}")
    return ImageError(status, message, header)


def _decoded(head: Mapping[str, Any], pixels: npt.NDArray[np.uint8], header: ImageHeader) -> DecodedImage:
    """Return a decoded image.

    Args:
        head: Of the reply.
        pixels: uint8, shape (V, S, S, 3).
        header: The image's.

    Raises:
        KeyError: It is no reply.
        TypeError: It is no reply.
        ValueError: It is no reply.
    """
    names, num_frames = [CENTRE, *head["views"]], head["frames"]
    if not all(isinstance(name, str) and name.isascii() for name in names):
        raise ValueError(f"expected names of views, got {names!r:.100}")
    if not isinstance(num_frames, int) or not 1 <= num_frames <= MOST_VIEWS:
        raise ValueError(f"expected a number of frames, got {num_frames!r:.100}")
    first, *further = (View(name, view) for name, view in zip(names, pixels, strict=True))
    return DecodedImage(first.pixels, header, tuple(further), num_frames)
