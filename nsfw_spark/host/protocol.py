"""The messages between a task and the model host, on top of `nsfw_spark.wire`.

The task speaks first. Each line is a message: its kind, its other fields, then its body::

    task                                        host
    hello {version, key, task, model}       ─►
                                            ◄─ welcome
                                            ◄─ beat …  while the model loads
                                            ◄─ ready {fingerprint, device, batch_size, self_check}, or error
    pixels, uint8 (N, S, S, 3)              ─►
                                            ◄─ beat …  while the batch waits and computes
                                            ◄─ scores {widths, encode_seconds, batch_slots}, float32, or error

`model` is an index in `HostSpec.models`. A connection carries one request at a time: a task that wants two
batches in flight opens two connections.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from nsfw_spark.heads import Predictions
from nsfw_spark.wire import MessageError

VERSION: Final = 5
MAX_IMAGES: Final = 64
"""Images in one request. Two requests from each of four tasks fill two batches of 256 on a GPU; larger
requests hold more memory, smaller ones cost more overhead."""

_FLOAT: Final = np.dtype(np.float32)


def scores_message(predictions: Predictions) -> tuple[dict[str, Any], list[npt.NDArray[np.float32]]]:
    """Return the head and the body of a `scores` message: the scores, then the tables that exist.

    A table of width 0 does not exist.
    """
    tables = (predictions.class_scores, predictions.other_scores, predictions.embeddings)
    head = {
        "kind": "scores",
        "widths": [0 if table is None else table.shape[1] for table in tables],
        "encode_seconds": predictions.encode_seconds,
        "batch_slots": predictions.batch_slots,
    }
    arrays = (predictions.nsfw_scores, *tables)
    return head, [np.ascontiguousarray(array, _FLOAT) for array in arrays if array is not None]


def read_scores(head: Mapping[str, Any], body: bytes, num_images: int) -> Predictions:
    """Return the predictions of a `scores` message.

    Raises:
        MessageError: The head is wrong, or the body's length fits neither the widths nor the images.
    """
    try:
        widths = [1, *head["widths"]]
        seconds, slots = float(head["encode_seconds"]), float(head["batch_slots"])
    except (KeyError, TypeError, ValueError) as error:
        raise MessageError(f"expected the head of scores: {error!r:.200}") from error
    are_widths = len(widths) == 4 and all(type(width) is int and width >= 0 for width in widths)  # noqa: PLR2004
    if not are_widths or len(body) != num_images * sum(widths) * _FLOAT.itemsize:
        raise MessageError(
            f"expected the scores of {num_images} images, got {len(body)} bytes for widths {widths!r:.100}"
        )
    arrays = np.split(np.frombuffer(body, _FLOAT), num_images * np.cumsum(widths[:-1]))
    classes, others, embeddings = (
        array.reshape(num_images, width) if width else None
        for array, width in zip(arrays[1:], widths[1:], strict=True)
    )
    return Predictions(arrays[0], classes, embeddings, seconds, slots, other_scores=others)
