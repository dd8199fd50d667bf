"""Errors survive the way from a Python worker to the driver, and their documentation is true."""

from __future__ import annotations

import pickle
import re

import pytest

import nsfw_spark
from nsfw_spark import errors
from nsfw_spark.errors import ImageError, ImageHeader, NsfwSparkError

CLASSES = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, NsfwSparkError) and value is not NsfwSparkError
]
PLAIN = [NsfwSparkError, *(error for error in CLASSES if error is not ImageError)]


@pytest.mark.parametrize("error", PLAIN)
def test_an_error_survives_pickling(error: type[NsfwSparkError]) -> None:
    copy = pickle.loads(pickle.dumps(error("got 1, expected 2")))  # noqa: S301 - our own bytes
    assert type(copy) is error
    assert str(copy) == "got 1, expected 2"


@pytest.mark.parametrize("header", [None, ImageHeader(640, 480, "JPEG")])
def test_an_image_error_survives_pickling_with_status_and_header(header: ImageHeader | None) -> None:
    copy = pickle.loads(pickle.dumps(ImageError("too_large", "640 x 480 pixels", header)))  # noqa: S301
    assert (copy.status, copy.message, copy.header) == ("too_large", "640 x 480 pixels", header)
    assert str(copy) == "640 x 480 pixels"


def test_the_tree_in_the_docstring_is_the_classes() -> None:
    tree = re.findall(r"[├└]── (\w+)(?:\((\w+)\))?", str(errors.__doc__))
    classes = [(error.__name__, *(base.__name__ for base in error.__bases__[1:])) for error in CLASSES]
    assert [tuple(filter(None, branch)) for branch in tree] == classes
    assert all(error.__bases__[0] is NsfwSparkError for error in CLASSES)


def test_every_error_is_exported() -> None:
    assert {error.__name__ for error in [NsfwSparkError, *CLASSES]} <= set(nsfw_spark.__all__)


def test_errors_can_be_caught_as_the_builtin_that_they_are() -> None:
    assert issubclass(errors.ConfigError, ValueError)
    assert issubclass(errors.DeviceError, RuntimeError)
    assert not issubclass(errors.WeightsError, ValueError), "a wrong option is not a missing file"
