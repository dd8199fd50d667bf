"""A scorer from options; and the cascade: a cheap model scores every image, a better one the uncertain ones.

    contents ─► first scorer ─► score in the band? ── no ──► the first score counts
                                        └─ yes ─► second scorer ─► the second score counts

Input and output of a cascade are those of a `Scorer`. Images for the second model are decoded again, because
its preprocessing differs. `load_scorer` makes a scorer or a cascade for use without Spark.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock
from typing import Final, Generic, TypeVar, Unpack

import numpy as np
import numpy.typing as npt

from nsfw_spark.cards import choose_card
from nsfw_spark.decode import decode
from nsfw_spark.errors import ConfigError
from nsfw_spark.heads import Predictions
from nsfw_spark.isolation import IsolatedDecoder
from nsfw_spark.model import Model, ModelSpec, Predictor, load_model
from nsfw_spark.options import Band, ScoreKeywords, ScoreOptions
from nsfw_spark.scorer import Content, Decoder, ImageScore, Scorer, Timings
from nsfw_spark.self_check import joined
from nsfw_spark.uris import absolute_uri
from nsfw_spark.weights import obtain_missing, with_lock

_K = TypeVar("_K")

_MOST_WAITING: Final = 1_024
"""Images that wait for a full batch of the second model, or for an image before them."""
_MOST_BYTES: Final = 64 << 20
"""Bytes of encoded images that wait for the second model."""


@dataclass
class _Window(Generic[_K]):
    """Images in their order, some of them for the second model."""

    rows: list[tuple[_K, ImageScore, bool]] = field(default_factory=list)
    """Key, the first model's row, and whether the second model has to look."""
    contents: list[Content] = field(default_factory=list)
    """The encoded images for the second model."""
    num_bytes: int = 0

    def add(self, key: _K, row: ImageScore, content: Content, *, is_uncertain: bool) -> None:
        self.rows.append((key, row, is_uncertain))
        if is_uncertain:
            self.contents.append(content)
            self.num_bytes += row.length or 0

    def is_full(self, batch_size: int) -> bool:
        return (
            len(self.contents) == batch_size
            or len(self.rows) == _MOST_WAITING
            or self.num_bytes >= _MOST_BYTES
        )


class Cascade:
    """Two scorers that work as one.

    Attributes:
        card: The first model's card.
        fingerprint: Hash of both models' fingerprints and of the band.
        device: Where the first model computes.
        batch_size: Images that go to the first model at once.
        self_check: The answers of both to the built-in test image when they were loaded.

    Example:
        >>> from nsfw_spark import Cascade, load_scorer
        >>> first, second = load_scorer("open-nsfw"), load_scorer("laion-vit-l-14")  # doctest: +SKIP
        >>> Cascade(first, second, 0.1, 0.9).score([content])[0].decided_by  # doctest: +SKIP
        'laion-vit-l-14'
    """

    def __init__(self, first: Scorer, second: Scorer, low: float, high: float) -> None:
        """Join two scorers.

        Args:
            first: Scores every image.
            second: Scores the images with an uncertain first score.
            low: The lowest uncertain score; an image with a lower one is surely safe.
            high: The highest uncertain score; an image with a higher one is surely not safe.

        Raises:
            ConfigError: The two are not scores, the lower one first.
        """
        self.first, self.second, self.band = first, second, Band.of(low, high)
        self.card, self.device, self.decoder = first.card, first.device, first.decoder
        self.batch_size = first.batch_size
        self.fingerprint = cascade_fingerprint(first.fingerprint, second.fingerprint, self.band)
        one, other = first.self_check, second.self_check
        self.self_check = None if one is None or other is None else joined(one, other)
        self._num_second = 0

    def score(self, contents: Sequence[Content]) -> list[ImageScore]:
        """Score images: see `Scorer.score`."""
        return list(self.stream(contents))

    def stream(self, contents: Iterable[Content]) -> Iterator[ImageScore]:
        """Score images as they come: see `Scorer.stream`."""
        return (row for _, row in self.score_each((None, content) for content in contents))

    def score_each(self, images: Iterable[tuple[_K, Content]]) -> Iterator[tuple[_K, ImageScore]]:
        """Score images as they come: see `Scorer.score_each`. Memory holds a batch of the second model."""
        window: _Window[_K] = _Window()
        keyed = (((key, content), content) for key, content in images)
        for (key, content), row in self.first.score_each(keyed):
            window.add(key, row, content, is_uncertain=row.nsfw_score in self.band)
            if window.is_full(self.second.batch_size):
                yield from self._decided(window)
                window = _Window()
        yield from self._decided(window)

    def take_timings(self) -> Timings:
        """Return the seconds that both spent since the last call."""
        timings = self.first.take_timings() + self.second.take_timings() + Timings(second=self._num_second)
        self._num_second = 0
        return timings

    def _decided(self, window: _Window[_K]) -> Iterator[tuple[_K, ImageScore]]:
        seconds = self.second.stream(window.contents) if window.contents else iter(())
        self._num_second += len(window.contents)
        for key, row, is_uncertain in window.rows:
            if is_uncertain:
                yield key, self._by_second(row, next(seconds))
            elif row.status == "ok":
                yield key, replace(row, first_score=row.nsfw_score, decided_by=self.first.card.name)
            else:
                yield key, row

    def _by_second(self, first: ImageScore, second: ImageScore) -> ImageScore:
        """Return the second model's row, completed by the first model's if the second gave a score."""
        if second.status != "ok":
            return second
        return replace(
            second,
            # One model's in all rows, or they could not be compared.
            embedding=first.embedding,
            other_scores=first.other_scores,
            first_score=first.nsfw_score,
            second_score=second.nsfw_score,
            decided_by=self.second.card.name,
        )


