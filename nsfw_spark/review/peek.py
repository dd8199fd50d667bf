"""Scores a sample of an input without Spark, to see what a run would find and how long it would take.

In: the options of `nsfw-spark peek`. Out: a `Peek`, from which `peek_text` makes text. Writes nothing.

    sample ── images ──► threads, each with a scorer ── decode, in a child process each ──► one model

The images are untrusted and nobody will restart this process, so each thread decodes in a child process. That
costs half a second of CPU for each child, most of it while the model is loaded.
"""

from __future__ import annotations

import os
import shlex
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from queue import SimpleQueue
from typing import Any, Final, NamedTuple

import numpy as np

from nsfw_spark.cascade import Cascade, model_specs, open_scorers
from nsfw_spark.decode import DecodeOptions
from nsfw_spark.errors import ImageError, Status
from nsfw_spark.options import JobOptions, PeekOptions, SampleOptions
from nsfw_spark.review.peek_sample import Count, Sample, SampledImage, take_sample
from nsfw_spark.review.thumbnail import thumbnail
from nsfw_spark.scorer import Content, Scorer
from nsfw_spark.uris import absolute_uri, is_listed_in

NUM_BINS: Final = 20
"""Bins of the histogram, each 0.05 wide."""
_MOST_SHOWN: Final = 10
"""Images of each list."""
_MOST_THREADS: Final = 4  # more would cost more to start than they gain on a few hundred images
_BEGINNINGS: Final = {"webdataset": "tar", "parquet": "row group"}
_MINUTE: Final = 60
_HOUR: Final = 60 * _MINUTE
_DAY: Final = 24 * _HOUR


class Found(NamedTuple):
    """One scored image."""

    image: SampledImage
    status: Status
    score: float | None
    """nsfw_score; None unless ok."""
    error: str | None
    """Why there is no score; None when ok."""
    thumbnail: bytes | None = None
    """WebP; None unless it was asked for and could be made."""


@dataclass(frozen=True)
class Peek:
    """What a sample says about an input."""

    options: PeekOptions
    uri: str
    """The input as a run names it; `file:/…` on this machine."""
    format: str
    """`files`, `webdataset` or `parquet`."""
    model: str
    """Name of the model card."""
    device: str
    """`cpu` or `cuda:N`."""
    images: Sequence[Found]
    """The sample, in the order of image_ids."""
    count: Count
    """Images of the whole input."""
    seconds: float
    """Seconds of reading, decoding and scoring the sample, without the start of the model."""
    notes: Sequence[str] = field(default=())
    """What the sample does not show, for people."""

    @cached_property
    def scored(self) -> list[Found]:
        """The images with a score, the highest score first."""
        return sorted(
            (each for each in self.images if each.score is not None), key=lambda each: -_score(each)
        )

    @cached_property
    def unscored(self) -> list[Found]:
        """The images without a score."""
        return [each for each in self.images if each.score is None]

    @property
    def reasons(self) -> list[Found]:
        """The images without a score, first one of each status, then a second one of each, and so on."""
        ranks: Counter[str] = Counter()
        ranked = []
        for each in self.unscored:
            ranked.append((ranks[each.status], each))
            ranks[each.status] += 1
        return [each for _, each in sorted(ranked, key=lambda pair: pair[0])]

    @property
    def statuses(self) -> dict[str, int]:
        """Number of images of each status, the most frequent first."""
        return dict(Counter(each.status for each in self.images).most_common())

    @property
    def num_flagged(self) -> int:
        """Images whose score is not below the threshold, compared as float32 like the policy of a run."""
        threshold = float(np.float32(self.options.threshold))
        return sum(_score(each) >= threshold for each in self.scored)

    @property
    def highest(self) -> list[Found]:
        """The ten images with the highest scores."""
        return self.scored[:_MOST_SHOWN]

    @property
    def nearest(self) -> list[Found]:
        """The ten images with the scores nearest the threshold, the nearest first."""
        distance = sorted(self.scored, key=lambda each: abs(_score(each) - self.options.threshold))
        return distance[:_MOST_SHOWN]

    @property
    def histogram(self) -> list[int]:
        """Number of scores in each of the 20 bins."""
        bins = Counter(bin_of(_score(each)) for each in self.scored)
        return [bins[i] for i in range(NUM_BINS)]

    @property
    def images_per_second(self) -> float:
        """Speed of this process on this machine."""
        return len(self.images) / max(self.seconds, 1e-9)

    @property
    def run_seconds(self) -> float:
        """Seconds that this process would take for the whole input."""
        return self.count.number / self.images_per_second

    @property
    def next_command(self) -> str:
        """The command that scores the whole input with the same options."""
        words = ["nsfw-spark", "run", self.options.input, "--output", _output_for(self.options.input)]
        of_run = JobOptions.model_fields.keys() - SampleOptions.model_fields.keys() - {"input"}
        for name in PeekOptions.model_fields:
            if name in of_run & self.options.model_fields_set:
                words += _as_words(name, getattr(self.options, name))
        return shlex.join(words)

    def as_dict(self) -> dict[str, Any]:
        """Return the result for programs: the values of JSON."""
        return {
            "input": self.options.input,
            "format": self.format,
            "model": self.model,
            "device": self.device,
            "threshold": self.options.threshold,
            "seed": self.options.seed,
            "images": len(self.images),
            "images_of_input": self.count.number,
            "images_of_input_is_estimate": self.count.is_estimate,
            "images_of_input_is_at_least": self.count.is_at_least,
            "statuses": self.statuses,
            "safe": len(self.scored) - self.num_flagged,
            "flagged": self.num_flagged,
            "histogram": self.histogram,
            "highest": [_as_dict(each) for each in self.highest],
            "nearest": [_as_dict(each) for each in self.nearest],
            "unscored": [_as_dict(each) for each in self.unscored],
            "images_per_second": round(self.images_per_second, 2),
            "seconds_of_run_here": round(self.run_seconds, 1),
            "notes": list(self.notes),
            "next": self.next_command,
        }


