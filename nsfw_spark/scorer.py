"""Where a scorer's time went: counted while it scores, added up over tasks."""

from __future__ import annotations

import hashlib
import math
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol, Unpack

import numpy as np
import numpy.typing as npt

from nsfw_spark.cards import choose_card
from nsfw_spark.decode import DEFAULT_MAX_BYTES, DEFAULT_MAX_PIXELS, DecodedImage, DecodeOptions, decode
from nsfw_spark.errors import ImageError, ImageHeader, Status
from nsfw_spark.isolation import DECODE_TIMEOUT_SECONDS, IsolatedDecoder
from nsfw_spark.model import ModelSpec, Predictions, Predictor, load_model
from nsfw_spark.model_card import ModelCard, Preprocessing


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
    other_scores: dict[str, float] | None = None
    """By name of the card's other heads; None unless ok or where it has none."""
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
    frames_scored: int | None = None
    """Frames or pages whose views count; None unless the scorer is strict, and where nothing was decoded."""
    scored_view: str | None = None
    """The view that these scores and the embedding are of; None where `frames_scored` is."""
    first_score: float | None = None
    """Of a cascade's first model; None unless ok, and where there is no cascade."""
    second_score: float | None = None
    """Of a cascade's second model; None unless ok, and where it was not asked."""
    decided_by: str | None = None
    """Name of the model whose score `nsfw_score` is, in a cascade; None unless ok."""

    def column(self, name: str) -> Any:  # noqa: ANN401 - as its type in the tables is
        """Return what a column of image_scores says: a field of this name, or the score of another head."""
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
    """Return what is known of an image before the model has seen it.

    Args:
        status: `ok` where the model shall see it.
        error: For people; None when ok.
        header: None when unreadable.
        length: Bytes of the encoded image; None where it could not be read.
        digest: SHA-256 of these, hexadecimal.
    """
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


def highest(views: Iterable[tuple[ImageScore, bool]]) -> Iterator[ImageScore]:
    """Yield one row an image: of its views the first with the highest score.

    A view without a score has the last word: what a model cannot judge is not safe.

    Args:
        views: The rows of an image's views, one after the other, and whether it is its last.
    """
    best: ImageScore | None = None
    for row, is_last in views:
        best = row if best is None or _rank(row) > _rank(best) else best
        if is_last:
            yield best
            best = None


def _rank(row: ImageScore) -> float:
    return 2.0 if row.nsfw_score is None else row.nsfw_score


class Decoder(Protocol):
    """Decodes one image as `decode` does: in this process, or with more caution (`isolation`)."""

    def __call__(
        self, content: bytes | None, preprocessing: Preprocessing, /, **options: Unpack[DecodeOptions]
    ) -> DecodedImage:
        """Decode one image: see `decode`."""


@dataclass
class _Batch:
    """Views of images, without `strict` one of each, on their way through the model."""

    buffer: npt.NDArray[np.uint8]
    """uint8, shape (batch_size, S, S, 3), RGB."""
    rows: list[tuple[ImageScore, bool]] = field(default_factory=list)
    """In order, and whether it is its image's last; those that say `ok` wait for a score."""
    num_ok: int = 0

    @property
    def pixels(self) -> npt.NDArray[np.uint8]:
        """Those of the rows that say `ok`."""
        return self.buffer[: self.num_ok]


