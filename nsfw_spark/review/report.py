"""The contents of a report: what a page shows of a table or of a sample, as values.

`nsfw_spark.spark.report` fills a `Report` from the tables of a run, `Peek.report` from a sample; `page`
turns it into one HTML file. Knows neither where the values come from nor how they look.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

import numpy as np

NUM_STEPS: Final = 1000
"""The thresholds of a page are the multiples of 0.001 from 0 to 1."""
EDGES: Final[tuple[float, ...]] = tuple(float(np.float32(i / NUM_STEPS)) for i in range(NUM_STEPS + 1))
"""The thresholds as float32: a policy compares float32 with float32."""


def bin_of(score: float) -> int:
    """Return the bin of a score: the number of the highest threshold that is not above it, 0 to 1000."""
    return bisect_right(EDGES, float(np.float32(score))) - 1


Bins = Mapping[int, int]
"""Number of images in each bin of `bin_of` that has any. The images below threshold i/1000 are those of the
bins 0 to i - 1."""


@dataclass(frozen=True)
class Example:
    """One image that a page shows."""

    image_id: str
    status: str
    """`ok`, or why there is no score."""
    score: float | None = None
    """nsfw_score; None unless ok."""
    error: str | None = None
    """Why there is no score; None when ok."""
    thumbnail: bytes | None = None
    """WebP, at most 256 pixels wide and high; None shows a placeholder."""
    missing: str | None = None
    """Why there is no thumbnail, for people, such as `the image is no longer there`."""
    details: Mapping[str, str] = field(default_factory=dict)
    """Further columns by name, such as `caption`; untrusted text."""


@dataclass(frozen=True)
class Reason:
    """Images that have no score for the same reason."""

    status: str
    reason: str
    """The column `error` with each number replaced by `N`."""
    images: int
    examples: Sequence[Example] = ()


@dataclass(frozen=True)
class Group:
    """The images with one value of a column."""

    value: str
    """`(none)` for null, `(other)` for all values after the most frequent ones."""
    bins: Bins
    """Of the images with a score."""
    unscored: int = 0


@dataclass(frozen=True)
class Run:
    """One row of the table `runs`."""

    run_id: str
    command: str
    started_at: datetime
    """With a time zone."""
    outcome: str
    """`running`, `done` or `interrupted`."""
    images: int = 0
    unscored: int = 0
    seconds: float = 0.0
    """Of the whole job."""
    decode_seconds: float = 0.0
    """Of all tasks together; so are the next two."""
    wait_seconds: float = 0.0
    encode_seconds: float = 0.0
    model: str | None = None
    policy: str | None = None
    histogram: Sequence[int] = ()
    """Scores of this run in 20 bins, each 0.05 wide; empty if the run scored nothing."""


@dataclass(frozen=True)
class Report:
    """Everything that a page shows."""

    title: str
    """The tables' location, or the input of a peek."""
    made_at: datetime
    """With a time zone."""
    threshold: float
    """The lower threshold at first: an image is safe if its score is below."""
    bins: Bins
    """Of the images with a score."""
    statuses: Mapping[str, int]
    """Number of images of each status, `ok` among them."""
    examples: Sequence[Example] = ()
    """Images with a score, in any order."""
    reasons: Sequence[Reason] = ()
    """The most frequent reasons first."""
    groups: Mapping[str, Sequence[Group]] = field(default_factory=dict)
    """By the name of a column."""
    classes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Scores of each class in 20 bins, each 0.05 wide; empty for a model without classes."""
    runs: Sequence[Run] = ()
    """The last runs, the latest first."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """Model card, fingerprint, policy, versions: names and values, in the order of the page."""
    is_sample: bool = False
    """Whether the counts are of a sample, as of a peek."""
    notes: Sequence[str] = ()
    """What the reader must know of these numbers."""
    filter_command: str | None = None
    """Such as `nsfw-spark filter OUT --threshold {threshold}`; the page fills in the threshold. None if there
    are no tables to filter."""

    @property
    def num_scored(self) -> int:
        """Images with a score."""
        return sum(self.bins.values())

    def num_below(self, threshold: float) -> int:
        """Images with a score below one of the thresholds in `EDGES`."""
        return sum(n for bin_, n in self.bins.items() if bin_ < round(threshold * NUM_STEPS))


def histogram(bins: Bins, num_bins: int = 20) -> list[int]:
    """Return the number of scores in each of some equally wide bins; a score of 1 lies in the last one."""
    counts = [0] * num_bins
    for bin_, n in bins.items():
        counts[min(bin_ * num_bins // NUM_STEPS, num_bins - 1)] += n
    return counts
