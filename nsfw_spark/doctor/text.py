"""The text of `nsfw-spark doctor`: one line a finding, the cure below it, the estimate at the end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Final

from nsfw_spark.doctor.estimate import Estimate
from nsfw_spark.doctor.finding import Finding

_MARKS: Final = {"ok": "✓", "note": "•", "problem": "✗"}
_PLAIN: Final = {"ok": "ok  ", "note": "note", "problem": "BAD "}
_LEAST: Final = 0.1  # hours; shorter times are said in minutes


def can_show_marks(encoding: str | None) -> bool:
    """Whether a stream's encoding has the marks ✓ and ✗."""
    try:
        "".join(_MARKS.values()).encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def lines_of(findings: Sequence[Finding], *, has_marks: bool = True) -> Iterator[str]:
    """Yield the lines of findings, in their groups."""
    marks = _MARKS if has_marks else _PLAIN
    for group, members in groupby(findings, lambda each: each.group):
        listed = list(members)
        width = min(32, max(len(each.name) for each in listed))
        yield group
        for each in listed:
            yield f"  {marks[each.level]} {each.name:{width}}  {each.value}{_expected(each)}"
            if each.level != "ok" and (advice := _advice(each)):
                yield f"      {advice}"


def _expected(finding: Finding) -> str:
    wrong = finding.level != "ok" and finding.expected
    return f"; expected {finding.expected}" if wrong else ""


def _advice(finding: Finding) -> str:
    cure = finding.cure
    if cure.partition("=")[0].startswith("spark.") and " " not in cure.partition("=")[0]:
        cure = f"set {cure}"
    parts = [f"{'->' if cure else ''} {cure}".strip(), finding.why]
    return ". ".join(filter(None, parts))


def estimate_lines(estimate: Estimate) -> Iterator[str]:
    """Yield the estimate: what was measured, what the card says, what follows."""
    where = f"on {estimate.gpus} GPU{'s' * (estimate.gpus > 1)}" if estimate.gpus else "on CPU cores"
    yield "Estimate"
    yield (
        f"  Measured here: a core decodes {estimate.decodes_per_second:,.0f} images/s of half a megapixel; "
        f"{estimate.slots} tasks run at once."
    )
    yield (
        f"  The model card of {estimate.model} says {estimate.seconds_per_image:g} s an image on one "
        f"{'GPU' if estimate.gpus else 'core'}; that is rough, and not measured here."
    )
    gpu_hours = f", {estimate.hours * estimate.gpus:,.1f} GPU-hours" if estimate.gpus else ""
    yield (
        f"  So {estimate.images:,} images take about {_time(estimate.hours)}{gpu_hours} {where}: "
        f"{estimate.images_per_second:,.1f} images/s, limited by {estimate.bound}."
    )


def _time(hours: float) -> str:
    return f"{hours:,.1f} hours" if hours >= _LEAST else f"{hours * 60:.1g} minutes"


def verdict(findings: Sequence[Finding]) -> str:
    """Return the last line: how many problems there are."""
    problems = sum(each.level == "problem" for each in findings)
    if not problems:
        return "No problem found."
    return f"{problems} problem{'s' * (problems > 1)} found; the line below each one names the cure."