class Scorer:
    """A model, ready to score images. Make one with `load_scorer`.

    Attributes:
        card: The model's card.
        fingerprint: Hash of its weights, preprocessing and precision; says so where it is strict.
        device: `cpu` or `cuda:N`.
        self_check: What the model made of the built-in test image when it was loaded.
        batch_size: Images that go to the model at once.
        stages: Where the time went since `take_stages`.
    """

    def __init__(
        self,
        card: ModelCard,
        predictor: Predictor,
        *,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        max_bytes: int = DEFAULT_MAX_BYTES,
        strict: bool = False,
        decoder: Decoder = decode,
    ) -> None:
        self.card, self.device, self.self_check = card, predictor.device, predictor.self_check
        self.fingerprint = scores_fingerprint(predictor.fingerprint, strict=strict)
        self.batch_size = predictor.batch_size
        self.stages = Stages()
        self._predictor, self._decoder = predictor, decoder
        self._options = DecodeOptions(max_pixels=max_pixels, max_bytes=max_bytes, strict=strict)

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
        return highest(self._scored(contents))

    def take_stages(self) -> Stages:
        """Return where the time went since this was last asked."""
        stages, self.stages = self.stages, Stages()
        return stages

    def _scored(self, contents: Iterable[bytes | ImageError | None]) -> Iterator[tuple[ImageScore, bool]]:
        """Score the views of images: yield the row of each, and whether it is its image's last."""
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

    def _decoded(
        self, contents: Iterable[bytes | ImageError | None], free: list[npt.NDArray[np.uint8]]
    ) -> Iterator[_Batch]:
        """Yield batches, their pixels in memory that is free, if there is any."""
        batch = self._empty_batch(free)
        for row, is_last, pixels in self._views(contents):
            if pixels is not None:
                batch.buffer[batch.num_ok] = pixels
                batch.num_ok += 1
            batch.rows.append((row, is_last))
            # Bad images wait too, to keep the order; a run of them must not pile up.
            if batch.num_ok == self.batch_size or len(batch.rows) >= 8 * self.batch_size:
                yield batch
                batch = self._empty_batch(free)
        if batch.rows:
            yield batch

    def _empty_batch(self, free: list[npt.NDArray[np.uint8]]) -> _Batch:
        size = self.card.preprocessing.size
        return _Batch(free.pop() if free else np.empty((self.batch_size, size, size, 3), np.uint8))

    def _views(
        self, contents: Iterable[bytes | ImageError | None]
    ) -> Iterator[tuple[ImageScore, bool, npt.NDArray[np.uint8] | None]]:
        """Yield the row of each view, whether it is its image's last, and its pixels if it is ok."""
        for content in contents:
            started = time.perf_counter()
            row, decoded = self._decode(content)
            self.stages.decode_seconds += time.perf_counter() - started
            if decoded is None:
                yield row, True, None
            elif not self._options["strict"]:
                yield row, True, decoded.pixels
            else:
                views = decoded.views
                for view in views:
                    of_view = replace(row, frames_scored=decoded.num_frames, scored_view=view.name)
                    yield of_view, view is views[-1], view.pixels

    def _decode(self, content: bytes | ImageError | None) -> tuple[ImageScore, DecodedImage | None]:
        if isinstance(content, ImageError):
            return unscored(content.status, content.message, content.header), None
        length = digest = None
        if content is not None:
            length, digest = len(content), hashlib.sha256(content).hexdigest()
        try:
            decoded = self._decoder(content, self.card.preprocessing, **self._options)
        except ImageError as error:
            return unscored(error.status, error.message, error.header, length, digest), None
        return unscored("ok", None, decoded.header, length, digest), decoded

    def _finished(
        self, rows: list[tuple[ImageScore, bool]], predictions: Predictions
    ) -> Iterator[tuple[ImageScore, bool]]:
        scored = enumerate(predictions.nsfw_scores.tolist())
        for row, is_last in rows:
            if row.status != "ok":
                yield row, is_last
                continue
            i, score = next(scored)
            others = self._other_scores(predictions, i)
            if wrong := _score_error(score, others):
                error = f"the model {self.card.name} gave {wrong}"
                yield replace(row, status="not_finite", error=error), is_last
                continue
            classes, embeddings = predictions.class_scores, predictions.embeddings
            finished = replace(
                row,
                nsfw_score=score,
                class_scores=None
                if classes is None
                else dict(zip(self.card.head.classes, classes[i].tolist(), strict=True)),
                embedding=None if embeddings is None else embeddings[i],
                other_scores=others or None,
            )
            yield finished, is_last

    def _other_scores(self, predictions: Predictions, i: int) -> dict[str, float]:
        scores = [] if predictions.other_scores is None else predictions.other_scores[i].tolist()
        return dict(zip(self.card.other_heads, scores, strict=True))


def scores_fingerprint(model_fingerprint: str, *, strict: bool) -> str:
    """Return the fingerprint of scores: those of several views do not compare with those of the centre."""
    return f"{model_fingerprint}-strict" if strict else model_fingerprint


def load_scorer(  # noqa: PLR0913 - all but the first are keywords with defaults
    model: str | Path = "laion-vit-l-14",
    *,
    heads: Sequence[str] | None = None,
    device: str = "auto",
    model_dir: str | Path | None = None,
    batch_size: int | Literal["auto"] = "auto",
    max_pixels: int = DEFAULT_MAX_PIXELS,
    max_bytes: int = DEFAULT_MAX_BYTES,
    strict: bool = False,
    isolated: bool = False,
    decode_timeout_seconds: float = DECODE_TIMEOUT_SECONDS,
    score_class: str | None = None,
) -> Scorer:
    """Load a model for use in this process.

    Args:
        model: Name of a built-in model card, or path of a card file.
        heads: Of the card, `nsfw` among them; None: all that it has.
        device: `auto` (a GPU if there is one), `cpu`, `cuda` or `cuda:N`.
        model_dir: Directory with weights; else the Hugging Face cache, else they are downloaded.
        batch_size: Images in one forward pass; `auto` is 16 on a CPU, and on a GPU what is found to be fast.
        max_pixels: Width x height above which an image is `too_large`.
        max_bytes: Bytes of an encoded image above which it is.
        strict: Score what else the image may show, not its centre alone; the highest score counts.
        isolated: Decode in a child process, so that an image that crashes the image library, or takes all
            memory, is `crashed` and this process lives on. In Spark that is seen to without being asked for.
        decode_timeout_seconds: Where `isolated`: an image that takes longer is `crashed`.
        score_class: Class whose score becomes nsfw_score, of a model that has classes; default: the card's.

    Raises:
        ConfigError: No such card, it has no such head or class, or its library is not installed.
        WeightsError: Weights absent, or not the ones that the card pins.
        DeviceError: No usable GPU.
    """
    directory = None if model_dir is None else Path(model_dir)
    card = choose_card(model, heads=heads, score_class=score_class)
    loaded = load_model(ModelSpec(card, directory, device, batch_size))
    decoder = IsolatedDecoder(decode_timeout_seconds) if isolated else decode
    return Scorer(card, loaded, max_pixels=max_pixels, max_bytes=max_bytes, strict=strict, decoder=decoder)


def _score_error(nsfw_score: float, others: Mapping[str, float]) -> str | None:
    """Say which number is no score; None if all are."""
    if not 0 <= nsfw_score <= 1:  # NaN included
        return f"{nsfw_score} for this image"
    wrong = [f"{score} as {name}_score" for name, score in others.items() if not math.isfinite(score)]
    return f"{', '.join(wrong)} for this image" if wrong else None
