"""The exceptions that reach a caller of this package. Private ones stay inside the module that raises them.

There is one class for each way to handle an error::

    NsfwSparkError
    ├── ConfigError(ValueError)    option, config file or model card is wrong    driver, exit 2
    ├── InputError(ValueError)     input is missing, empty, or of a wrong shape  driver, exit 2
    ├── TableError                 table is missing, or of another model         driver, exit 2
    ├── WeightsError               weights are absent, or their sha256 differs   driver, exit 2; or the task
    ├── DeviceError(RuntimeError)  no GPU is usable, or the model does not fit   fails the task
    ├── StorageError               a disk, a checkpoint or a store has failed    driver, exit 1
    ├── RunInterruptedError        Ctrl-C ended the run after a micro-batch      driver, exit 130
    └── ImageError(ValueError)     one image cannot be scored                    marks the row

A message states the wrong value, the expected value, and what to do. Each error survives pickling, because
Spark sends it from a Python worker to the driver. `redact` removes the credentials of URIs from each message.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

from nsfw_spark.redact import redact

Status = Literal["ok", "missing", "unsupported", "undecodable", "too_large", "crashed", "not_finite"]
"""Whether a row of `image_scores` has a score (`ok`), or why it has none."""


class NsfwSparkError(Exception):
    """Base of all errors below."""

    def __init__(self, *args: Any) -> None:  # noqa: ANN401 - Exception's own type
        super().__init__(*(redact(each) if isinstance(each, str) else each for each in args))


class ConfigError(NsfwSparkError, ValueError):
    """An option, a config file or a model card is wrong."""


class InputError(NsfwSparkError, ValueError):
    """The input is missing, empty, or of an unexpected shape."""


class TableError(NsfwSparkError):
    """A table is missing, or belongs to another schema or model."""


class WeightsError(NsfwSparkError):
    """Weights are absent, or differ from the pinned ones."""


class DeviceError(NsfwSparkError, RuntimeError):
    """No GPU is usable, or the model does not fit into its memory."""


class StorageError(NsfwSparkError):
    """Storage failed during the run: a full disk, a deleted checkpoint, a refused file."""


class RunInterruptedError(NsfwSparkError):
    """Ctrl-C ended the run after a micro-batch; the same command goes on where it ended."""


@dataclass(frozen=True)
class ImageHeader:
    """Size and format of an image, read before any pixel is decoded."""

    width: int
    """Pixels as stored, before EXIF orientation; so is `height`."""
    height: int
    format: str
    """Pillow's name of the format, for example `JPEG`."""


class ImageError(NsfwSparkError, ValueError):
    """One image cannot be scored. Its row gets `status` and the message.

    Attributes:
        status: One of `Status`, never `ok`.
        header: Size and format, or None if they are unreadable.
    """

    def __init__(self, status: Status, message: str, header: ImageHeader | None = None) -> None:
        # All arguments go to Exception.args, because pickle rebuilds the error from them.
        super().__init__(status, message, header)
        self.status: Status = status
        self.message: str = self.args[1]
        self.header = header

    def __str__(self) -> str:
        return self.message


STORAGE_FAILED: Final = "storage failed"
"""The message of an image begins so if its store failed, not if the file is gone, forbidden or damaged."""


def storage_failed(reason: str) -> ImageError:
    """Return the error of an image that could not be read because its store failed."""
    return ImageError("missing", f"{STORAGE_FAILED}: the file was listed and could not be read ({reason})")
