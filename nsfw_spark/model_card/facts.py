"""What is known of a model beside how it computes: for whoever has to choose one.

Parts of a model card that change no score. Each figure that is not our own measurement has its source.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from nsfw_spark.sections import Section


class Size(Section):
    """How large a model is; null where it is not known."""

    parameters: Annotated[int, Field(gt=0)] | None = None
    """Numbers that were trained, of encoder and head."""
    download_mb: Annotated[float, Field(gt=0)] | None = None
    """Weights to download, in millions of bytes; null also where they come with a Python package."""
    memory_mb: Annotated[float, Field(gt=0)] | None = None
    """Most memory that a process with it held, scoring 16 images at once on a CPU, in millions of bytes."""


class Accuracy(Section):
    """One figure that a model's authors measured."""

    measured: str
    """What, and on which images."""
    value: str
    """As they write it."""
    source: str
    """Where they publish it."""


class SecondsPerImage(Section):
    """Rough cost of one image, to size micro-batches by; not a promise."""

    cpu: Annotated[float, Field(gt=0)]
    """Seconds of one core."""
    cuda: Annotated[float, Field(gt=0)]
    """Seconds of one GPU."""
