"""Names that stay inside: what a model card, which may be a stranger's, can point to.

Types for the fields of a card. A file lies in the repository, package or folder that it is said to lie in:
not in `/etc`, nor in `../..`. Links in the folder of a card are followed: who can write there made them.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Annotated

from pydantic import AfterValidator, Field

Repository = Annotated[str, Field(pattern=r"^\w[\w.-]*/\w[\w.-]*$")]
"""`owner/name`."""

Revision = Annotated[str, Field(pattern=r"^\w[\w.-]*(/\w[\w.-]*)*$")]
"""A commit, a tag or a branch."""

Package = Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$")]
"""An installed package, not one inside another: to find that, Python would run the outer one."""

Architecture = Annotated[str, Field(pattern=r"^\w[\w.-]*$")]
"""A network that a library knows itself: not `hf-hub:…` or `local-dir:…`, which open_clip would load."""


def is_inside(path: str | Path) -> bool:
    """Whether a path is relative and leads to no parent."""
    parts = PurePosixPath(path)
    return bool(parts.parts) and not parts.is_absolute() and ".." not in parts.parts and "\0" not in str(path)


def _checked(file: str) -> str:
    if not is_inside(file):
        raise ValueError(f"got {file!r}; expected a relative path, without `..`")
    return file


InnerFile = Annotated[str, AfterValidator(_checked)]
"""A file's path inside a repository or package."""
