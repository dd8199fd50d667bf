"""The type of a hostile file, and the sound files (seeds) from which the makers start."""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

from nsfw_spark.errors import Status

SEEDS: Final = {
    path.name: path.read_bytes() for path in sorted((Path(__file__).parents[1] / "data" / "seeds").iterdir())
}
"""One small sound file of each kind, by name."""

OK: Final[frozenset[Status]] = frozenset({"ok"})
UNDECODABLE: Final[frozenset[Status]] = frozenset({"undecodable"})
UNSUPPORTED: Final[frozenset[Status]] = frozenset({"unsupported"})
TOO_LARGE: Final[frozenset[Status]] = frozenset({"too_large"})
DAMAGED: Final = OK | UNDECODABLE
"""The image library decides how much damage it forgives."""


class Hostile(NamedTuple):
    """One file."""

    name: str
    content: bytes
    statuses: frozenset[Status]
    """The statuses that are right for it."""
