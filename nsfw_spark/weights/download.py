"""Downloads: whole or not there, once a node, and on from where the last one stopped.

In: a `RemoteFile` and the path that it is to have. The bytes go to `NAME.….partial` beside it, which stays
when the download is cut off. One process at a time may write it: it is locked (`flock`), and the kernel gives
the lock back however that process ends. Whoever waited finds the file there. What is not the right file is
deleted, and never gets the name.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import BinaryIO

from nsfw_spark.errors import WeightsError
from nsfw_spark.weights.remote import RemoteFile

_log = logging.getLogger(__name__)


def download(remote: RemoteFile, target: Path, verify: Callable[[Path], object]) -> None:
    """Download a file, unless another process does so meanwhile.

    Args:
        remote: What to download.
        target: Where to; its directory is made.
        verify: Raises a WeightsError where a file is not the right one.

    Raises:
        WeightsError: What came is not the right file.
        OSError, HTTPError: It was cut off, or cannot be written. What came stays, for the next time.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with _alone(_partial(remote, target)) as file:
        if target.exists():  # by whoever held the lock before
            Path(file.name).unlink(missing_ok=True)
            return
        _complete(remote, file)
        try:
            verify(Path(file.name))
        except WeightsError:
            Path(file.name).unlink()
            raise
        Path(file.name).replace(target)  # atomic: nobody sees half a file
    _remove_others(target)


def _partial(remote: RemoteFile, target: Path) -> Path:
    """Return where a download is kept: another place for another content, whose halves do not fit."""
    content = hashlib.sha256(remote.identity.encode()).hexdigest()[:8]
    return target.with_name(f"{target.name}.{content}.partial")


@contextmanager
def _alone(path: Path) -> Iterator[BinaryIO]:
    """Open a file to append to it, when no other process has it open so; wait where one has."""
    while True:
        with path.open("ab") as file:
            _lock(file)
            if _has_still_its_name(file, path):
                yield file
                return
        # Its holder gave it another name, or deleted it.


def _lock(file: BinaryIO) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        _log.warning("another process is downloading %s: waiting for it", Path(file.name).name)
        fcntl.flock(file, fcntl.LOCK_EX)


def _has_still_its_name(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _complete(remote: RemoteFile, file: BinaryIO) -> None:
    """Append what is missing; begin anew where more is there than can be."""
    offset = file.seek(0, os.SEEK_END)
    if remote.length is not None and offset > remote.length:
        file.truncate(0)
        offset = 0
    if offset:
        _log.warning("%s: going on at %s bytes", remote.name, f"{offset:,}")
    if offset != remote.length:
        remote.append_to(file, offset)
    file.flush()
    os.fsync(file.fileno())
    length = os.fstat(file.fileno()).st_size
    if remote.length not in {None, length}:
        raise OSError(f"{remote.name} was cut off: {length:,} bytes came, expected {remote.length:,}")


def _remove_others(target: Path) -> None:
    """Remove what is left of downloads of other contents, unless one is under way."""
    for other in target.parent.glob(f"{escape(target.name)}.????????.partial"):
        with suppress(BlockingIOError, FileNotFoundError), other.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            other.unlink(missing_ok=True)
