"""Turns a `Report` into one HTML file that loads nothing.

In: a `Report`. Out: the text of the file, always under 5 MB. Its parts are `page.html`, `page.css` and
`page.js` beside this module. Names, captions and reasons are strangers' texts: the page escapes, isolates
and shortens them, and its policy lets only its own script run. Knows nothing of Spark.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import json
import math
import os
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any, Final, NamedTuple

import jinja2
from markupsafe import Markup

from nsfw_spark.errors import ConfigError, StorageError
from nsfw_spark.review.report import NUM_STEPS, Bins, Example, Group, Report, Run, bin_of

MAX_BYTES: Final = 5_000_000
"""No page is larger."""
THUMBNAIL_BUDGET: Final = 3_500_000
"""Bytes of base64 of all thumbnails together."""

_MAX_TEXTS: Final = 1_300_000  # bytes of everything else
_MAX_ID: Final = 4_000  # characters; a longer id would be shortened, and then its label would name no image
_MOST_EXAMPLES_OF_REASON: Final = 12
_LEAST_SHARE: Final = 0.001  # smaller ones would be written as 0.0 %
_FEW: Final = 100  # images with a score below which a drift is mostly chance
_STABLE, _LARGE = 0.1, 0.25  # the usual limits of a population stability index
_MIMES: Final = {b"RIFF": "image/webp", b"\xff\xd8\xff": "image/jpeg", b"\x89PNG": "image/png"}
_STEERING: Final = re.compile(
    r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb]"
)
"""Controls, changes of direction, invisible characters, lone surrogates; the same as in page.js."""


class _Limits(NamedTuple):
    """How much of a report a page shows, so that it stays small."""

    text: int
    """Characters of a text."""
    examples: int
    values: int
    """Of each column of the breakdown."""
    rows: int
    """Columns of the breakdown, reasons, runs, classes, and facts, each."""


_LIMITS: Final = (
    _Limits(text=4_000, examples=1_000, values=100, rows=60),
    _Limits(text=1_000, examples=500, values=40, rows=40),
    _Limits(text=250, examples=300, values=20, rows=20),
    _Limits(text=80, examples=60, values=10, rows=10),
    _Limits(text=80, examples=10, values=4, rows=4),
)
"""From generous to frugal: the first one with which the texts fit is taken."""


def render(report: Report) -> str:
    """Return the page of a report: HTML without surrogates, under 5 MB as UTF-8."""
    for limits in _LIMITS:
        with suppress(_TooMuchText):
            page = _render(report, limits, thumbnail_budget=0)
            if len(page.encode()) <= _MAX_TEXTS:
                break
    return _render(report, limits, thumbnail_budget=THUMBNAIL_BUDGET)


def write_page(report: Report, path: Path | str) -> None:
    """Write the page of a report to a file, all of it or nothing.

    Raises:
        ConfigError: The path is a directory, its directory is absent, or it must not be written.
        StorageError: The disk is full, or fails.
    """
    write_html(render(report), path)


def check_place(path: Path) -> None:
    """Refuse a file that cannot be written, before the work for it begins.

    Raises:
        ConfigError: It is a directory, its directory is absent, or it must not be written.
    """
    _check_is_no_directory(path)
    if not path.parent.is_dir():
        raise _write_error(path, FileNotFoundError(errno.ENOENT, ""))
    if not os.access(path.parent, os.W_OK):
        raise _write_error(path, PermissionError(errno.EACCES, ""))


def write_html(html: str, path: Path | str) -> None:
    """Write the text of a page like `write_page`."""
    path = Path(path)
    _check_is_no_directory(path)
    temporary = None
    try:
        temporary = path.with_name(f".{path.name[:80]}.{secrets.token_hex(4)}.part")
        with temporary.open("x", encoding="utf-8", newline="") as file:
            file.write(html)
        temporary.replace(path)
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL
        if temporary is not None:
            with suppress(OSError, ValueError):
                temporary.unlink()
        raise _write_error(path, error) from None


def _check_is_no_directory(path: Path) -> None:
    if os.path.isdir(path):  # noqa: PTH112 - Path.is_dir raises for a name that is too long
        raise ConfigError(
            f"page {path} is a directory; expected the name of a file, such as {path / 'review.html'}"
        )


def content_security_policy() -> str:
    """Return the policy of every page: its own script and style, images inside it, and nothing else."""
    return (
        f"default-src 'none'; script-src {_hash(_part('page.js'))}; style-src {_hash(_part('page.css'))}; "
        "img-src data:; base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'"
    )


def drift(before: Sequence[int], after: Sequence[int]) -> float:
    """Return the population stability index of two histograms with the same bins; 0 means equal shares.

    Source:
        The sum over bins of (q - p) ln(q / p), with half an image added to each bin so that no share is 0.
    """
    shares = [[(n + 0.5) / (sum(counts) + 0.5 * len(counts)) for n in counts] for counts in (before, after)]
    return math.fsum((q - p) * math.log(q / p) for p, q in zip(*shares, strict=True))


def visible(text: str) -> str:
    """Return the text with U+FFFD for characters that steer the text around them or cannot be encoded."""
    return _STEERING.sub("\ufffd", text)


def _write_error(path: Path, error: OSError | ValueError) -> ConfigError | StorageError:
    code = error.errno if isinstance(error, OSError) else errno.EINVAL
    reason = os.strerror(code) if code else str(error)
    if code in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
        return StorageError(f"page {path} cannot be written: {reason}; free some space, or name another disk")
    return ConfigError(
        f"page {visible(str(path))} cannot be written: {reason}; expected a file in a directory that "
        "exists and that you may write to"
    )


def _render(report: Report, limits: _Limits, *, thumbnail_budget: int) -> str:
    pictures = _Pictures(thumbnail_budget)
    shown = _Shown(report, limits, pictures)
    values = shown.values()
    return _template().render(
        values,
        csp=content_security_policy(),
        css=Markup(_part("page.css")),  # noqa: S704 - a file of this package
        js=Markup(_part("page.js")),  # noqa: S704 - a file of this package
        data=Markup(_json(shown.data())),  # noqa: S704 - escaped by _json
    )


class _TooMuchText(Exception):  # noqa: N818 - no error: narrower limits follow
    """The texts are longer than a page may be, so that rendering them would be for nothing."""


@dataclass
class _Pictures:
    """The thumbnails as data: as many as the budget allows."""

    budget: int
    dropped: int = 0

    def of(self, example: Example) -> dict[str, str | None]:
        """Return the fields of a thumbnail, or why there is none."""
        if example.thumbnail is None:
            return {"missing": example.missing or "no thumbnail was made"}
        mime = next((m for magic, m in _MIMES.items() if example.thumbnail.startswith(magic)), None)
        if mime is None:
            return {"missing": "the thumbnail is not WebP, JPEG or PNG"}
        size = (len(example.thumbnail) + 2) // 3 * 4
        if size > self.budget:
            self.dropped += 1
            return {"missing": "left out to keep this page small"}
        self.budget -= size
        return {"thumb": base64.b64encode(example.thumbnail).decode(), "mime": mime}


class _Shown:
    """What a page shows of a report within limits: the values of the template, and the data of the script."""

    def __init__(self, report: Report, limits: _Limits, pictures: _Pictures) -> None:
        self._report, self._limits, self._pictures = report, limits, pictures
        self._low = min(NUM_STEPS, max(0, round(report.threshold * NUM_STEPS)))
        self._high = round(self._low + (NUM_STEPS - self._low) * 0.4)
        self._examples, self._num_left_out = _chosen(report, limits)
        self._num_characters = 0
        # The nearest images get their pictures first, the unscored ones what is left.
        self._cards = [self._card(each) for each in self._examples]
        self._reasons = [
            {
                "status": self._text(each.status),
                "examples": [
                    self._card(one, with_id=False) for one in each.examples[:_MOST_EXAMPLES_OF_REASON]
                ],
            }
            for each in report.reasons[: limits.rows]
        ]

    def data(self) -> dict[str, Any]:
        """Return what the script needs."""
        report, limits = self._report, self._limits
        groups = list(report.groups.items())[: limits.rows]
        return {
            "low": self._low,
            "high": self._high,
            "bins": _plain(report.bins),
            "examples": self._cards,
            "reasons": self._reasons,
            "groups": [
                {
                    "name": self._text(name),
                    "values": [self._group(each) for each in _merged(values, limits.values)],
                }
                for name, values in groups
            ],
            "command": None if report.filter_command is None else visible(report.filter_command),
            "key": f"nsfw-spark-labels:{_digest(report.title)}",
        }

    def values(self) -> dict[str, Any]:
        """Return what the template needs."""
        report, rows = self._report, self._limits.rows
        num_images = max(sum(report.statuses.values()), report.num_scored)
        runs = _run_rows(report.runs[:rows])
        return {
            "title": self._text(report.title) or "Report",
            "made_at": report.made_at,
            "is_sample": report.is_sample,
            "num_images": num_images,
            "num_scored": report.num_scored,
            "num_unscored": num_images - report.num_scored,
            "num_examples": len(self._examples),
            "bands": self._bands(),
            "command": self._command(),
            "notes": [*map(self._text, report.notes), *self._own_notes()],
            "statuses": [
                {"status": self._text(status), "images": n, "share": n / max(1, num_images)}
                for status, n in sorted(report.statuses.items(), key=lambda pair: (pair[0] != "ok", -pair[1]))
            ][:rows],
            "reasons": [
                {
                    "status": self._text(each.status),
                    "reason": self._text(each.reason),
                    "images": each.images,
                    "examples": each.examples,
                }
                for each in report.reasons[:rows]
            ],
            "groups": report.groups,
            "classes": [
                _class(self._text(name), counts)
                for name, counts in list(report.classes.items())[:rows]
                if any(counts)
            ],
            "runs": [
                {
                    **each,
                    **{key: self._text(each[key] or "") for key in ("command", "outcome", "model", "policy")},
                }
                for each in runs
            ],
            "facts": [
                (self._text(name), self._text(value)) for name, value in list(report.facts.items())[:rows]
            ],
            "sections": self._sections(),
        }

    def _sections(self) -> Iterable[tuple[str, str]]:
        yield from (("scores", "Scores"), ("images", "Images"), ("unscored", "Statuses"))
        for anchor, name in (
            ("groups", "Breakdown"),
            ("classes", "Classes"),
            ("runs", "Runs"),
            ("facts", "Details"),
        ):
            if getattr(self._report, anchor):
                yield anchor, name

    def _bands(self) -> list[dict[str, Any]]:
        low, high, scored = self._low / NUM_STEPS, self._high / NUM_STEPS, self._report.num_scored
        allow, below_high = self._report.num_below(low), self._report.num_below(high)
        rules = {
            "allow": (f"below {low:.3f}", allow),
            "review": (f"{low:.3f} to {high:.3f}", below_high - allow),
            "block": (f"from {high:.3f}", scored - below_high),
        }
        return [
            {"name": name, "rule": rule, "count": n, "share": percent(n / max(1, scored))}
            for name, (rule, n) in rules.items()
        ]

    def _command(self) -> str | None:
        command = self._report.filter_command
        return (
            None
            if command is None
            else visible(command.replace("{threshold}", f"{self._low / NUM_STEPS:.3f}"))
        )

    def _own_notes(self) -> Iterable[str]:
        """Yield what this page leaves out or changes."""
        if self._report.is_sample:
            yield "All numbers are those of a sample, not of the whole input."
        if abs(self._report.threshold * NUM_STEPS - self._low) > 1e-6 * NUM_STEPS:
            yield (
                f"The threshold is {self._report.threshold:g}; this page moves in steps of 0.001 and begins "
                f"at {self._low / NUM_STEPS:.3f}."
            )
        if self._pictures.dropped:
            yield (
                f"{self._pictures.dropped:,} thumbnails are left out, so that this page stays below "
                f"{MAX_BYTES // 1_000_000} MB: those of the images farthest from the threshold."
            )
        if self._num_left_out:
            yield f"{self._num_left_out:,} examples are left out, so that this page stays small."
        if any(len(values) > self._limits.values for values in self._report.groups.values()):
            yield f"Values of a column after the first {self._limits.values} are counted together, as (more)."

    def _card(self, example: Example, *, with_id: bool = True) -> dict[str, Any]:
        picture = self._pictures.of(example)
        if missing := picture.get("missing"):
            picture["missing"] = self._text(missing)
        details = dict(example.details)
        if example.error:
            details = {"error": example.error, **details}
        return {
            "id": example.image_id if with_id else self._text(example.image_id),
            "score": float(example.score) if with_id and example.score is not None else None,
            "bin": bin_of(example.score) if with_id and example.score is not None else None,
            "details": [[self._text(name), self._text(value)] for name, value in list(details.items())[:12]],
            **picture,
        }

    def _group(self, group: Group) -> dict[str, Any]:
        return {"value": self._text(group.value), "bins": _plain(group.bins), "unscored": int(group.unscored)}

    def _text(self, text: str) -> str:
        shown = visible(clip(text, self._limits.text))
        self._num_characters += len(shown)
        if self._num_characters > _MAX_TEXTS and self._limits != _LIMITS[-1]:
            raise _TooMuchText
        return shown


def _chosen(report: Report, limits: _Limits) -> tuple[list[Example], int]:
    """Return the examples of the page, the nearest to the threshold first, and the number of the others."""
    scored = {
        each.image_id: each for each in report.examples if each.score is not None and 0 <= each.score <= 1
    }
    near = sorted(scored.values(), key=lambda each: abs((each.score or 0.0) - report.threshold))
    chosen = [each for each in near if len(each.image_id) <= _MAX_ID][: limits.examples]
    return chosen, len(scored) - len(chosen)


def _merged(groups: Sequence[Group], most: int) -> list[Group]:
    """Return the first groups, and one that has the images of all others."""
    if len(groups) <= most:
        return list(groups)
    bins: dict[int, int] = {}
    for group in groups[most - 1 :]:
        for bin_, n in group.bins.items():
            bins[bin_] = bins.get(bin_, 0) + n
    rest = Group("(more)", bins, sum(group.unscored for group in groups[most - 1 :]))
    return [*groups[: most - 1], rest]


def _plain(bins: Bins) -> dict[int, int]:
    """Return bins with Python's numbers, since JSON takes no others."""
    return {int(bin_): int(n) for bin_, n in bins.items()}


