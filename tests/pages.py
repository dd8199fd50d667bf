"""Reports for the tests of the page: from everyday ones to hostile ones."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from io import BytesIO
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from nsfw_spark.review.report import EDGES, Bins, Example, Group, Reason, Report, Run, histogram

MADE_AT: Final = datetime(2026, 11, 27, 9, 0, tzinfo=UTC)
HOSTILE: Final = (
    "<script>window.__hacked = 1</script>",
    "</script><script>window.__hacked = 1</script>",
    "<!--<script>window.__hacked = 1",
    '"><img src=x onerror="window.__hacked = 1">',
    "'+(window.__hacked=1)+'",
    "{{ 7 * 7 }} ${7 * 7} {threshold}",
    "innocent\u202egpj.exe",
    "\u2066mixed \u05d0\u05d1 right to left\u2069 and \u0627\u0644",
    "line\nbreak\ttab\x00nul\x1b[31mred\u2028next",
    "lone \ud800 surrogate",
    "x" * 4_000,
    "\U0001f600" * 4_000,
    "=HYPERLINK(1)",
    'comma, quote " and line\r\nbreak',
)
"""Texts that a stranger may put into a name, a caption or a reason."""


def scores(number: int, seed: int = 0) -> npt.NDArray[np.float32]:
    """Return float32 scores (N,), many of them low; the first ones are exactly thresholds of the page."""
    random = np.random.default_rng(seed).beta(0.4, 2.0, number).astype(np.float32)
    exact = np.array([0.0, 0.05, 0.5, 0.999, 1.0, 0.3, 0.7], np.float32)[:number]
    random[: len(exact)] = exact
    return random


def bins_of(values: npt.NDArray[np.float32]) -> Bins:
    """Return the bins of scores."""
    numbers = np.searchsorted(EDGES, values, side="right") - 1
    return {int(bin_): int(n) for bin_, n in zip(*np.unique(numbers, return_counts=True), strict=True)}


def webp(seed: int, size: int = 64, quality: int = 70) -> bytes:
    """Return a WebP of seeded noise."""
    noise = np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)
    buffer = BytesIO()
    Image.fromarray(noise).save(buffer, "WEBP", quality=quality)
    return buffer.getvalue()


def examples(number: int, seed: int = 1, **fields: Any) -> list[Example]:  # noqa: ANN401
    """Return examples with small thumbnails; every tenth has none."""
    return [
        Example(
            **{
                "image_id": f"file:/photos/{i:04}.jpg",
                "status": "ok",
                "score": float(score),
                "thumbnail": None if i % 10 == 9 else webp(i),
                "missing": "the image is no longer there" if i % 10 == 9 else None,
                "details": {"caption": f"caption {i}"},
                **fields,
            }
        )
        for i, score in enumerate(scores(number, seed))
    ]


def report(number: int = 2_000, num_examples: int = 60, **fields: Any) -> Report:  # noqa: ANN401
    """Return an everyday report of some images; `fields` replace its fields."""
    values = scores(number)
    half = len(values) // 2
    bad = [Example("file:/photos/bad.jpg", "undecodable", error="damaged", missing="cannot be decoded")]
    everyday = {
        "title": "s3a://bucket/scores",
        "made_at": MADE_AT,
        "threshold": 0.3,
        "bins": bins_of(values),
        "statuses": {"ok": number, "undecodable": 7, "missing": 3},
        "examples": examples(num_examples),
        "reasons": [Reason("undecodable", "damaged at byte N", 7, bad), Reason("missing", "no such file", 3)],
        "groups": {
            "host": [
                Group("a.example", bins_of(values[:half]), 4),
                Group("b.example", bins_of(values[half:]), 6),
                Group("(none)", {}, 0),
            ]
        },
        "classes": {"hentai": histogram(bins_of(values)), "drawing": [0] * 19 + [5]},
        "runs": runs(values),
        "facts": {"model": "open-nsfw", "policy": "nsfw_score < 0.3"},
        "notes": ["The images are sampled."],
        "filter_command": "nsfw-spark filter s3a://bucket/scores --threshold {threshold}",
    }
    return Report(**{**everyday, **fields})


def runs(values: npt.NDArray[np.float32]) -> list[Run]:
    """Return three runs, the latest first: a drift, one that scored nothing, and the first."""
    few, many = histogram(bins_of(values)), histogram(bins_of(np.sqrt(values)))
    return [
        Run(
            run_id=str(i),
            command=command,
            started_at=MADE_AT - timedelta(days=i),
            outcome="done",
            images=sum(counts),
            unscored=sum(counts) // 50,
            seconds=12.0 if sum(counts) else 0.0,
            decode_seconds=8.0,
            wait_seconds=2.0,
            encode_seconds=10.0,
            model="open-nsfw",
            histogram=counts,
        )
        for i, (command, counts) in enumerate([("run", many), ("filter", []), ("run", few)])
    ]


def hostile() -> Report:
    """Return a report with a hostile text wherever a text may be."""
    values = scores(len(HOSTILE))
    texts = {text: text for text in HOSTILE}
    made = [
        Example(
            text, "ok", float(score), thumbnail=webp(1) if i % 2 else None, missing=text, details={text: text}
        )
        for i, (text, score) in enumerate(zip(HOSTILE, values, strict=True))
    ]
    failed = [Example(text, "crashed", error=text, missing=text, details=texts) for text in HOSTILE]
    return Report(
        title=HOSTILE[0] + HOSTILE[6] + HOSTILE[9],
        made_at=MADE_AT,
        threshold=0.3,
        bins=bins_of(values),
        statuses={"ok": len(values), **dict.fromkeys(HOSTILE, 1)},
        examples=made,
        reasons=[Reason(text, text, 1, failed) for text in HOSTILE],
        groups={text: [Group(each, bins_of(values), 1) for each in HOSTILE] for text in HOSTILE},
        classes={text: [1] * 20 for text in HOSTILE},
        runs=[
            Run("1", text, MADE_AT, text, images=1, seconds=1.0, model=text, policy=text, histogram=[1] * 20)
            for text in HOSTILE
        ],
        facts=texts,
        notes=HOSTILE,
        filter_command=f"nsfw-spark filter '{HOSTILE[1]}{HOSTILE[8]}' --threshold {{threshold}}",
    )


def heavy() -> Report:
    """Return a report of 400 examples with thumbnails as large as they may be: 256 pixels of noise."""
    noise = [webp(i, 256, quality=90) for i in range(8)]
    made = [
        Example(f"{i}.jpg", "ok", float(score), thumbnail=noise[i % 8]) for i, score in enumerate(scores(400))
    ]
    return report(10_000, examples=made)


EMPTY: Final = Report(title="none", made_at=MADE_AT, threshold=0.5, bins={}, statuses={})
"""No image at all."""
