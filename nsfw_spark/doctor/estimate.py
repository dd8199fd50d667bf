"""The estimate: images a second, hours and GPU-hours of a run, from measured decoding and the model card.

In: the measured decode speed, the number of tasks at once and of GPUs, and a card. Out: numbers, and one
sentence that says what was measured and what was not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nsfw_spark.model_card import ModelCard


@dataclass(frozen=True)
class Estimate:
    """How long a run over some images would take."""

    images: int
    model: str
    decodes_per_second: float
    """Of one core, measured."""
    slots: int
    """Tasks at once."""
    gpus: int
    seconds_per_image: float
    """The model's cost by its card: of one GPU, or without GPUs of one core. Not measured here."""

    @classmethod
    def of(cls, card: ModelCard, images: int, decodes_per_second: float, slots: int, gpus: int) -> Estimate:
        """Return the estimate for a model and a cluster."""
        cost = card.seconds_per_image
        seconds = cost.cuda if gpus else cost.cpu
        return cls(images, card.name, decodes_per_second, max(1, slots), gpus, seconds)

    @property
    def images_per_second(self) -> float:
        """The slower of decoding and model; without a GPU, the cores do both."""
        if not self.gpus:
            return self.slots / (1 / self.decodes_per_second + self.seconds_per_image)
        return min(self.slots * self.decodes_per_second, self.gpus / self.seconds_per_image)

    @property
    def bound(self) -> str:
        """What the speed depends on: `decoding` or `the model`."""
        if not self.gpus:
            return "decoding" if 1 / self.decodes_per_second > self.seconds_per_image else "the model"
        decoding = self.slots * self.decodes_per_second
        return "decoding" if decoding < self.gpus / self.seconds_per_image else "the model"

    @property
    def hours(self) -> float:
        """Hours for all images."""
        return self.images / self.images_per_second / 3600

    def as_dict(self) -> dict[str, Any]:
        """Return the estimate for JSON."""
        return {
            "images": self.images,
            "model": self.model,
            "measured_decodes_per_second_of_a_core": round(self.decodes_per_second, 1),
            "slots": self.slots,
            "gpus": self.gpus,
            "seconds_per_image_by_the_card": self.seconds_per_image,
            "images_per_second": round(self.images_per_second, 2),
            "bound": self.bound,
            "hours": round(self.hours, 3),
            "gpu_hours": round(self.hours * self.gpus, 3),
        }
