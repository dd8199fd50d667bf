"""The end of a run: lines that fit a screen, HTML without scripts, and the commands to run next."""

from __future__ import annotations

import shlex
from dataclasses import replace

import pytest

pytest.importorskip("pyspark")

from nsfw_spark.spark.progress import Counts
from nsfw_spark.spark.summary import RunSummary, summary_html, summary_lines

HOSTILE = "<script>alert(1)</script>\x1b[31m\u202e'\"&.jpg"
SUMMARY = RunSummary(
    Counts(images=33, ok=29, safe=27),
    {"image_scores": 1033, "safe_images": 1000, "flagged_images": 21, "quarantined_images": 12},
    [("file:/in/empty.jpg", "undecodable", "the file is empty (0 bytes)")],
    3.0,
    "run-1",
    "/data/my scores",
    0.5,
    [("file:/in/a.jpg", 0.987654), ("file:/in/b.jpg", 0.6)],
    [("file:/in/c.jpg", 0.498), ("file:/in/b.jpg", 0.6)],
    [20, 3, *[0] * 8, 4, *[0] * 8, 2],
    {"file:/in/a.jpg": b"webp"},
)


def text(summary: RunSummary = SUMMARY) -> str:
    return "\n".join(summary_lines(summary))


def test_it_shows_counts_with_shares_and_names_images() -> None:
    lines = list(summary_lines(SUMMARY))
    assert lines[1].split() == ["image_scores", "1,033", "100.0%", "33", "every", "image"]
    assert lines[2].split() == ["safe_images", "1,000", "96.8%", "27", "score", "below", "0.5"]
    assert lines[3].split()[:4] == ["flagged_images", "21", "2.0%", "2"]
    assert lines[4].split()[:4] == ["quarantined_images", "12", "1.2%", "4"]
    assert "  0.988  a.jpg" in lines
    assert "  0.498  c.jpg" in lines
    assert "  empty.jpg: undecodable, the file is empty (0 bytes)" in lines
    assert "  and 3 more: column `error` of quarantined_images" in lines


def test_it_fits_a_screen_of_24_lines_and_80_columns() -> None:
    named = [(f"file:/in/{i}{'x' * 200}.jpg", 0.9 - i / 10) for i in range(3)]
    nearest = [(f"file:/in/{i}.jpg", 0.5 - i / 10) for i in range(3)]
    unscored = [(f"file:/in/{i}.jpg", "undecodable", "why " * 100) for i in range(3)]
    lines = list(summary_lines(replace(SUMMARY, highest=named, nearest=nearest, unscored=unscored)))
    assert len(lines) <= 22
    assert all(len(line) <= 80 or "nsfw-spark" in line for line in lines)


@pytest.mark.parametrize(
    ("threshold", "totals", "expected"),
    [
        (0.5, SUMMARY.totals, ["report", "filter --threshold 0.3"]),
        (0.2, SUMMARY.totals, ["report", "filter --threshold 0.1"]),
        (None, SUMMARY.totals, ["report", "filter --threshold 0.3"]),
        (None, {"image_scores": 33}, ["report", "filter --threshold 0.5"]),
    ],
)
def test_the_next_commands_can_be_copied(
    threshold: float | None, totals: dict[str, int], expected: list[str]
) -> None:
    lines = text(replace(SUMMARY, threshold=threshold, totals=totals)).partition("Next:\n")[2].splitlines()
    words = [shlex.split(line.partition("nsfw-spark ")[2]) for line in lines]
    assert all(each[1] == SUMMARY.output for each in words)
    assert words[0] == ["report", SUMMARY.output, "--html", "review.html"]
    assert [" ".join([each[0], *each[2:]]) for each in words][1:] == expected[1:]


def test_lost_files_come_with_the_cure() -> None:
    lost = replace(SUMMARY, counts=replace(SUMMARY.counts, files_lost=7))
    assert "failed to give 7 files" in text(lost)
    assert "Run the same\ncommand again" in text(lost)
    assert "failed to give" not in text()


def test_a_policy_and_a_run_without_news_have_no_lists() -> None:
    quiet = replace(
        SUMMARY, counts=Counts(safe=0), threshold=None, highest=[], nearest=[], unscored=[], histogram=()
    )
    assert "Highest" not in text(quiet)
    assert "the policy holds" in text(quiet)
    assert "<svg" not in summary_html(quiet)


def test_a_notebook_sees_the_same_and_blurred_thumbnails() -> None:
    html = SUMMARY._repr_html_()
    assert "1,033" in html
    assert html.count("<rect") == 20
    assert html.count("data:image/webp;base64,d2VicA==") == 1
    assert "filter: blur" in html
    assert "nsfw-spark report &#x27;/data/my scores&#x27; --html review.html" in html
    assert "script" not in html.lower()


def test_names_steer_neither_terminal_nor_page() -> None:
    hostile = replace(
        SUMMARY,
        highest=[(f"file:/in/{HOSTILE}", 0.9)],
        nearest=[(f"file:/in/{HOSTILE}", 0.9), ("b", 0.1)],
        unscored=[(HOSTILE, "undecodable", HOSTILE)],
        thumbnails={f"file:/in/{HOSTILE}": b"webp"},
    )
    assert "\x1b" not in text(hostile)
    assert "\u202e" not in text(hostile)
    html = summary_html(hostile)
    assert "<script" not in html
    assert "\x1b" not in html