def peek(
    options: PeekOptions,
    progress: Callable[[str], None] = lambda _: None,
    *,
    with_thumbnails: bool = False,
) -> Peek:
    """Score a sample of an input.

    Args:
        options: The options of `nsfw-spark peek`.
        progress: Gets a few words now and then, for people.
        with_thumbnails: Keep a thumbnail of each image with a score.

    Raises:
        InputError: The input is absent, empty, or of a shape that a peek cannot read.
        ConfigError, WeightsError, DeviceError: As `load_scorer`.
    """
    model_specs(options)  # an unknown model is an error before a long listing
    progress("listing the images")
    sample = take_sample(options)
    progress(f"loading {options.model}")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with open_scorers(min(cores, _MOST_THREADS, options.n), options) as scorers:
        started, images = time.monotonic(), []
        for image in _scored(sample, scorers, options.decode if with_thumbnails else None):
            images.append(image)
            left = (options.n - len(images)) * (time.monotonic() - started) / len(images)
            progress(f"scored {len(images):,} of at most {options.n:,} images, {duration(left)} left")
        seconds = time.monotonic() - started
    images.sort(key=lambda each: each.image)
    model, device, count = scorers[0].card.name, scorers[0].device, sample.count()
    notes = [*sample.notes]
    if sample.format in _BEGINNINGS and len(images) < count.number:
        notes.append(f"the sample has the first images of each {_BEGINNINGS[sample.format]} that was opened")
    return Peek(options, sample.uri, sample.format, model, device, images, count, seconds, notes)


def bin_of(score: float) -> int:
    """Return the bin of the histogram that holds a score."""
    return min(int(score * NUM_BINS), NUM_BINS - 1)


def duration(seconds: float) -> str:
    """Return a duration for people, such as `about 3 h 20 min`."""
    if (seconds := round(seconds)) < 1:
        return "less than a second"
    if seconds < _MINUTE:
        return f"about {seconds} s"
    if seconds < _HOUR:
        return f"about {seconds // _MINUTE} min {seconds % _MINUTE} s"
    if seconds < 2 * _DAY:
        return f"about {seconds // _HOUR} h {seconds % _HOUR // _MINUTE} min"
    return f"about {seconds / _DAY:,.0f} days"


def _scored(
    sample: Sample, scorers: Sequence[Scorer | Cascade], limits: DecodeOptions | None
) -> Iterator[Found]:
    """Yield the images of a sample as they are scored, in any order; with limits, with thumbnails."""
    images, done = _Shared(sample.images), SimpleQueue[Found | BaseException | None]()

    def score(scorer: Scorer | Cascade) -> None:
        try:
            keyed = (((image, content), content) for image, content in images)
            for (image, content), row in scorer.score_each(keyed):
                is_shown = limits is not None and row.status == "ok"
                small = _thumbnail(content, scorer, limits or {}) if is_shown else None
                done.put(Found(image, row.status, row.nsfw_score, row.error, small))
            done.put(None)
        except BaseException as error:  # noqa: BLE001 - raised below, in the main thread
            done.put(error)

    for scorer in scorers:
        # Daemons: Ctrl-C reaches the main thread, which must not wait for a batch of a large model.
        threading.Thread(target=score, args=(scorer,), daemon=True).start()
    num_running = len(scorers)
    while num_running:
        outcome = done.get()
        if isinstance(outcome, BaseException):
            raise outcome
        if outcome is None:
            num_running -= 1
        else:
            yield outcome


def _thumbnail(content: Content, scorer: Scorer | Cascade, limits: DecodeOptions) -> bytes | None:
    try:
        return thumbnail(content, scorer.decoder, **limits)
    except ImageError:  # scored, but its child ran out of memory or time now
        return None


class _Shared(Iterator[tuple[SampledImage, Content]]):
    """An iterator from which several threads take images."""

    def __init__(self, images: Iterator[tuple[SampledImage, Content]]) -> None:
        self._images, self._lock = images, threading.Lock()

    def __next__(self) -> tuple[SampledImage, Content]:
        with self._lock:
            return next(self._images)


def _score(found: Found) -> float:
    return -1.0 if found.score is None else found.score


def _as_dict(found: Found) -> dict[str, Any]:
    # JSON has no half characters, which stand for bytes of a name that are not UTF-8.
    image_id = found.image.image_id.encode(errors="backslashreplace").decode()
    if found.score is not None:
        return {"image_id": image_id, "nsfw_score": round(found.score, 6)}
    return {"image_id": image_id, "status": found.status, "error": found.error}


def _output_for(uri: str) -> str:
    """Return a directory for the tables of a run: outside the input, as a run demands."""
    return f"{absolute_uri(uri).rstrip('/')}-scores" if is_listed_in("scores", uri) else "scores"


def _as_words(name: str, value: object) -> list[str]:
    """Return an option as the words of a command."""
    flag = f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        return [flag] if value else []
    if isinstance(value, tuple):
        separator = ":" if name == "uncertain" else ","
        return [flag, separator.join(map(str, value))]
    return [flag, str(value)]
