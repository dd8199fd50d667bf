"""The lock of a file system on the driver's own machine: the kernel's."""

from __future__ import annotations

import errno
import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

from nsfw_spark.spark.lock.holder import POLL_SECONDS, Holder, refusal

_NO_FLOCK: Final = {errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK}  # Lustre and FUSE, as they may be mounted


def has_flock(path: Path) -> bool:
    """Whether the file system knows `flock`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            return error.errno not in _NO_FLOCK
    return True


@contextmanager
def locked_file(path: Path, *, patience_seconds: float = 5.0) -> Iterator[None]:
    """Hold a file's lock. The file stays; that it is there means nothing.

    Args:
        path: The file; it is made, and its directory too.
        patience_seconds: For so long another holder may take to go, as a process that is being killed does.

    Raises:
        TableError: Another holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Python opens files so that programs it starts (Java, model hosts) do not inherit them, and the lock.
    with path.open("a+", encoding="utf-8") as file:
        _lock(file, path, patience_seconds)
        try:
            file.truncate(0)
            file.write(Holder.this_process().as_json())
            file.flush()
            yield
        finally:
            file.truncate(0)
            fcntl.flock(file, fcntl.LOCK_UN)  # closing would not do where a forked child has the file too


def _lock(file: IO[str], path: Path, patience_seconds: float) -> None:
    deadline = time.monotonic() + patience_seconds
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise refusal(str(path), Holder.from_json(path.read_text(encoding="utf-8"))) from None
            time.sleep(POLL_SECONDS)
        else:
            return
