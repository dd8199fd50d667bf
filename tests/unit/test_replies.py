"""Replies of the child that decodes arrive as they were sent; wrong replies are refused."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from nsfw_spark.decode import MOST_VIEWS, DecodedImage, View
from nsfw_spark.errors import ImageError, ImageHeader, NsfwSparkError
from nsfw_spark.isolation.replies import read_reply, reply_of
from nsfw_spark.wire import MessageError

SHAPE = (2, 2, 3)
HEADER = ImageHeader(60, 40, "PNG")
PIXELS = bytes(range(12))
DECODED = {"header": [60, 40, "PNG"], "views": [], "frames": 1, "turned": False}


def arrived(outcome: DecodedImage | Exception) -> DecodedImage | ImageError:
    """Return the outcome of an image as the parent reads it."""
    head, body = reply_of(outcome)
    return read_reply(json.loads(json.dumps(head)), b"".join(view.tobytes() for view in body), SHAPE)


@pytest.mark.parametrize(
    "outcome",
    [
        ImageError("undecodable", "damaged: grün", HEADER),
        ImageError("missing", "no content"),
    ],
)
def test_an_error_arrives_as_it_was(outcome: ImageError) -> None:
    found = arrived(outcome)
    assert isinstance(found, ImageError)
    assert found.args == outcome.args


def test_pixels_arrive_as_they_were_though_they_are_a_view() -> None:
    pixels = np.frombuffer(PIXELS, np.uint8).reshape(SHAPE)[:, ::-1]
    found = arrived(DecodedImage(pixels, HEADER, is_turned=True))
    assert isinstance(found, DecodedImage)
    assert found.is_turned
    assert np.array_equal(found.pixels, pixels)
    assert found.header == HEADER


def test_a_good_reply_is_not_refused() -> None:
    """Without this test, a reader that refuses everything would pass the next one."""
    assert isinstance(read_reply(DECODED, PIXELS, SHAPE), DecodedImage)


def test_views_arrive_in_order_each_with_its_name() -> None:
    views = [np.full(SHAPE, i, np.uint8) for i in range(3)]
    further = (View("frame 2", views[1]), View("frame 3, on black", views[2]))
    found = arrived(DecodedImage(views[0], HEADER, further, 3))
    assert isinstance(found, DecodedImage)
    assert [view.name for view in found.views] == ["centre", "frame 2", "frame 3, on black"]
    assert all(np.array_equal(view.pixels, other) for view, other in zip(found.views, views, strict=True))
    assert found.num_frames == 3


def test_a_defect_is_raised_and_named() -> None:
    with pytest.raises(NsfwSparkError, match=r"unexpected KeyError .*: 'size'") as raised:
        arrived(KeyError("size"))
    assert not isinstance(raised.value, ImageError)


@pytest.mark.parametrize(
    ("head", "body"),
    [
        ({}, PIXELS),
        ({"header": None}, PIXELS),
        ({"header": [60, 40]}, PIXELS),
        ({"header": ["wide", 40, "PNG"]}, PIXELS),
        ({"header": 1}, PIXELS),
        ({"header": [60, 40, "PNG"]}, PIXELS),
        (DECODED, PIXELS[:-1]),
        (DECODED, b""),
        (DECODED, 2 * PIXELS),
        ({**DECODED, "views": ["frame 2"]}, PIXELS),
        ({**DECODED, "views": 1}, PIXELS),
        ({**DECODED, "views": [2]}, 2 * PIXELS),
        ({**DECODED, "views": ["\ud800"]}, 2 * PIXELS),
        ({**DECODED, "frames": 0}, PIXELS),
        ({**DECODED, "frames": MOST_VIEWS + 1}, PIXELS),
        ({**DECODED, "frames": "1"}, PIXELS),
        ({**DECODED, "turned": 1}, PIXELS),
        ({"header": None, "status": "ok", "message": ""}, b""),
        ({"header": None, "status": "fine", "message": ""}, b""),
        ({"header": None, "status": ["ok"], "message": ""}, b""),
        ({"header": None, "status": "missing"}, b""),
    ],
)
def test_what_is_no_reply_is_refused(head: dict[str, Any], body: bytes) -> None:
    with pytest.raises(MessageError):
        read_reply(head, body, SHAPE)
