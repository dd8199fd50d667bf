"""Hostile image files, the same in each run: `python -m tests.corpus DIR` writes them.

The modules of tests/hostile make them from the seeds in tests/data/seeds. Each has one or more right
statuses: the image library decides how much damage it forgives.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from nsfw_spark.errors import Status
from tests.hostile import damaged, foreign, others, pngs, tiffs
from tests.hostile.made import Hostile

_MAKERS = (
    damaged.truncated,
    damaged.flipped,
    foreign.foreign,
    pngs.sizes,
    pngs.bombs,
    pngs.structures,
    pngs.animations,
    tiffs.directories,
    tiffs.values,
    tiffs.sizes,
    others.jpegs,
    others.gifs,
    others.webps,
    others.bmps,
    others.containers,
)


def hostile_images() -> Iterator[Hostile]:
    """Yield all hostile files; together they have 120 MB."""
    return chain.from_iterable(maker() for maker in _MAKERS)


def hostile_files(directory: Path) -> list[tuple[Path, frozenset[Status]]]:
    """Write all hostile files into a directory; return each file and its right statuses."""
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for name, content, statuses in hostile_images():
        path = directory / name
        path.write_bytes(content)
        written.append((path, statuses))
    return written


if __name__ == "__main__":
    files = hostile_files(Path(sys.argv[1]))
    print(f"{len(files)} files, {sum(path.stat().st_size for path, _ in files)} bytes")  # noqa: T201
