"""What a run did, as a value, as lines for a terminal, and as HTML for a notebook.

All three say which images to look at and what to do next. Names and reasons are strangers' data: they steer
no terminal and no page.
"""

from __future__ import annotations

import base64
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any, Final

from nsfw_spark.review.peek_text import clean, cut
from nsfw_spark.spark.progress import Counts

_COLUMNS: Final = 80
_MOST_TEXT: Final = 500
_STYLE: Final = """
.nsfw-spark table td, .nsfw-spark table th { text-align: right; padding: 2px 12px }
.nsfw-spark table td:first-child, .nsfw-spark table th:first-child { text-align: left }
.nsfw-spark button { border: 1px solid #8888; background: none; padding: 4px; margin: 2px; cursor: pointer }
.nsfw-spark button img { filter: blur(14px); display: block; max-width: 120px; max-height: 120px }
.nsfw-spark button:active img { filter: none }
.nsfw-spark svg rect { fill: #3b7dd8 } .nsfw-spark svg { max-width: 100% }
"""


@dataclass(frozen=True)
class RunSummary:
    """What a job did; the last line of the command's output."""

    counts: Counts
    """Images of this run; for `filter`, images in the tables."""
    totals: dict[str, int]
    """Rows of each table now."""
    unscored: list[tuple[str, str, str]]
    """image_id, status and error of a few images of this run without a score."""
    seconds: float
    run_id: str = ""
    """As in the tables."""
    output: str = ""
    """The tables' location, as the user named it."""
    threshold: float | None = None
    """None for a SQL policy, and without a policy."""
    highest: list[tuple[str, float]] = field(default_factory=list)
    """image_id and score of the images of this run with the highest scores."""
    nearest: list[tuple[str, float]] = field(default_factory=list)
    """image_id and score of the images of this run nearest to the threshold; none without a threshold."""
    histogram: Sequence[int] = ()
    """Scores of this run in 20 bins, each 0.05 wide; only in a notebook."""
    thumbnails: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    """WebP by image_id, of some of `highest`; only in a notebook."""

    def as_dict(self) -> dict[str, Any]:
        """Return the keys that users and scripts rely on, in their order."""
        counts = self.counts
        return {
            "images": counts.images,
            "ok": counts.ok,
            "safe": counts.safe,
            "flagged": counts.flagged,
            "quarantined": counts.quarantined,
            "seconds": round(self.seconds, 3),
            "images_per_second": round(counts.images / self.seconds, 1) if self.seconds else 0.0,
            "files_lost": counts.files_lost,
        }

    def _repr_html_(self) -> str:
        """Return the summary for a notebook."""
        return summary_html(self)


def summary_lines(summary: RunSummary) -> Iterator[str]:
    """Yield the lines that `nsfw-spark run`, `score` and `filter` end with."""
    for name, rows, share, of_run, meaning in _rows(summary):
        yield f"{name:20} {rows:>13} {share:>7} {of_run:>13}  {meaning}".rstrip()
    highest = _short(summary.highest)
    yield from _scores("Highest scores:", highest)
    if summary.threshold is not None and summary.nearest != summary.highest:
        yield from _scores(f"Nearest the threshold {summary.threshold:.4g}:", _short(summary.nearest))
    if summary.unscored:
        yield "Without a score:"
        for image_id, status, error in summary.unscored:
            yield cut(f"  {Path(image_id).name}: {status}, {error}", _COLUMNS, keep_start=True)
    more = summary.counts.quarantined - len(summary.unscored)
    if summary.unscored and more > 0:
        yield f"  and {more:,} more: column `error` of {_where_reasons_are(summary)}"
    yield from _next(summary)


def next_steps(summary: RunSummary) -> dict[str, str]:
    """Return the commands to run next, by what they are for."""
    output = shlex.quote(summary.output)
    look = {"Look at the images": f"nsfw-spark report {output} --html review.html"}
    if "safe_images" not in summary.totals:
        return {**look, "Filter": f"nsfw-spark filter {output} --threshold 0.5"}
    other = 0.3 if summary.threshold is None or summary.threshold > 0.3 else 0.1  # noqa: PLR2004
    return {**look, "Another threshold": f"nsfw-spark filter {output} --threshold {other}"}


