"""The report of a peek: the page of `nsfw-spark peek --html`, about a sample instead of tables.

In: a `Peek`. Out: a `Report`. The text for terminals is `peek_text`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final

from nsfw_spark.review.peek import Found, Peek, duration
from nsfw_spark.review.report import Example, Reason, Report, bin_of

_MOST_EXAMPLES: Final = 400
_OF_EACH_REASON: Final = 3


def report_of(peek: Peek) -> Report:
    """Return what a page shows of a sample; the thumbnails are those of its images."""
    scored = sorted(peek.scored, key=lambda each: abs((each.score or 0.0) - peek.options.threshold))
    count = f"{len(peek.images):,} of {peek.count} images" if len(peek.images) < peek.count.number else "all"
    facts = {"model": peek.model, "input": peek.uri, "format": peek.format, "images in the sample": count}
    facts["speed"] = f"{peek.images_per_second:.3g} images/s on {peek.device}"
    facts["all images"] = f"{duration(peek.run_seconds)} on this machine, in one process"
    facts["to score all images"] = peek.next_command
    return Report(
        title=peek.options.input,
        made_at=datetime.now(UTC),
        threshold=round(peek.options.threshold, 3),
        bins=dict(sorted(Counter(bin_of(each.score) for each in scored if each.score is not None).items())),
        statuses=peek.statuses,
        examples=[_example(each) for each in scored[:_MOST_EXAMPLES]],
        reasons=_reasons(peek.unscored),
        facts=facts,
        is_sample=len(peek.images) < peek.count.number,
        notes=peek.notes,
    )


def _example(found: Found) -> Example:
    missing = None if found.thumbnail else "No thumbnail could be made."
    score = None if found.score is None else round(found.score, 6)
    return Example(found.image.image_id, found.status, score, found.error, found.thumbnail, missing)


def _reasons(unscored: Iterable[Found]) -> list[Reason]:
    """Group images without a score by status and error, numbers aside."""
    groups: dict[tuple[str, str], list[Found]] = {}
    for each in unscored:
        groups.setdefault((each.status, re.sub(r"\d+", "N", each.error or "")), []).append(each)
    reasons = [
        Reason(status, reason, len(found), [_example(each) for each in found[:_OF_EACH_REASON]])
        for (status, reason), found in groups.items()
    ]
    return sorted(reasons, key=lambda reason: -reason.images)
