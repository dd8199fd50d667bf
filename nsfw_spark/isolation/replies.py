"""The messages between a process that scores and its child that decodes, on top of `nsfw_spark.wire`.

The child speaks first. Each line is a message: its head, then its body::

    parent                                   child
                                             ◄─ {}: it is ready
    {preprocessing, options}, content        ─►
                                             ◄─ {header, views, frames, turned}, pixels uint8 (V, S, S, 3),
                                                or {header, status, message}: an `ImageError`,
                                                or {error, message}: a defect of this project

The parent checks every part of a reply, because an image may have taken over the child.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, get_args

import numpy as np
import numpy.typing as npt

from nsfw_spark.decode import CENTRE, MOST_VIEWS, DecodedImage, View
from nsfw_spark.errors import ImageError, ImageHeader, Status
from nsfw_spark.wire import MessageError, error_head, read_error

_FAILURES: Final = tuple(status for status in get_args(Status) if status != "ok")


def reply_of(outcome: DecodedImage | Exception) -> tuple[dict[str, Any], list[npt.NDArray[np.uint8]]]:
    """Return the head and the body of the reply to an image."""
    if not isinstance(outcome, DecodedImage | ImageError):
        return {**error_head(outcome, "the process that decodes images")}, []
    header = outcome.header
    head: dict[str, Any] = {"header": header and [header.width, header.height, header.format]}
    if isinstance(outcome, ImageError):
        return {**head, "status": outcome.status, "message": outcome.message}, []
    head |= {"views": [view.name for view in outcome.further], "frames": outcome.num_frames}
    head["turned"] = outcome.is_turned
    return head, [np.ascontiguousarray(view.pixels) for view in outcome.views]


def read_reply(
    head: Mapping[str, Any], body: bytes, shape: tuple[int, int, int]
) -> DecodedImage | ImageError:
    """Return the decoded image, or the error of an image that cannot be decoded.

    `shape` is the expected shape of one view's pixels.

    Raises:
        MessageError: It is no valid reply.
        NsfwSparkError: This project, or its installation, has a defect.
    """
    if "error" in head:
        raise read_error(head)
    try:
        header = None
        if head["header"] is not None:
            width, height, format_ = head["header"]
            header = ImageHeader(int(width), int(height), str(format_))
        if header is not None and "status" not in head:
            return _decoded(head, np.frombuffer(body, np.uint8).reshape(-1, *shape), header)
        status, message = head["status"], str(head["message"])
    except (KeyError, TypeError, ValueError) as error:
        raise MessageError(f"expected a reply: {error!r:.200}") from error
    if status not in _FAILURES:
        raise MessageError(f"expected the status of a failure, got {status!r:.100}")
    return ImageError(status, message, header)


def _decoded(head: Mapping[str, Any], pixels: npt.NDArray[np.uint8], header: ImageHeader) -> DecodedImage:
    """Return a decoded image from pixels, uint8, shape (V, S, S, 3)."""
    names, num_frames, is_turned = [CENTRE, *head["views"]], head["frames"], head["turned"]
    if not all(isinstance(name, str) and name.isascii() for name in names):
        raise ValueError(f"expected names of views, got {names!r:.100}")
    if not isinstance(num_frames, int) or not 1 <= num_frames <= MOST_VIEWS:
        raise ValueError(f"expected a number of frames, got {num_frames!r:.100}")
    if not isinstance(is_turned, bool):
        raise TypeError(f"expected whether the image is turned, got {is_turned!r:.100}")
    first, *further = (View(name, view) for name, view in zip(names, pixels, strict=True))
    return DecodedImage(first.pixels, header, tuple(further), num_frames, is_turned)
