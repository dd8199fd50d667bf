"""The scorer: encoded images in, one `ImageScore` each out, in order.

Puts decode, encoder and head in a row and forms the batches. Knows nothing of Spark: this is what a laptop,
a notebook and a GPU box without Java use, and what the UDF runs on every executor.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from nsfw_spark.decode import DEFAULT_MAX_PIXELS, decode
from nsfw_spark.encoders import Encoder, load_encoder
from nsfw_spark.errors import ImageError, ImageHeader, Status
from nsfw_spark.heads import Head, load_head
from nsfw_spark.model_card import ModelCard, load_card
from nsfw_spark.weights import fingerprint, locate_weights

# Where more images a batch no longer help: a CPU's caches are full, a GPU is.
_AUTO_BATCH_SIZE: Final = {"cpu": 16, "cuda": 256}


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


@dataclass(frozen=True)
class ScorerSpec:
    """All that it takes to load the same scorer elsewhere: small, picklable, comparable."""

    card: ModelCard
    model_dir: Path | None = None
    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `cuda:N`."""
    batch_size: int | Literal["auto"] = "auto"
    """Images in one forward pass."""
    max_pixels: int = DEFAULT_MAX_PIXELS
    """Width x height above which an image is `too_large`."""


class Model:
    """Encoder and head of one card, loaded on one device: pixels in, scores out."""

    def __init__(self, card: ModelCard, encoder: Encoder, head: Head) -> None:
        self._card, self._encoder, self._head = card, encoder, head
        self.device = encoder.device

    def predict(self, pixels: npt.NDArray[np.uint8]) -> list[ImageScore]:
        """Score a batch.

        Args:
            pixels: uint8, shape (N, S, S, 3), RGB.

        Returns:
            N scores, without what only the encoded bytes can tell.
        """
        encoded = self._encoder.encode(pixels)
        scored = self._head.score(encoded)
        return [
            self._row(
                float(score),
                None if scored.class_scores is None else scored.class_scores[i],
                None if encoded.embeddings is None else encoded.embeddings[i],
            )
            for i, score in enumerate(scored.nsfw_scores)
        ]

    def _row(
        self,
        score: float,
        classes: npt.NDArray[np.float32] | None,
        embedding: npt.NDArray[np.float32] | None,
    ) -> ImageScore:
        if not 0 <= score <= 1:  # NaN included
            return ImageScore("not_finite", f"the model {self._card.name} gave {score} for this image")
        by_class = None
        if classes is not None:
            by_class = dict(zip(self._card.head.classes, classes.tolist(), strict=True))
        return ImageScore("ok", None, score, by_class, embedding)


class Scorer:
    """A model, loaded and ready. Make one with `load_scorer`.

    Attributes:
        card: The model's card.
        fingerprint: Hash of its weights, preprocessing and precision.
        device: `cpu` or `cuda:N`.
        batch_size: Images in one forward pass.
    """

    def __init__(self, spec: ScorerSpec, model: Model, fingerprint: str) -> None:
        self.card, self.fingerprint, self.device = spec.card, fingerprint, model.device
        kind = self.device.partition(":")[0]
        self.batch_size = _AUTO_BATCH_SIZE[kind] if spec.batch_size == "auto" else spec.batch_size
        self._max_pixels = spec.max_pixels
        self._model = model

    def score(self, contents: Sequence[bytes | None]) -> list[ImageScore]:
        """Score images.

        Args:
            contents: Encoded images; None for one that could not be read.

        Returns:
            As many scores, in the same order.
        """
        return list(self.stream(contents))

    def stream(self, contents: Iterable[bytes | None]) -> Iterator[ImageScore]:
        """Score images as they come, in memory for one batch."""
        pending: list[ImageScore] = []  # rows in order; those that wait for a score say `ok`
        pixels: list[npt.NDArray[np.uint8]] = []  # of the waiting ones
        for content in contents:
            row, square = self._decode(content)
            pending.append(row)
            if square is not None:
                pixels.append(square)
            # Bad images wait too, to keep the order; a run of them must not pile up.
            if len(pixels) == self.batch_size or len(pending) >= 8 * self.batch_size:
                yield from self._finish(pending, pixels)
                pending, pixels = [], []
        yield from self._finish(pending, pixels)

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

    def _finish(self, pending: list[ImageScore], pixels: list[npt.NDArray[np.uint8]]) -> Iterator[ImageScore]:
        scores = iter(self._model.predict(np.stack(pixels)) if pixels else [])
        for row in pending:
            if row.status != "ok":
                yield row
                continue
            score = next(scores)
            yield replace(
                row,
                status=score.status,
                error=score.error,
                nsfw_score=score.nsfw_score,
                class_scores=score.class_scores,
                embedding=score.embedding,
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
        batch_size: Images in one forward pass; `auto` is 16 on a CPU, 256 on a GPU.
        max_pixels: Width x height above which an image is `too_large`.

    Raises:
        ConfigError: No such card, or its library is not installed.
        WeightsError: Weights absent, or not the ones that the card pins.
        DeviceError: No usable GPU.
    """
    directory = None if model_dir is None else Path(model_dir)
    return open_scorer(ScorerSpec(load_card(model), directory, device, batch_size, max_pixels))


def open_scorer(spec: ScorerSpec) -> Scorer:
    """Load the scorer of a spec: see `load_scorer`."""
    files = locate_weights(spec.card, spec.model_dir, download=True)
    encoder = load_encoder(spec.card, files["encoder"], spec.device)
    head = load_head(spec.card, files.get("head"))
    return Scorer(spec, Model(spec.card, encoder, head), fingerprint(spec.card, files))


def _with_header(row: ImageScore, header: ImageHeader | None) -> ImageScore:
    if header is None:
        return row
    return replace(row, width=header.width, height=header.height, format=header.format)
