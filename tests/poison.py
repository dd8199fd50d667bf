"""Images that end the process that decodes them, where tests/poisonous is on its PYTHONPATH.

Elsewhere they are harmless PNG files: the test's own process decodes them without a thought.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.conftest import encoded, pixels, png

POISONOUS: Final = Path(__file__).parent / "poisonous"
"""For PYTHONPATH, so that poison works."""

DEADLY: Final = {
    "abort": "SIGABRT",
    "crash": "SIGSEGV",
    "exhaust": "SIGABRT",
    "be killed": "SIGKILL",
    "exit": "exit status 0",
}
"""Poison that ends the process at once, and what the message says of it."""


STATUSES: Final = {
    **dict.fromkeys(DEADLY, "crashed"),
    "hang": "crashed",
    "hoard": "too_large",
    "damage": "ok",
}
"""All poison, and the status of an image that has it."""


def poisoned_files(num_good: int) -> dict[str, tuple[bytes, str]]:
    """Return files with each poison, and good ones on both sides of each, by name: content and status."""
    poison = list(STATUSES.items())
    files = {}
    for i in range(num_good):
        files[f"{i:04}-good.png"] = (png(seed=i), "ok")
        at, turn = divmod(i * len(poison), num_good)
        if turn < len(poison):
            name, status = poison[at]
            files[f"{i:04}-{name}.png"] = (poisoned(name), status)
    return files


def poisoned(poison: str) -> bytes:
    """Return a PNG with the poison: one of DEADLY; `hang`, for an hour; `hoard`, memory until there is none;
    `damage`, which ends the process at its next PNG."""
    text = PngInfo()
    text.add_text("poison", poison)
    return encoded(Image.fromarray(pixels()), "PNG", pnginfo=text)
