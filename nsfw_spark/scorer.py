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
from dataclasses import astuple, dataclass, field, replace
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
    normalized: float = 0.0
    """Vectors that were not of unit length."""

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


@dataclass
class _Batch:
    """Images on their way through the model."""

    buffer: npt.NDArray[np.uint8]
    """uint8, shape (batch_size, S, S, 3), RGB."""
    rows: list[ImageScore] = field(default_factory=list)
    """In order; those that say `ok` wait for a score."""
    num_ok: int = 0

    @property
    def pixels(self) -> npt.NDArray[np.uint8]:
        """Those of the rows that say `ok`."""
        return self.buffer[: self.num_ok]


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

    def score(self, contents: Sequence[bytes | ImageError | None]) -> list[ImageScore]:
        """Score images.

        Args:
            contents: Encoded images; for one that could not be read why not, or None.

        Returns:
            As many scores, in the same order.
        """
        return list(self.stream(contents))

    def stream(self, contents: Iterable[bytes | ImageError | None]) -> Iterator[ImageScore]:
        """Score images as they come, in memory for a few batches."""
        waiting: deque[_Batch] = deque()  # that were handed to the model
        free: list[npt.NDArray[np.uint8]] = []  # new memory for each batch would be paged in for each

        def batches() -> Iterator[npt.NDArray[np.uint8]]:
            for batch in self._decoded(contents, free):
                waiting.append(batch)
                yield batch.pixels

        for predictions in self._predictor.predict_each(batches()):
            self.stages.count(predictions)
            batch = waiting.popleft()
            free.append(batch.buffer)
            yield from self._finished(batch.rows, predictions)

    def take_stages(self) -> Stages:
        """Return where the time went since this was last asked."""
        stages, self.stages = self.stages, Stages()
        return stages

    def _decoded(
        self, contents: Iterable[bytes | ImageError | None], free: list[npt.NDArray[np.uint8]]
    ) -> Iterator[_Batch]:
        """Yield batches, their pixels in memory that is free, if there is any."""
        batch = self._empty_batch(free)
        for content in contents:
            started = time.perf_counter()
            row, pixels = self._decode(content)
            if pixels is not None:
                batch.buffer[batch.num_ok] = pixels
                batch.num_ok += 1
            batch.rows.append(row)
            self.stages.decode_seconds += time.perf_counter() - started
            # Bad images wait too, to keep the order; a run of them must not pile up.
            if batch.num_ok == self.batch_size or len(batch.rows) >= 8 * self.batch_size:
                yield batch
                batch = self._empty_batch(free)
        if batch.rows:
            yield batch

    def _empty_batch(self, free: list[npt.NDArray[np.uint8]]) -> _Batch:
        size = self.card.preprocessing.size
        return _Batch(free.pop() if free else np.empty((self.batch_size, size, size, 3), np.uint8))

    def _decode(self, content: bytes | ImageError | None) -> tuple[ImageScore, npt.NDArray[np.uint8] | None]:
        if isinstance(content, ImageError):
            return _row(content.status, content.message, None, None, content.header), None
        length = digest = None
        if content is not None:
            length, digest = len(content), hashlib.sha256(content).hexdigest()
        try:
            decoded = decode(content, self.card.preprocessing, max_pixels=self._max_pixels)
        except ImageError as error:
            return _row(error.status, error.message, length, digest, error.header), None
        return _row("ok", None, length, digest, decoded.header), decoded.pixels

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


def _row(
    status: Status, error: str | None, length: int | None, digest: str | None, header: ImageHeader | None
) -> ImageScore:
    width, height, format_ = (header.width, header.height, header.format) if header else (None, None, None)
    return ImageScore(
        status,
        error,
        length=length,
        content_sha256=digest,
        width=width,
        height=height,
        format=format_,
    )
