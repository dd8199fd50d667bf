"""What a model host holds and for whom (`HostSpec`), and the directory where its tasks find it.

A host's directory holds its socket, its lock, its log and `host.json`, which says which process it is. It
belongs to one user. Both sides use this module: tasks find the host here, the host cleans up here.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Self, cast

import psutil
from pydantic import TypeAdapter

from nsfw_spark.model import ModelSpec

_MAX_SOCKET_PATH: Final = 100  # bytes; the kernel's limit is 107 on Linux, 103 on macOS
_MAX_NAMES: Final = 10
_PREFIX: Final = "nsfw-spark"
_LOCK_FLAGS: Final = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True)
class Owner:
    """The executor, or another process, that a host serves. The host ends when its owner does."""

    name: str
    """Tasks that name the same owner share a host."""
    pid: int | None = None
    """The owner's process id. None means unknown: then only the idle time ends the host."""
    started: float | None = None
    """When that process started, seconds since 1970: systems use process ids again."""
    directory: str | None = None
    """A directory that exists as long as the owner does."""

    @classmethod
    def process(cls, pid: int) -> Self:
        """Return a running process as an owner."""
        return cls(f"process {pid}", pid, psutil.Process(pid).create_time())

    def is_alive(self) -> bool:
        """Return whether the owner still exists."""
        if self.directory is not None and not Path(self.directory).is_dir():
            return False
        return self.pid is None or is_running(self.pid, self.started)


@dataclass(frozen=True)
class HostSpec:
    """The models and the owner of a host, and its limits. Small, picklable, comparable."""

    models: tuple[ModelSpec, ...]
    """The models that the host loads, one after the other: one, or two for a cascade. Each connection asks
    for one of them by its index."""
    owner: Owner
    num_threads: int | None = None
    """Threads of a model on the CPU. None means the number of cores that this process may use."""
    timeout_seconds: float = field(default=120.0, compare=False)
    """A host that sends nothing for so long counts as dead. Longer than a forward pass may take."""
    load_seconds: float = field(default=600.0, compare=False)
    """A model that takes longer to load, after its download, has failed: a mount or a driver hangs."""
    idle_seconds: float = field(default=300.0, compare=False)
    """A host ends after so long without a task. Longer than a job pauses between two micro-batches."""

    @property
    def identity(self) -> str:
        """Hash of the fields that decide which host fits: tasks with the same identity share one."""
        spec = replace(self, timeout_seconds=0, load_seconds=0, idle_seconds=0)
        # CUDA numbers devices by this variable: another value makes the same number another device.
        devices = os.environ.get("CUDA_VISIBLE_DEVICES")
        return hashlib.sha256(f"{devices} {spec.as_json()}".encode()).hexdigest()[:16]

    def as_json(self) -> str:
        """Return the text that `from_json` reads."""
        return _JSON.dump_json(self).decode()

    @classmethod
    def from_json(cls, text: str) -> HostSpec:
        """Return the spec that `as_json` wrote."""
        return _JSON.validate_json(text)


_JSON: Final = TypeAdapter(HostSpec)


def is_running(pid: int, started: float | None) -> bool:
    """Return whether a process runs, and is the one that started at that time."""
    try:
        process = psutil.Process(pid)
        if started is not None and abs(process.create_time() - started) > 1:
            return False
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except (psutil.AccessDenied, OSError):  # nothing says that it has ended
        return True


