"""Pillow's own test images, decoded: `python -m tests.pillow_suite > docs/pillow-suite.md`.

Downloads the source distribution of the installed Pillow from PyPI, decodes each file in its Tests/images,
and writes a page of those that are not `ok`, with the reason that their rows would give.
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

Each file in `Tests/images` of Pillow {version}'s source distribution, decoded: {total} files, {ok} of them
`ok`. The others, by the reason that their rows give: many are damaged on purpose, and many are of formats
that are not decoded on purpose. Written by `python -m tests.pillow_suite`, kept true by
`tests/network/test_pillow_suite.py`.

| status | reason | files |
| --- | --- | --- |
"""


def suite(directory: Path) -> Path:
    """Download Pillow's test images; return the directory that they lie in, all side by side."""
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
    """Return the page: the files that are not ok, by status and reason."""
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