def cascade_fingerprint(first: str, second: str, band: Band) -> str:
    """Return the fingerprint of the scores of a cascade: 16 hexadecimal digits."""
    decisive = f"{first} {second} {band.low!r} {band.high!r}"
    return hashlib.sha256(decisive.encode()).hexdigest()[:16]


def load_scorer(
    model: str | Path = "laion-vit-l-14", *, isolated: bool = False, **options: Unpack[ScoreKeywords]
) -> Scorer | Cascade:
    """Load a model for use in this process, without Spark.

    Args:
        model: Name of a built-in model card, or path of a card file.
        isolated: Decode in a child process. An image that crashes the image library, or takes all memory,
            is then `crashed`, and this process lives on. Spark jobs do this by themselves.
        options: See `ScoreOptions`. Weights that are neither in `model_dir` nor in the Hugging Face cache are
            downloaded. `host` and `ship_weights` need Spark.

    Returns:
        A `Scorer`, or a `Cascade` where `second` is given; both have `score`, `stream` and `score_each`.

    Raises:
        ConfigError: An option is wrong, there is no such card, head or class, or a library is not installed.
        WeightsError: Weights are absent, or are not the ones that the card pins.
        DeviceError: No usable GPU.
    """
    chosen = ScoreOptions.parse({"model": model, **options})
    if chosen.host != "auto" or chosen.ship_weights:
        raise ConfigError("got host or ship_weights; expected them in Spark only, as in score_images")
    specs = model_specs(chosen)
    if chosen.model_source is not None:
        for spec in specs:
            obtain_missing(spec.card, spec.model_dir, model_source=absolute_uri(chosen.model_source))
    decoder = IsolatedDecoder(chosen.decode_timeout_seconds) if isolated else decode
    return _scorer(specs, [load_model(spec) for spec in specs], decoder, chosen)


@contextmanager
def open_scorers(number: int, options: ScoreOptions) -> Iterator[list[Scorer | Cascade]]:
    """Load a model once for several threads; each scorer has a child process of its own that decodes.

    So threads decode images while the model is busy with others, and no image ends this process. The child
    processes start while the model is loaded, and end with the block.

    Raises:
        ConfigError, WeightsError, DeviceError: As `load_scorer`.
    """
    specs = model_specs(options)
    if options.model_source is not None:
        for spec in specs:
            obtain_missing(spec.card, spec.model_dir, model_source=absolute_uri(options.model_source))
    # This thread only waits: the import of a native library takes Ctrl-C for a broken installation.
    threads = ThreadPoolExecutor(number + 1)
    with ExitStack() as ending:
        ending.callback(threads.shutdown, wait=False)
        decoders = [IsolatedDecoder(options.decode_timeout_seconds) for _ in range(number)]
        for decoder in decoders:
            ending.push(decoder)
        starts = [threads.submit(decoder.__enter__) for decoder in decoders]
        models = threads.submit(lambda: [_InTurn(load_model(spec)) for spec in specs]).result()
        for start in starts:
            start.result()
        yield [_scorer(specs, models, decoder, options) for decoder in decoders]


class _InTurn:
    """A model that several threads use in turn: a `Predictor`."""

    def __init__(self, model: Model) -> None:
        self.fingerprint, self.device, self.self_check = model.fingerprint, model.device, model.self_check
        self.batch_size = model.batch_size
        self._model, self._lock = model, Lock()

    def predict_each(self, batches: Iterable[npt.NDArray[np.uint8]]) -> Iterator[Predictions]:
        """Predict batch after batch: see `Predictor.predict_each`."""
        for batch in batches:  # decodes the next batch, outside the lock
            with self._lock:
                (predictions,) = self._model.predict_each([batch])
            yield predictions


def _scorer(
    specs: Sequence[ModelSpec], models: Sequence[Predictor], decoder: Decoder, options: ScoreOptions
) -> Scorer | Cascade:
    """Return the scorer of one model, or the cascade of two."""
    first, *second = (
        Scorer(spec.card, model, decoder=decoder, **options.decode)
        for spec, model in zip(specs, models, strict=True)
    )
    return Cascade(first, second[0], *options.uncertain) if second else first


def model_specs(options: ScoreOptions) -> list[ModelSpec]:
    """Read the card of the model, and of the second model if there is one; load and download nothing.

    A second model has no head except the one that decides.

    Raises:
        ConfigError: A card or the lock file is wrong, there is no such head or class, or the first model has
            a head whose column a cascade needs.
    """
    model_dir = options.model_dir and options.model_dir.absolute()  # Python workers have another directory
    cards = [choose_card(options.model, heads=options.heads, score_class=options.score_class)]
    if options.second is not None:
        if taken := {"first", "second"} & set(cards[0].other_heads):
            raise ConfigError(
                f"the model {cards[0].name} has a head {taken.pop()}, and a cascade has a column of that "
                "name itself: choose heads without it"
            )
        cards.append(choose_card(options.second, heads=["nsfw"]))
    cards = [with_lock(card, model_dir, options.weights_lock) for card in cards]
    return [ModelSpec(card, model_dir, options.device, options.batch_size) for card in cards]
