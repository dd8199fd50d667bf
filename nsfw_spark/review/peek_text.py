"""The text of `nsfw-spark peek`: what a `Peek` found, in 80 columns.

In: a `Peek` and what the terminal can show. Out: lines; only the next command, which is to be copied, may be
longer. Names of files are strangers' data, so their control characters never reach the terminal.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from textwrap import wrap
from typing import Final, NamedTuple, TextIO

from rich.cells import cell_len

from nsfw_spark.redact import printable, redact
from nsfw_spark.review.peek import NUM_BINS, Found, Peek, bin_of, duration

_COLUMNS: Final = 80
_BAR: Final = 42  # columns
_EIGHTHS: Final = " ▏▎▍▌▋▊▉█"
_MOST_UNSCORED: Final = 5


class Terminal(NamedTuple):
    """What the place of the text can show."""

    has_links: bool = False
    """Whether it turns OSC 8 sequences into links."""
    has_blocks: bool = True
    """Whether its encoding has block characters."""

    @classmethod
    def of(cls, stream: TextIO) -> Terminal:
        """Return what a stream can show."""
        try:
            _EIGHTHS.encode(stream.encoding or "ascii")
        except UnicodeEncodeError:
            has_blocks = False
        else:
            has_blocks = True
        has_links = stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        return cls(has_links, has_blocks)


def report(peek: Peek, terminal: Terminal = Terminal()) -> str:  # noqa: B008 - immutable
    """Return the text for people."""
    text = "\n".join(_lines(peek, terminal))
    return text if terminal.has_blocks else text.encode("ascii", "replace").decode()


def _lines(peek: Peek, terminal: Terminal) -> Iterator[str]:
    num = len(peek.images)
    sample = f"All {num:,}" if num == peek.count.number else f"{num:,} of {peek.count}"
    yield cut(f"{sample} images of {peek.options.input}, scored by {peek.model}")
    yield from (line for note in peek.notes for line in wrap(f"Note: {clean(note)}", _COLUMNS))
    if peek.scored:
        yield from ("", *_histogram(peek, terminal))
    yield from ("", *_statuses(peek))
    yield from _images("Highest scores:", peek.highest, peek, terminal)
    if peek.nearest == peek.highest:
        yield from ["The same images are nearest the threshold."] * bool(peek.nearest)
    else:
        yield from _images("Nearest the threshold:", peek.nearest, peek, terminal)
    yield from ("", *_speed(peek), "", "Next, score every image:", f"  {clean(peek.next_command)}")


def _histogram(peek: Peek, terminal: Terminal) -> Iterator[str]:
    """Yield a line for each bin; the bin that holds the threshold is marked."""
    counts = peek.histogram
    width = len(f"{max(counts):,}")
    for i, count in enumerate(counts):
        bar = _bar(count / max(counts), terminal)
        line = f"  {i / NUM_BINS:.2f} {bar}{' ' * (_BAR - len(bar))} {count:{width},}"
        if i == bin_of(peek.options.threshold):
            line += f" {'◄' if terminal.has_blocks else '<'} threshold {peek.options.threshold:.4g}"
        yield line.rstrip()


def _bar(share: float, terminal: Terminal) -> str:
    """Return a bar; the least share that is not zero is visible."""
    if not terminal.has_blocks:
        return "#" * (max(1, round(share * _BAR)) if share else 0)
    eighths = max(1, round(share * _BAR * 8)) if share else 0
    return _EIGHTHS[8] * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def _statuses(peek: Peek) -> Iterator[str]:
    """Yield the number of images of each status, and the reasons of a few images by name."""
    for status, count in peek.statuses.items():
        line = f"  {status:12} {count:7,}"
        if status == "ok":
            safe = len(peek.scored) - peek.num_flagged
            line += (
                f"   {safe:,} safe (score below {peek.options.threshold:.4g}), {peek.num_flagged:,} flagged"
            )
        yield line
    if not peek.unscored:
        return
    yield from ("", "Without a score:")
    for found in peek.reasons[:_MOST_UNSCORED]:
        yield f"  {cut(_name(found, peek), _COLUMNS - 2)}"
        yield f"    {cut(f'{found.status}: {found.error}', _COLUMNS - 4, keep_start=True)}"
    if len(peek.unscored) > _MOST_UNSCORED:
        yield f"  and {len(peek.unscored) - _MOST_UNSCORED:,} more (--json names all)"
    if len(peek.unscored) > peek.options.max_error_rate * len(peek.images):
        rate = peek.options.max_error_rate
        yield f"These are more than {rate:.0%}: a run would end with exit status 3 (--max-error-rate)."


def _images(title: str, images: Sequence[Found], peek: Peek, terminal: Terminal) -> Iterator[str]:
    if images:
        yield from ("", title, *(_scored_line(each, peek, terminal) for each in images))


def _scored_line(found: Found, peek: Peek, terminal: Terminal) -> str:
    name = cut(_name(found, peek), _COLUMNS - 9)
    if terminal.has_links and found.image.file.startswith("file:/"):
        # as_uri escapes everything but letters, digits and a few signs.
        target = Path(found.image.file.removeprefix("file:")).as_uri()
        name = f"\x1b]8;;{target}\x1b\\{name}\x1b]8;;\x1b\\"
    return f"  {found.score:.3f}  {name}"


def _name(found: Found, peek: Peek) -> str:
    """Return an image's name without the input's, which all of them share."""
    return found.image.image_id.removeprefix(f"{peek.uri.rstrip('/')}/")


def _speed(peek: Peek) -> Iterator[str]:
    yield cut(f"{peek.images_per_second:.3g} images/s with {peek.model} on {peek.device}.")
    yield f"All images ({peek.count}) would take {duration(peek.run_seconds)},"
    yield "on this machine, in this process alone."


def cut(text: str, width: int = _COLUMNS, *, keep_start: bool = False) -> str:
    """Return a clean text of at most so many columns; of a name the end says more than the start."""
    text = clean(text)
    if cell_len(text) <= width:
        return text
    while text and cell_len(text) >= width:  # one column is for the ellipsis
        excess = max(1, (cell_len(text) - width) // 2)
        text = text[:-excess] if keep_start else text[excess:]
    return f"{text}…" if keep_start else f"…{text}"


def clean(text: str) -> str:
    """Return a text on one line that is safe to print, without credentials."""
    return printable(redact(text))
