"""Pillow's own test images, decoded: `python -m tests.pillow_suite > docs/pillow-suite.md`.

Downloads the source distribution of the installed Pillow from PyPI and decodes each file in its Tests/images.
The page lists the files that are not `ok`, with the error that their rows would have.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from collections import defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import PIL

_ROOT: Final = Path(__file__).parents[1]

_HEAD: Final = """\
# Pillow's own test images

This page says how the {total} files in `Tests/images` of Pillow {version}'s source distribution are decoded.
{ok} of them are `ok`. The table lists the others by the `error` of their rows: many are damaged on purpose,
and many have formats that are not decoded.

    python -m tests.pillow_suite > docs/pillow-suite.md

The command downloads the source distribution from PyPI and prints this page. It needs pillow-heif: without
it, HEIC files are `unsupported`. `tests/network/test_pillow_suite.py` compares the page with a new run, and
skips that for another version of Pillow, which may give other reasons.

| status | reason | files |
| --- | --- | --- |
"""


def suite(directory: Path) -> Path:
    """Download Pillow's test images into one flat directory, and return it."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
    subprocess.run(
        [*command, f"pillow=={PIL.__version__}", "--dest", directory], check=True, stdout=sys.stderr
    )
    (archive,) = directory.glob("*.tar.gz")
    images = directory / "images"
    images.mkdir()
    with tarfile.open(archive) as tar:
        for member in tar:
            _, marker, name = member.name.partition("/Tests/images/")
            file = tar.extractfile(member) if marker and member.isfile() else None
            if file is not None:
                (images / name.replace("/", "-")).write_bytes(file.read())
    return images


def outcomes(images: Path) -> list[dict[str, Any]]:
    """Decode each file of a directory, in a process of its own: see `tests.outcomes`."""
    command = [sys.executable, "-m", "tests.outcomes", str(images)]
    run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True, cwd=_ROOT)
    return [json.loads(line) for line in run.stdout.splitlines()]


def page(rows: list[dict[str, Any]]) -> str:
    """Return the page: the files that are not `ok`, by status and reason."""
    grouped: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for row in rows:
        if row["status"] != "ok":
            grouped[row["status"], row["message"].replace("|", "\\|")].append(row["name"])
    lines = [
        f"| `{status}` | {reason} | {', '.join(sorted(names))} |\n"
        for (status, reason), names in sorted(grouped.items())
    ]
    num_ok = sum(row["status"] == "ok" for row in rows)
    return _HEAD.format(version=PIL.__version__, total=len(rows), ok=num_ok) + "".join(lines)


if __name__ == "__main__":
    with TemporaryDirectory() as temporary:
        sys.stdout.write(page(outcomes(suite(Path(temporary)))))