def _class(name: str, counts: Sequence[int]) -> dict[str, Any]:
    most, images = max(counts), sum(counts)
    share = sum(counts[len(counts) // 2 :]) / max(1, images)
    return {"name": name, "heights": [n / max(1, most) for n in counts], "images": images, "share": share}


def _run_rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return what the page shows of each run; `runs` has the latest first."""
    fastest = max((run.images / run.seconds for run in runs if run.seconds > 0), default=0.0)
    rows = []
    for i, run in enumerate(runs):
        speed = run.images / run.seconds if run.seconds > 0 and run.images else None
        earlier = next((each.histogram for each in runs[i + 1 :] if any(each.histogram)), None)
        index = None
        if earlier is not None and any(run.histogram) and len(earlier) == len(run.histogram):
            index = drift(earlier, run.histogram)
        rows.append(
            {
                "started_at": run.started_at,
                "command": run.command,
                "outcome": run.outcome,
                "model": run.model,
                "policy": run.policy,
                "images": run.images,
                "error_rate": run.unscored / run.images if run.images else None,
                "speed": speed,
                "speed_share": (speed or 0.0) / fastest if fastest else 0.0,
                "parts": _parts(run),
                "drift": index,
                "drift_word": _drift_word(index or 0.0),
                "is_few": index is not None and min(sum(run.histogram), sum(earlier or ())) < _FEW,
            }
        )
    return rows


def _parts(run: Run) -> list[dict[str, Any]]:
    """Return the shares of a run's time, in a row; none if it was not measured."""
    seconds = {"decode": run.decode_seconds, "wait": run.wait_seconds, "encode": run.encode_seconds}
    total, start, parts = sum(seconds.values()), 0.0, []
    for name, each in seconds.items():
        if total > 0:
            parts.append({"name": name, "start": start, "share": each / total})
            start += each / total
    return parts


def _drift_word(index: float) -> str:
    if index < _STABLE:
        return "stable"
    return "some" if index <= _LARGE else "large"


def percent(share: float, digits: int = 1) -> str:
    """Return a share as page.js writes it: `<0.1 %` is not nothing, `>99.9 %` is not everything."""
    if digits and 0 < share < _LEAST_SHARE:
        return "<0.1 %"
    if digits and 1 - _LEAST_SHARE < share < 1:
        return ">99.9 %"
    return f"{share * 100:.{digits}f} %"


def clip(text: str, length: int) -> str:
    """Return the text, or its beginning with an ellipsis."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _day(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")


def _speed(images_per_second: float) -> str:
    return f"{images_per_second:,.0f}" if images_per_second >= 10 else f"{images_per_second:.1f}"  # noqa: PLR2004


def _json(data: Mapping[str, Any]) -> str:
    """Return ASCII JSON that ends no script element; lone surrogates become escapes."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _template() -> jinja2.Template:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters.update(clip=clip, percent=percent, day=_day, speed=_speed, number=lambda n: f"{n:,}")
    return environment.from_string(_part("page.html"))


def _part(name: str) -> str:
    """Return a file of this package; a browser hashes it with the line ends of Unix."""
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8").replace("\r\n", "\n")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]
