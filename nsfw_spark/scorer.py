"""The scorer: encoded images in, one `ImageScore` each out, in order.

It decodes, forms batches for the model, and makes rows of its predictions. Whether the model is in this
process or in the model host, it does not know; nor does it know Spark. A laptop or a notebook uses it as it
is, and every Spark task runs it.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from typing import Any, Final, Generic, Protocol, TypeVar, Unpack

import numpy as np
import numpy.typing as npt

from nsfw_spark.decode import DecodedImage, DecodeOptions, decode
from nsfw_spark.errors import ImageError, ImageHeader, InputError, Status
from nsfw_spark.heads import Predictions
from nsfw_spark.model import Predictor
from nsfw_spark.model_card import ModelCard, Preprocessing


@dataclass(frozen=True)
class ImageScore:
    """The result for one image: a score, or the reason why there is none."""

    status: Status
    error: str | None = None
    """Why there is no score, for people; None when ok."""
    nsfw_score: float | None = None
    """In [0, 1], 1 = NSFW; None unless ok."""
    class_scores: dict[str, float] | None = None
    """Score of each class; None unless ok, and for a model without classes."""
    embedding: npt.NDArray[np.float32] | None = None
    """float32, shape (D,), L2 norm 1; None unless ok, and for a model without one."""
    other_scores: dict[str, float] | None = None
    """Score of each further head of the card; None unless ok, and for a card without further heads."""
    length: int | None = None
    """Bytes of the encoded image."""
    content_sha256: str | None = None
    """Hexadecimal."""
    width: int | None = None
    """Pixels as stored, before orientation; None when unreadable."""
    height: int | None = None
    """Pixels as stored, before orientation; None when unreadable."""
    format: str | None = None
    """`JPEG`, `PNG`, …; None when unreadable."""
    frames_scored: int | None = None
    """Number of frames or pages with a view; None without `strict`, and if nothing was decoded."""
    scored_view: str | None = None
    """The view with these scores and this embedding; None without `strict`."""
    first_score: float | None = None
    """Score of a cascade's first model; None unless ok, and without a cascade."""
    second_score: float | None = None
    """Score of a cascade's second model; None unless ok, and if it did not see the image."""
    decided_by: str | None = None
    """Name of the model whose score counts, in a cascade; None unless ok."""

    def column(self, name: str) -> Any:  # noqa: ANN401 - the type of that column
        """Return the value of a column of image_scores: a field, or the score of a further head."""
        if name in self.__dataclass_fields__:
            return getattr(self, name)
        return None if self.other_scores is None else self.other_scores[name.removesuffix("_score")]


def unscored(
    status: Status,
    error: str | None,
    header: ImageHeader | None,
    length: int | None = None,
    digest: str | None = None,
) -> ImageScore:
    """Return the row of an image before the model has seen it.

    Args:
        status: `ok` for an image that goes to the model.
        error: Why it does not; None when ok.
        header: None when unreadable.
        length: Bytes of the encoded image; None if it could not be read.
        digest: Its SHA-256, hexadecimal.
    """
    width, height, format_ = (header.width, header.height, header.format) if header else (None, None, None)
    return ImageScore(
        status, error, length=length, content_sha256=digest, width=width, height=height, format=format_
    )


