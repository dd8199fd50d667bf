"""The child process: decodes the images that its parent sends, one at a time, until the parent disconnects.

The parent starts it, in `child.py`: `python -m nsfw_spark.isolation SOCKET TIMEOUT_SECONDS`. SOCKET is the
number of the inherited socket.
"""

from __future__ import annotations

import contextlib
import faulthandler
import resource
import signal
import socket
import sys
from typing import Any, Final

from nsfw_spark import wire
from nsfw_spark.decode import DecodedImage
from nsfw_spark.isolation.guarded import GuardedDecoder
from nsfw_spark.isolation.replies import reply_of
from nsfw_spark.model_card import Preprocessing
from nsfw_spark.wire import MessageError

_MAX_CONTENT: Final = 1 << 40  # bytes: the child trusts its parent, which has read the image already


def run(connection: socket.socket, timeout_seconds: float) -> None:
    """Tell the parent that the child is ready, then decode. The kernel ends the child after a timeout."""
    faulthandler.enable()  # if a library crashes, the log shows in which call
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles a terminal's Ctrl-C
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # no file may hold an image's pixels
    with (
        contextlib.suppress(BrokenPipeError, ConnectionResetError, MessageError),  # the parent is gone
        GuardedDecoder(timeout_seconds) as decoder,
    ):
        wire.send(connection, {})
        while (request := wire.receive(connection, _MAX_CONTENT)) is not None:
            wire.send(connection, *reply_of(_decode(decoder, *request)))


def _decode(decoder: GuardedDecoder, head: dict[str, Any], content: bytes) -> DecodedImage | Exception:
    try:
        preprocessing = Preprocessing.model_validate(head["preprocessing"])
        return decoder(content, preprocessing, **head["options"])
    except Exception as error:  # noqa: BLE001 - the parent raises it
        return error


if __name__ == "__main__":
    run(socket.socket(fileno=int(sys.argv[1])), float(sys.argv[2]))
