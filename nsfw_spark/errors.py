"""Every exception that this project raises on purpose.

What a caller has to tell apart, nothing more::

    NsfwSparkError
    ├── ConfigError(ValueError)    option, config file or model card wrong      driver, exit 2
    ├── InputError(ValueError)     input missing, empty, or of the wrong shape  driver, exit 2
    ├── TableError                 table missing, or of another schema or model driver, exit 2
    ├── WeightsError               absent, or their sha256 differs              driver, exit 2; or the task
    ├── DeviceError(RuntimeError)  no usable GPU, does not fit                  fails the task
    ├── StorageError               a disk, a checkpoint or a store has failed   driver, exit 1
    └── ImageError(ValueError)     one image cannot be scored                   marks the row

A message says what was got, what was expected, and what to do. Each error survives pickling, because
Spark carries it from a Python worker to the driver. None shows the credentials of a URI: see `redact`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from nsfw_spark.redact import redact

Status = Literal["ok", "missing", "unsupported", "undecodable", "too_large", "crashed", "not_finite"]
"""Why a row of `image_scores` has a score or none; `ok` alone means that it has one."""


class NsfwSparkError(Exception):
    """Base of all errors below."""

    def __init__(self, *args: Any) -> None:  # noqa: ANN401 - as Exception has it
        super().__init__(*(redact(each) if isinstance(each, str) else each for each in args))


class ConfigError(NsfwSparkError, ValueError):
    """An option, a config file or a model card is wrong."""


class InputError(NsfwSparkError, ValueError):
    """The input is missing, empty, or not of the expected shape."""


class TableError(NsfwSparkError):
    """A table is missing, or belongs to another schema or model."""


class WeightsError(NsfwSparkError):
    """Weights are absent, or are not the ones that the model card pins."""


class DeviceError(NsfwSparkError, RuntimeError):
    """No usable GPU, or the model does not fit into it."""


class StorageError(NsfwSparkError):
    """What the work lies on failed in the middle of it: a full disk, a deleted checkpoint, a refused file."""


@dataclass(frozen=True)
class ImageHeader:
    """What an image's header says, before any pixel is decoded."""

    width: int
    """Pixels, as stored: before EXIF orientation."""
    height: int
    """Pixels, as stored: before EXIF orientation."""
    format: str
    """Pillow's name of the format: `JPEG`, `PNG`, …"""


class ImageError(NsfwSparkError, ValueError):
    """One image cannot be scored; its row carries `status` and the message instead.

    Attributes:
        status: One of `Status`, never `ok`.
        header: Size and format, where they could be read.
    """

    def __init__(self, status: Status, message: str, header: ImageHeader | None = None) -> None:
        # All arguments go to Exception.args: that is what pickle rebuilds the error from.
        super().__init__(status, message, header)
        self.status: Status = status
        self.message: str = self.args[1]
        self.header = header

    def __str__(self) -> str:
        return self.message
