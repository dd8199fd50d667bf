"""Compares files with the checksums that are pinned."""

from __future__ import annotations

import hashlib
from pathlib import Path

from nsfw_spark.errors import WeightsError
from nsfw_spark.model_card import WeightsSource


def verified_sha256(path: Path, source: WeightsSource, *, origin: str | None = None) -> str:
    """Return a file's sha256, hexadecimal, once it is known to be the file that is meant.

    Args:
        path: The file.
        source: What is pinned of it, if anything.
        origin: Where it was downloaded from just now; None for a file that lay here.

    Raises:
        WeightsError: It is another file.
    """
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    _compare(path, "sha256", sha256, source.sha256, origin)
    if source.git_sha1 is not None:
        _compare(path, "git blob sha1", _git_sha1(path), source.git_sha1, origin)
    return sha256


def _git_sha1(path: Path) -> str:
    """Return what `git hash-object` says of a file."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _compare(path: Path, kind: str, actual: str, expected: str | None, origin: str | None) -> None:
    if expected in {None, actual}:
        return
    if origin is not None:
        raise WeightsError(
            f"{origin} has {kind} {actual}, expected {expected}, as the model card, the lock file or the hub "
            "says: it was changed, there or on the way, and was not kept. Fetch it again"
        )
    raise WeightsError(
        f"{path} has {kind} {actual}, the model card (or the lock file) expects {expected}: it is damaged or "
        "another file. Delete it and fetch it again."
    )