@dataclass
class Timings:
    """Seconds that a scorer spent, and counts to explain them; tasks add them up."""

    decode_seconds: float = 0.0
    """Seconds of decoding and resizing."""
    wait_seconds: float = 0.0
    """Seconds that the task waited for the model."""
    encode_seconds: float = 0.0
    """Seconds of the device, for these images."""
    encoded: float = 0.0
    """Images that the model saw; with `strict`, views."""
    batch_slots: float = 0.0
    """Capacity of their forward passes, in images."""
    normalized: float = 0.0
    """Vectors of the input that were not of unit length."""
    second: float = 0.0
    """Images that the second model of a cascade saw."""

    def __add__(self, other: Timings) -> Timings:
        return Timings(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    @property
    def batch_fill(self) -> float | None:
        """How full the forward passes were, 0 to 1; None without any."""
        return self.encoded / self.batch_slots if self.batch_slots else None

    def count(self, predictions: Predictions) -> None:
        """Add the costs of one batch."""
        self.wait_seconds += predictions.wait_seconds
        self.encode_seconds += predictions.encode_seconds
        self.encoded += len(predictions)
        self.batch_slots += predictions.batch_slots


class Decoder(Protocol):
    """A function like `decode`: itself, or one that survives crashes (`isolation`)."""

    def __call__(
        self, content: bytes | None, preprocessing: Preprocessing, /, **options: Unpack[DecodeOptions]
    ) -> DecodedImage:
        """Decode one image: see `decode`."""


_MOST_WAITING: Final = 8
"""Batches of images that wait for one before them."""

Content = bytes | ImageError | None
"""An encoded image; or why it could not be read; or None."""

_K = TypeVar("_K")


@dataclass
class _Image(Generic[_K]):
    """One image between its decoding and its last prediction."""

    key: _K
    """What the caller attached to the image."""
    row: ImageScore
    """Its row without a score."""
    num_views: int
    """Views that the model has to see: one, the centre, without `strict`; none for an image with an error."""
    scored: list[ImageScore] = field(default_factory=list)
    """The rows of the views that the model has seen."""

    @property
    def is_done(self) -> bool:
        """Whether the model has seen all views."""
        return len(self.scored) == self.num_views

    @property
    def score(self) -> ImageScore:
        """The row of the view with the highest score; a view without a score counts above all."""
        return max(self.scored, key=_rank, default=self.row)


@dataclass
class _Batch(Generic[_K]):
    """Views on their way through the model."""

    buffer: npt.NDArray[np.uint8]
    """uint8, shape (batch_size, S, S, 3), RGB."""
    views: list[tuple[_Image[_K], ImageScore]] = field(default_factory=list)
    """For each view in `buffer`: its image, and its row without a score."""

    @property
    def pixels(self) -> npt.NDArray[np.uint8]:
        """The filled part of the buffer."""
        return self.buffer[: len(self.views)]


class Scorer:
    """A model, ready to score images. Make one with `load_scorer`.

    Attributes:
        card: The model's card.
        fingerprint: Hash of its weights, preprocessing and precision; ends in `-strict` for a strict scorer.
        device: `cpu` or `cuda:N`.
        self_check: The model's answer to the built-in test image when it was loaded.
        batch_size: Images that go to the model at once.
        decoder: Decodes the images.
        timings: Seconds spent since the last `take_timings`.
    """

    def __init__(
        self,
        card: ModelCard,
        predictor: Predictor,
        *,
        decoder: Decoder = decode,
        **options: Unpack[DecodeOptions],
    ) -> None:
        self.card, self.device, self.self_check = card, predictor.device, predictor.self_check
        self.fingerprint = scores_fingerprint(predictor.fingerprint, strict=options.get("strict", False))
        self.batch_size = predictor.batch_size
        self.timings = Timings()
        self._predictor, self.decoder = predictor, decoder
        self._options = options

    def score(self, contents: Sequence[Content]) -> list[ImageScore]:
        """Score images.

        Args:
            contents: Encoded images; for an image that could not be read, the `ImageError`, or None.

        Returns:
            As many scores, in the same order.

        Raises:
            InputError: `contents` is one image, or holds anything but bytes, `ImageError` and None.
        """
        if isinstance(contents, bytes | str):
            raise InputError(
                f"got {type(contents).__name__}; expected a list of encoded images: score([content])"
            )
        return list(self.stream(contents))

    def stream(self, contents: Iterable[Content]) -> Iterator[ImageScore]:
        """Score images as they come; memory holds a few batches."""
        return (row for _, row in self.score_each((None, content) for content in contents))

    def score_each(self, images: Iterable[tuple[_K, Content]]) -> Iterator[tuple[_K, ImageScore]]:
        """Score images as they come, each with a key that the caller attached.

        Args:
            images: Key and encoded image. A key may be anything; it comes back beside its image's score.

        Yields:
            Key and score of each image, in order.
        """
        waiting: deque[_Image[_K]] = deque()  # in order, from decoding to the last prediction
        in_flight: deque[_Batch[_K]] = deque()
        free: list[npt.NDArray[np.uint8]] = []  # reused: the kernel would page in new memory for each batch

        def batches() -> Iterator[npt.NDArray[np.uint8]]:
            for batch in self._batches(images, waiting, free):
                in_flight.append(batch)
                yield batch.pixels

        for predictions in self._predictor.predict_each(batches()):
            self.timings.count(predictions)
            batch = in_flight.popleft()
            free.append(batch.buffer)
            for i, (image, row) in enumerate(batch.views):
                image.scored.append(self._scored(row, predictions, i))
            while waiting and waiting[0].is_done:
                image = waiting.popleft()
                yield image.key, image.score

    def take_timings(self) -> Timings:
        """Return the seconds spent since the last call."""
        timings, self.timings = self.timings, Timings()
        return timings

    def _batches(
        self,
        images: Iterable[tuple[_K, Content]],
        waiting: deque[_Image[_K]],
        free: list[npt.NDArray[np.uint8]],
    ) -> Iterator[_Batch[_K]]:
        """Decode images, append each to `waiting`, and yield their views in batches."""
        batch: _Batch[_K] = self._empty_batch(free)
        for key, content in images:
            started = time.perf_counter()
            row, views = self._decode(content)
            self.timings.decode_seconds += time.perf_counter() - started
            image = _Image(key, row, len(views))
            waiting.append(image)
            for of_view, pixels in views:
                batch.buffer[len(batch.views)] = pixels
                batch.views.append((image, of_view))
                if len(batch.views) == self.batch_size:
                    yield batch
                    batch = self._empty_batch(free)
            # Bad images wait for good ones before them, to keep the order; a run of them must not pile up.
            if len(waiting) >= _MOST_WAITING * self.batch_size:
                yield batch
                batch = self._empty_batch(free)
        if batch.views or waiting:
            yield batch

    def _empty_batch(self, free: list[npt.NDArray[np.uint8]]) -> _Batch[_K]:
        size = self.card.preprocessing.size
        return _Batch(free.pop() if free else np.empty((self.batch_size, size, size, 3), np.uint8))

    def _decode(self, content: Content) -> tuple[ImageScore, list[tuple[ImageScore, npt.NDArray[np.uint8]]]]:
        """Return an image's row without a score, and a row and pixels, (S, S, 3), for each of its views."""
        if isinstance(content, ImageError):
            return unscored(content.status, content.message, content.header), []
        length = digest = None
        if content is not None:
            if not isinstance(content, bytes):
                raise InputError(
                    f"an image is of type {type(content).__name__}: {content!r:.80}; expected the bytes of "
                    "an encoded image, as Path.read_bytes() returns them"
                )
            length, digest = len(content), hashlib.sha256(content).hexdigest()
        try:
            decoded = self.decoder(content, self.card.preprocessing, **self._options)
        except ImageError as error:
            return unscored(error.status, error.message, error.header, length, digest), []
        row = unscored("ok", None, decoded.header, length, digest)
        if not self._options.get("strict"):
            return row, [(row, decoded.pixels)]
        return row, [
            (replace(row, frames_scored=decoded.num_frames, scored_view=view.name), view.pixels)
            for view in decoded.views
        ]

    def _scored(self, row: ImageScore, predictions: Predictions, i: int) -> ImageScore:
        """Return the row with prediction `i`."""
        score, classes = float(predictions.nsfw_scores[i]), predictions.class_scores
        others = [] if predictions.other_scores is None else predictions.other_scores[i].tolist()
        other_scores = dict(zip(self.card.other_heads, others, strict=True))
        if wrong := _score_error(score, other_scores):
            return replace(row, status="not_finite", error=f"the model {self.card.name} gave {wrong}")
        return replace(
            row,
            nsfw_score=score,
            class_scores=None
            if classes is None
            else dict(zip(self.card.head.classes, classes[i].tolist(), strict=True)),
            embedding=None if predictions.embeddings is None else predictions.embeddings[i],
            other_scores=other_scores or None,
        )


def _rank(row: ImageScore) -> float:
    """Order rows of one image's views: what a model cannot judge is not safe."""
    return 2.0 if row.nsfw_score is None else row.nsfw_score


def scores_fingerprint(model_fingerprint: str, *, strict: bool) -> str:
    """Return the fingerprint of scores: scores of several views do not compare with scores of the centre."""
    return f"{model_fingerprint}-strict" if strict else model_fingerprint


def _score_error(nsfw_score: float, others: Mapping[str, float]) -> str | None:
    """Return the numbers that are no scores, for a message; None if all are."""
    if not 0 <= nsfw_score <= 1:  # NaN included
        return f"{nsfw_score} for this image"
    wrong = [f"{score} as {name}_score" for name, score in others.items() if not math.isfinite(score)]
    return f"{', '.join(wrong)} for this image" if wrong else None
