"""The scorer: encoded images in, one `ImageScore` each out, in order.

Decodes, forms batches, and makes rows of what the model says. Where the model is, in this process or in the
model host, it does not know; nor does it know of Spark: this is what a laptop, a notebook and a GPU box
without Java use, and what the UDF runs on every executor.
"""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from nsfw_spark.decode import DEFAULT_MAX_PIXELS, decode
from nsfw_spark.errors import ImageError, ImageHeader, Status
from nsfw_spark.model import ModelSpec, Predictions, Predictor, load_model
from nsfw_spark.model_card import ModelCard, load_card


@dataclass(frozen=True)
class ImageScore:
    """What there is to know of one image: a score, or why there is none."""

    status: Status
    error: str | None = None
    """For people; None when ok."""
    nsfw_score: float | None = None
    """In [0, 1], 1 = NSFW; None unless ok."""
    class_scores: dict[str, float] | None = None
    """By class; None where the model has no classes."""
    embedding: npt.NDArray[np.float32] | None = None
    """float32, shape (D,), L2 norm 1; None unless ok or where the model has none."""
    length: int | None = None
    """Bytes of the encoded image."""
    content_sha256: str | None = None
    """Hexadecimal."""
    width: int | None = None
    """Pixels, as stored, before orientation; None when unreadable."""
    height: int | None = None
    """Pixels, as stored, before orientation; None when unreadable."""
    format: str | None = None
    """`JPEG`, `PNG`, …; None when unreadable."""


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
    """Images that the model saw."""
    batch_slots: float = 0.0
    """Images that would have fitted into their forward passes."""

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


class Scorer:
    """A model, ready to score images. Make one with `load_scorer`.

    Attributes:
        card: The model's card.
        fingerprint: Hash of its weights, preprocessing and precision.
        device: `cpu` or `cuda:N`.
        batch_size: Images that go to the model at once.
        stages: Where the time went since `take_stages`.
    """

    def __init__(
        self, card: ModelCard, predictor: Predictor, *, max_pixels: int = DEFAULT_MAX_PIXELS
    ) -> None:
        self.card, self.fingerprint, self.device = card, predictor.fingerprint, predictor.device
        self.batch_size = predictor.batch_size
        self.stages = Stages()
        self._predictor, self._max_pixels = predictor, max_pixels

    def score(self, contents: Sequence[bytes | None]) -> list[ImageScore]:
        """Score images.

        Args:
            contents: Encoded images; None for one that could not be read.

        Returns:
            As many scores, in the same order.
        """
        return list(self.stream(contents))

    def stream(self, contents: Iterable[bytes | None]) -> Iterator[ImageScore]:
        """Score images as they come, in memory for a few batches."""
        waiting: deque[list[ImageScore]] = deque()  # rows of the batches that were handed to the model

        def batches() -> Iterator[list[npt.NDArray[np.uint8]]]:
            for rows, pixels in self._decoded(contents):
                waiting.append(rows)
                yield pixels

        for predictions in self._predictor.predict_each(batches()):
            self.stages.count(predictions)
            yield from self._finished(waiting.popleft(), predictions)

    def take_stages(self) -> Stages:
        """Return where the time went since this was last asked."""
        stages, self.stages = self.stages, Stages()
        return stages

    def _decoded(
        self, contents: Iterable[bytes | None]
    ) -> Iterator[tuple[list[ImageScore], list[npt.NDArray[np.uint8]]]]:
        """Yield batches: rows in order, and the pixels of those that say `ok` and wait for a score."""
        rows: list[ImageScore] = []
        pixels: list[npt.NDArray[np.uint8]] = []
        for content in contents:
            started = time.perf_counter()
            row, square = self._decode(content)
            self.stages.decode_seconds += time.perf_counter() - started
            rows.append(row)
            if square is not None:
                pixels.append(square)
            # Bad images wait too, to keep the order; a run of them must not pile up.
            if len(pixels) == self.batch_size or len(rows) >= 8 * self.batch_size:
                yield rows, pixels
                rows, pixels = [], []
        if rows:
            yield rows, pixels

    def _decode(self, content: bytes | None) -> tuple[ImageScore, npt.NDArray[np.uint8] | None]:
        row = ImageScore("ok")
        if content is not None:
            digest = hashlib.sha256(content).hexdigest()
            row = replace(row, length=len(content), content_sha256=digest)
        try:
            decoded = decode(content, self.card.preprocessing, max_pixels=self._max_pixels)
        except ImageError as error:
            row = replace(row, status=error.status, error=error.message)
            return _with_header(row, error.header), None
        return _with_header(row, decoded.header), decoded.pixels

    def _finished(self, rows: list[ImageScore], predictions: Predictions) -> Iterator[ImageScore]:
        scored = enumerate(predictions.nsfw_scores.tolist())
        for row in rows:
            if row.status != "ok":
                yield row
                continue
            i, score = next(scored)
            if not 0 <= score <= 1:  # NaN included
                error = f"the model {self.card.name} gave {score} for this image"
                yield replace(row, status="not_finite", error=error)
                continue
            classes, embeddings = predictions.class_scores, predictions.embeddings
            yield replace(
                row,
                nsfw_score=score,
                class_scores=None
                if classes is None
                else dict(zip(self.card.head.classes, classes[i].tolist(), strict=True)),
                embedding=None if embeddings is None else embeddings[i],
            )


def load_scorer(
    model: str | Path = "laion-vit-l-14",
    *,
    device: str = "auto",
    model_dir: str | Path | None = None,
    batch_size: int | Literal["auto"] = "auto",
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> Scorer:
    """Load a model for use in this process.

    Args:
        model: Name of a built-in model card, or path of a card file.
        device: `auto` (a GPU if there is one), `cpu`, `cuda` or `cuda:N`.
        model_dir: Directory with weights; else the Hugging Face cache, else they are downloaded.
        batch_size: Images in one forward pass; `auto` is 16 on a CPU, and on a GPU what is found to be fast.
        max_pixels: Width x height above which an image is `too_large`.

    Raises:
        ConfigError: No such card, or its library is not installed.
        WeightsError: Weights absent, or not the ones that the card pins.
        DeviceError: No usable GPU.
    """
    directory = None if model_dir is None else Path(model_dir)
    card = load_card(model)
    return Scorer(card, load_model(ModelSpec(card, directory, device, batch_size)), max_pixels=max_pixels)


def _with_header(row: ImageScore, header: ImageHeader | None) -> ImageScore:
    if header is None:
        return row
    return replace(row, width=header.width, height=header.height, format=header.format)