def _rows(summary: RunSummary) -> Iterator[tuple[str, str, str, str, str]]:
    """Yield a title row, and a row for each table: its rows, their share, and those of this run."""
    counts, total = summary.counts, summary.totals.get("image_scores", 0)
    new = {
        "image_scores": counts.images,
        "safe_images": counts.safe,
        "flagged_images": counts.flagged,
        "quarantined_images": counts.quarantined,
    }
    limit = "the policy holds" if summary.threshold is None else f"score below {summary.threshold:.4g}"
    meanings = {"image_scores": "every image", "safe_images": limit}
    meanings |= {"flagged_images": "other scores", "quarantined_images": "no score"}
    yield "table", "rows", "share", "this run", ""
    for name, rows in summary.totals.items():
        share = f"{rows / total:.1%}" if total else ""
        yield name, f"{rows:,}", share, "" if new[name] is None else f"{new[name]:,}", meanings[name]


def _short(scored: Iterable[tuple[str, float]]) -> list[tuple[str, float]]:
    return [(image_id.rpartition("/")[2] or image_id, score) for image_id, score in scored]


def _scores(title: str, scored: Iterable[tuple[str, float]]) -> Iterator[str]:
    lines = [cut(f"  {score:.3f}  {name}", _COLUMNS, keep_start=True) for name, score in scored]
    yield from [title, *lines] if lines else []


def _where_reasons_are(summary: RunSummary) -> str:
    return "quarantined_images" if "quarantined_images" in summary.totals else "image_scores"


def _next(summary: RunSummary) -> Iterator[str]:
    if summary.counts.files_lost:
        yield f"Storage failed to give {summary.counts.files_lost:,} files, or parts of them. Run the same"
        yield "command again: it reads them again, and scores nothing twice."
    yield "Next:"
    width = max(map(len, next_steps(summary)))
    for purpose, command in next_steps(summary).items():
        yield f"  {purpose:{width}}  {command}"


def summary_html(summary: RunSummary) -> str:
    """Return HTML without scripts; thumbnails are blurred until somebody presses on one."""
    table = "".join(
        f"<tr>{''.join(f'<{cell}>{escape(each)}</{cell}>' for each in row)}</tr>"
        for cell, row in zip(["th"] + ["td"] * len(summary.totals), _rows(summary), strict=True)
    )
    steps = "".join(
        f"<li>{escape(purpose)}: <code>{escape(command)}</code></li>"
        for purpose, command in next_steps(summary).items()
    )
    parts = [f"<style>{_STYLE}</style>", f"<table>{table}</table>", _bars(summary), _buttons(summary)]
    if summary.unscored:
        reasons = (f"<li>{escape(clean(': '.join(each)))[:_MOST_TEXT]}</li>" for each in summary.unscored)
        parts.append(f"<p>Without a score:</p><ul>{''.join(reasons)}</ul>")
    return f'<div class="nsfw-spark">{"".join(parts)}<p>Next:</p><ul>{steps}</ul></div>'


def _bars(summary: RunSummary) -> str:
    """Return a histogram of the scores of this run."""
    if not any(summary.histogram):
        return ""
    highest, num = max(summary.histogram), len(summary.histogram)
    bars = "".join(
        f'<rect x="{i * 400 / num:.0f}" y="{80 - 80 * n / highest:.1f}" width="{400 / num - 2:.0f}" '
        f'height="{80 * n / highest:.1f}"><title>{i / num:.2f} to {(i + 1) / num:.2f}: {n:,}</title></rect>'
        for i, n in enumerate(summary.histogram)
    )
    label = "Histogram of the scores of this run, from 0 to 1"
    return f'<svg role="img" aria-label="{label}" width="400" height="80" viewBox="0 0 400 80">{bars}</svg>'


def _buttons(summary: RunSummary) -> str:
    """Return the thumbnails of the images with the highest scores."""
    pictures = []
    for image_id, score in summary.highest:
        if (small := summary.thumbnails.get(image_id)) is not None:
            name = escape(cut(image_id.rpartition("/")[2], _COLUMNS))
            data = base64.b64encode(small).decode()
            image = f'<img alt="blurred: {name}" src="data:image/webp;base64,{data}">'
            pictures.append(f'<button type="button" title="{name}">{image}{score:.3f}</button>')
    if not pictures:
        return ""
    return f"<p>Highest scores (press and hold to see an image):</p><div>{''.join(pictures)}</div>"
