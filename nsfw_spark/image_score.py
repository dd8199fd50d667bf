"""What there is to know of one image, and which of several views tells it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nsfw_spark.errors import ImageHeader, Status


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
