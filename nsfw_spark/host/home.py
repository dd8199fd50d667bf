"""Where a model host lives: a directory of its own in the machine's temporary one.

It is this user's and closed to all others, and holds the socket, the log, who the host is, and the lock that
decides who may start one. Its name follows from what the host holds and for whom, so that all tasks of an
executor find it without asking.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

_MAX_SOCKET_PATH: Final = 100  # bytes; the kernel's limit is 107 on Linux, 103 on macOS
_TRIES: Final = 10
_PREFIX: Final = "nsfw-spark"


@dataclass(frozen=True)
class Home:
    """The directory of one host."""

    path: Path

    @classmethod
    def of(cls, identity: str) -> Home:
        """Return the home of the host with this identity, and make it if need be.

        Raises:
            OSError: No temporary directory can be used.
        """
        said = []
        for base in _bases():
            for i in range(_TRIES):
                suffix = f"-{i}" if i else ""  # where someone else took the name
                home = cls(Path(base) / f"{_PREFIX}-{os.getuid()}-{identity}{suffix}")
                if len(os.fsencode(home.socket)) > _MAX_SOCKET_PATH:
                    said.append(f"{base}: its name is too long for a socket")
                    break
                try:
                    if home.make():
                        return home
                except OSError as error:
                    said.append(f"{base}: {error.strerror}")
                    break
                said.append(f"{home.path}: not a directory of this user alone")
        raise OSError(f"found no directory for the model host's socket: {'; '.join(said)}")

    def make(self) -> bool:
        """Make the directory; return whether it is there, and is this user's alone."""
        with contextlib.suppress(FileExistsError):
            self.path.mkdir(mode=0o700)
        return self.is_ours()

    def is_ours(self) -> bool:
        """Whether the directory is this user's alone."""
        found = self.path.lstat()
        return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077

    @property
    def socket(self) -> Path:
        """Where the host listens."""
        return self.path / "socket"

    @property
    def log(self) -> Path:
        """What the host, and the libraries in it, had to say."""
        return self.path / "log"

    @property
    def _host(self) -> Path:
        return self.path / "host.json"

    @property
    def _lock(self) -> Path:
        return self.path / "lock"

    @contextmanager
    def locked(self, *, make: bool = True) -> Iterator[int]:
        """Hold the lock: only who has it may start a host, greet one, or clear the home away.

        Args:
            make: Make the home again if it was cleared away.

        Yields:
            The lock, an open file. A process that inherits it holds the lock too, until it closes it.

        Raises:
            FileNotFoundError: It was cleared away, and is not to be made.
            OSError: The directory is no longer this user's alone, or cannot be written.
        """
        while True:
            if make and not self.make():
                raise PermissionError(f"{self.path} is not a directory of this user alone")
            try:
                lock = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            except FileNotFoundError:  # a host has just cleared it away
                if not make:
                    raise
                continue
            fcntl.flock(lock, fcntl.LOCK_EX)
            if self._is_lock(lock):
                break
            os.close(lock)
        try:
            yield lock
        finally:
            os.close(lock)

    def write_host(self, content: dict[str, Any]) -> None:
        """Say who the host is: `pid`, `started`, `key`. All at once, so that nobody reads half of it."""
        partial = self._host.with_suffix(".partial")
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(content, file)
        partial.replace(self._host)

    def read_host(self) -> dict[str, Any] | None:
        """Return what `write_host` wrote; None where there is no host."""
        try:
            content = json.loads(self._host.read_text())
        except (OSError, ValueError):
            return None
        is_host = isinstance(content, dict) and content.keys() >= {"pid", "started", "key", "owner"}
        return content if is_host else None

    def forget_host(self) -> None:
        """Remove what a dead host left, but for its log."""
        for path in (self.socket, self._host):
            path.unlink(missing_ok=True)

    def last_words(self, num_bytes: int = 2000) -> str:
        """Return the end of the host's log."""
        try:
            return self.log.read_bytes()[-num_bytes:].decode(errors="replace").strip()
        except OSError:
            return ""

    def remove(self) -> None:
        """Clear the home away, the lock that the caller holds included: who waits for it makes another."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _is_lock(self, lock: int) -> bool:
        """Whether an open file is still the lock that others would open."""
        try:
            return os.path.samestat(os.fstat(lock), self._lock.stat())
        except FileNotFoundError:
            return False


def homes() -> Iterator[Home]:
    """Yield all homes of this user on this machine."""
    for base in _bases():
        for path in Path(base).glob(f"{_PREFIX}-{os.getuid()}-*"):
            home, is_ours = Home(path), False
            with contextlib.suppress(FileNotFoundError):  # another host may clear it away meanwhile
                is_ours = home.is_ours()
            if is_ours:
                yield home


def _bases() -> list[str]:
    return list(dict.fromkeys((tempfile.gettempdir(), "/tmp", "/var/tmp")))  # noqa: S108 - owner and mode are checked
