"""Machines that have another version of an image library: Pillow's bicubic filter is another one there."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import yaml

from tests.fakes import card_content

ALTERED: Final = Path(__file__).parent / "altered"
"""First on PYTHONPATH, it alters Pillow in each process of Python."""
ONLY: Final = "ALTERED_EXECUTOR"
"""Environment variable: the id of an executor, where it alters those of that executor alone."""


def pillow_card(folder: Path) -> Path:
    """Write a card whose images Pillow resizes."""
    path = folder / "pillow.yaml"
    content = card_content(name="pillow", preprocessing={"resizer": "pillow"})
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path
