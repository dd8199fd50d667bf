"""A finding: what a check found, and if it is wrong, what was expected, why, and the cure."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Literal

from nsfw_spark.redact import printable, redact

Level = Literal["ok", "note", "problem"]
"""`note` is worth reading and stops nothing. `problem` makes the exit status 2."""


@dataclass(frozen=True)
class Finding:
    """The result of one check. Texts are on one line and without credentials."""

    group: str
    """Heading: `This machine`, `Spark`, `Settings`, `INPUT`, `OUT`."""
    name: str
    """The checked thing: a setting's own name where it is one."""
    level: Level
    value: str
    """The found value, for people."""
    expected: str = ""
    """The right value; empty if there is nothing to compare with."""
    why: str = ""
    """Why that value is right. It says so where this is a rule of thumb."""
    cure: str = ""
    """`name=value` for a setting, `unset name`, or a command or sentence; empty for `ok`."""

    def __post_init__(self) -> None:
        for each in fields(self):
            text = printable(redact(" ".join(str(getattr(self, each.name)).split())))
            object.__setattr__(self, each.name, text)

    def as_dict(self) -> dict[str, str]:
        """Return the finding for JSON."""
        return asdict(self)