@dataclass(frozen=True)
class HostDirectory:
    """The directory of one host."""

    path: Path

    @classmethod
    def of(cls, identity: str) -> HostDirectory:
        """Return the directory of the host with this identity; create it if it is absent.

        Raises:
            OSError: No temporary directory can be used.
        """
        reasons = []
        for parent in _parents():
            for i in range(_MAX_NAMES):
                suffix = f"-{i}" if i else ""  # another user may have taken the name
                directory = cls(Path(parent) / f"{_PREFIX}-{os.getuid()}-{identity}{suffix}")
                if len(os.fsencode(directory.socket)) > _MAX_SOCKET_PATH:
                    reasons.append(f"{parent}: its name is too long for a socket")
                    break
                try:
                    if directory.create():
                        return directory
                except OSError as error:
                    reasons.append(f"{parent}: {error.strerror}")
                    break
                reasons.append(f"{directory.path}: not a directory of this user alone")
        raise OSError(f"found no directory for the model host's socket: {'; '.join(reasons)}")

    def create(self) -> bool:
        """Create the directory if it is absent; return whether it is this user's alone."""
        with contextlib.suppress(FileExistsError):
            self.path.mkdir(mode=0o700)
        return self.is_private()

    def is_private(self) -> bool:
        """Return whether the directory is this user's alone."""
        found = self.path.lstat()
        return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077

    @property
    def socket(self) -> Path:
        """The socket on which the host listens."""
        return self.path / "socket"

    @property
    def log(self) -> Path:
        """The log of the host and of the libraries in it."""
        return self.path / "log"

    @contextmanager
    def locked(self, *, create: bool = True) -> Iterator[int]:
        """Hold the lock, an open file: only its holder may start a host, greet one, or remove the directory.

        A process that inherits the file holds the lock too, until it closes it.

        Raises:
            OSError: The directory is no longer this user's alone, or was removed and `create` is false.
        """
        while True:
            if create and not self.create():
                raise PermissionError(f"{self.path} is not a directory of this user alone")
            try:
                lock = os.open(self.path / "lock", _LOCK_FLAGS, 0o600)
            except FileNotFoundError:  # a host has just removed the directory
                if not create:
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

    def write_host(self, key: str, owner: Owner) -> None:
        """Write that this process is the host. Readers never see half of the file."""
        pid = os.getpid()
        host = {"pid": pid, "started": psutil.Process(pid).create_time(), "key": key}
        partial = self.path / "host.partial"
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump({**host, "owner": [owner.pid, owner.started]}, file)
        partial.replace(self.path / "host.json")

    def read_host(self) -> dict[str, Any] | None:
        """Return what `write_host` wrote: `pid`, `started`, `key`, `owner`; None if there is no host.

        Raises:
            OSError: Nobody knows whether there is one: too many files are open, or the disk failed.
        """
        try:
            host = json.loads((self.path / "host.json").read_text())
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return None
        is_host = isinstance(host, dict) and host.keys() >= {"pid", "started", "key", "owner"}
        return cast("dict[str, Any]", host) if is_host else None

    def forget_host(self) -> None:
        """Remove the files of a dead host, except its log and the lock."""
        self.socket.unlink(missing_ok=True)
        (self.path / "host.json").unlink(missing_ok=True)

    def log_end(self, num_bytes: int = 2000) -> str:
        """Return the last lines of the host's log."""
        try:
            return self.log.read_bytes()[-num_bytes:].decode(errors="replace").strip()
        except OSError:
            return ""

    def remove(self) -> None:
        """Remove the directory with the caller's lock; a process that waits for the lock creates another."""
        shutil.rmtree(self.path, ignore_errors=True)

    def is_abandoned(self) -> bool:
        """Return whether its host was killed and the host's owner has ended."""
        host = self.read_host()
        if host is None or is_running(host["pid"], host["started"]):
            return False
        owner = Owner("", *host["owner"])
        return owner.pid is not None and not owner.is_alive()

    def _is_lock(self, lock: int) -> bool:
        """Return whether an open file is still the lock that other processes would open."""
        try:
            return os.path.samestat(os.fstat(lock), (self.path / "lock").stat())
        except FileNotFoundError:
            return False


def remove_abandoned_directories() -> None:
    """Remove the abandoned directories of this user's hosts on this machine."""
    paths = (path for parent in _parents() for path in Path(parent).glob(f"{_PREFIX}-{os.getuid()}-*"))
    for directory in map(HostDirectory, paths):
        # Another host may remove it at the same time, and another program may have written its files.
        with contextlib.suppress(OSError, TypeError, ValueError, OverflowError):
            if directory.is_private() and directory.is_abandoned():
                with directory.locked(create=False):
                    if directory.is_abandoned():
                        directory.remove()


def _parents() -> list[str]:
    return list(dict.fromkeys((tempfile.gettempdir(), "/tmp", "/var/tmp")))  # noqa: S108 - owner and mode are checked
