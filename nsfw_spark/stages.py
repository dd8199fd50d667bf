"""Where a scorer's time went: counted while it scores, added up over tasks."""

from __future__ import annotations

from dataclasses import astuple, dataclass

from nsfw_spark.model import Predictions


@dataclass
class Stages:
    """Where a scorer's time went."""

    decode_seconds: float = 0.0
    """Decoding and resizing."""
    wait_seconds: float = 0.0
    """Waiting for the model."""
    encode_seconds: float = 0.0
    """Of the device, for these images."""
    encoded: float = 0.0
    """Images that the model saw; with `strict`, views of them."""
    batch_slots: float = 0.0
    """Images that would have fitted into their forward passes."""
    normalized: float = 0.0
    """Vectors that were not of unit length."""
    second: float = 0.0
    """Images that the second model of a cascade looked at."""

    def __add__(self, other: Stages) -> Stages:
        return Stages(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    @property
    def batch_fill(self) -> float | None:
        """How full the forward passes were, 0 to 1; None without any."""
        return self.encoded / self.batch_slots if self.batch_slots else None

    def count(self, predictions: Predictions) -> None:
        """Count one batch."""
        self.wait_seconds += predictions.wait_seconds
        self.encode_seconds += predictions.encode_seconds
        self.encoded += len(predictions)
        self.batch_slots += predictions.batch_slots
