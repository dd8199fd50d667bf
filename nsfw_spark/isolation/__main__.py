"""The child: decodes what its parent sends it, one image at a time, until the parent is gone."""

from __future__ import annotations

import contextlib
import faulthandler
import resource
import signal
import socket
import sys
from typing import Any, Final

from nsfw_spark.decode import DecodedImage
from nsfw_spark.isolation import messages
from nsfw_spark.isolation.guarded import GuardedDecoder
from nsfw_spark.isolation.messages import MessageError
from nsfw_spark.model_card import Preprocessing

_MAX_CONTENT: Final = 1 << 40  # bytes: the parent is trusted, and has read the image already


def run(connection: socket.socket, timeout_seconds: float) -> None:
    """Say that the child is ready, and serve.

    Args:
        connection: To the parent; its end is the child's.
        timeout_seconds: For each image; then the kernel ends the child.
    """
    faulthandler.enable()  # where the library crashes, the log says in which call
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is the parent's to act upon
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # an image's pixels belong into no file
    with (
        contextlib.suppress(BrokenPipeError, ConnectionResetError, MessageError),  # the parent is gone
        GuardedDecoder(timeout_seconds) as decoder,
        connection.makefile("rb") as stream,
    ):
        messages.send(connection, {})
        while (request := messages.receive(stream, _MAX_CONTENT)) is not None:
            outcome = _outcome(decoder, *request)
            messages.send(connection, *messages.reply_of(outcome))


def _outcome(decoder: GuardedDecoder, head: dict[str, Any], content: bytes) -> DecodedImage | Exception:
    try:
        preprocessing = Preprocessing.model_validate(head["preprocessing"])
        return decoder(content, preprocessing, **head["options"])
    except Exception as error:  # noqa: BLE001 - the parent raises it
        return error


if __name__ == "__main__":
    run(socket.socket(fileno=int(sys.argv[1])), float(sys.argv[2]))
