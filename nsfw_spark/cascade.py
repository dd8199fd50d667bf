"""A cascade: a cheap model scores every image, a better one those of which the first is not sure.

    contents ─► first scorer ─► score in the band? ── no ──► the first decides
                                        └─ yes ─► second scorer ─► the second decides

In and out are those of a `Scorer`: encoded images in, one `ImageScore` each out, in order. Images that the
second has to look at are decoded again, for it: its preprocessing is another.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Generic, NamedTuple, Self, TypeVar

from nsfw_spark.errors import ConfigError
from nsfw_spark.scorer import Content, ImageScore, Scorer, Timings
from nsfw_spark.self_check import joined

_K = TypeVar("_K")

_MOST_WAITING: Final = 1_024
"""Images that wait for the second model, or behind one that does: it wants full batches."""
_MOST_BYTES: Final = 64 << 20
"""Of encoded images that wait for the second model."""


class Band(NamedTuple):
    """Scores of which the first model is not sure, both ends among them."""

    low: float
    high: float

    @classmethod
    def of(cls, low: float, high: float) -> Self:
        """Return the band between two scores.

        Raises:
            ConfigError: They are not in [0, 1], or the lower one is not first.
        """
        if not 0 <= low <= high <= 1:
            raise ConfigError(f"expected two scores from 0 to 1, the lower one first; got {low} and {high}")
        return cls(low, high)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the band that was written as LOW:HIGH.

        Raises:
            ConfigError: It was not.
        """
        low, _, high = text.partition(":")
        try:
            return cls.of(float(low), float(high))
        except (ValueError, ConfigError):
            raise ConfigError(f"expected LOW:HIGH, two scores such as 0.1:0.9; got {text!r}") from None

    def __contains__(self, score: object) -> bool:
        return isinstance(score, float) and self.low <= score <= self.high


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
    """Two scorers, to be used as one.

    Attributes:
        fingerprint: Hash of both models' fingerprints and of the band.
        self_check: What both made of the built-in test image when they were loaded.

    Example:
        >>> from nsfw_spark import Cascade, load_scorer
        >>> first, second = load_scorer("open-nsfw"), load_scorer("laion-vit-l-14")  # doctest: +SKIP
        >>> Cascade(first, second, 0.1, 0.9).score([content])[0].decided_by  # doctest: +SKIP
        'laion-vit-l-14'
    """

    def __init__(self, first: Scorer, second: Scorer, low: float, high: float) -> None:
        """Make a cascade.

        Args:
            first: Scores every image.
            second: Scores those of which the first is not sure.
            low: Below it the first is sure that an image is safe.
            high: Above it the first is sure that it is not.

        Raises:
            ConfigError: These are not two scores, the lower one first.
        """
        self.first, self.second, self.band = first, second, Band.of(low, high)
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
        """Return where the time of both went since this was last asked."""
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
        """Return the second's row, with what only the first can tell; without a score if it has none."""
        if second.status != "ok":
            return second
        return replace(
            second,
            # Of one model in all rows, else they could not be compared.
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
