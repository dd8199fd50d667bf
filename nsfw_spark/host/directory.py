"""What a model host holds, and for whom: all that it is told when it starts, as JSON."""

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
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Self

import psutil

from nsfw_spark.model import ModelSpec
from nsfw_spark.model_card import ModelCard


@dataclass(frozen=True)
class Owner:
    """Whom a host serves; it ends when its owner does."""

    name: str
    """Tasks that name the same owner share a host."""
    pid: int | None = None
    """The executor's process; None where it is not known: then the host ends when it was idle for a while."""
    started: float | None = None
    """When that process started, seconds since 1970: a process id is used again one day."""
    directory: str | None = None
    """A directory that is there as long as the owner is."""

    @classmethod
    def process(cls, pid: int, name: str | None = None, directory: str | None = None) -> Self:
        """Return the owner that is a running process."""
        return cls(name or f"process {pid}", pid, psutil.Process(pid).create_time(), directory)

    def is_alive(self) -> bool:
        """Whether the owner is still there."""
        if self.directory is not None and not Path(self.directory).is_dir():
            return False
        return self.pid is None or is_running(self.pid, self.started)


@dataclass(frozen=True)
class HostSpec:
    """What a host holds, for whom, and how patiently."""

    model: ModelSpec
    owner: Owner
    num_threads: int | None = None
    """Of the model, where it computes on the CPU; None: as many as the machine has cores for this process."""
    timeout_seconds: float = field(default=120.0, compare=False)
    """Without a sign of life for so long, a host counts as dead. Longer than a forward pass may take."""
    idle_seconds: float = field(default=300.0, compare=False)
    """Without a task for so long, a host ends. Longer than a job pauses between two micro-batches."""
    second: ModelSpec | None = None
    """Of a cascade: loaded after the first, into the same process."""

    @property
    def models(self) -> list[ModelSpec]:
        """The model, and the second if there is one: tasks ask for one by its place here."""
        return [self.model] if self.second is None else [self.model, self.second]

    @property
    def identity(self) -> str:
        """Tasks whose specs have the same identity share a host."""
        # CUDA counts devices by this variable: with another value, the same number is another device.
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        content = {**self.as_json(), "timeout_seconds": None, "idle_seconds": None, "visible": visible}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def as_json(self) -> dict[str, Any]:
        """Return what `from_json` reads."""
        second = None if self.second is None else _model_as_json(self.second)
        return {**asdict(self), "model": _model_as_json(self.model), "second": second}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self:
        """Return the spec that `as_json` wrote."""
        second = None if content["second"] is None else _model_from_json(content["second"])
        model, owner = _model_from_json(content["model"]), Owner(**content["owner"])
        return cls(**{**content, "model": model, "second": second, "owner": owner})


def _model_as_json(model: ModelSpec) -> dict[str, Any]:
    directory = None if model.model_dir is None else str(model.model_dir)
    return {**asdict(model), "card": model.card.model_dump(mode="json"), "model_dir": directory}


def _model_from_json(content: dict[str, Any]) -> ModelSpec:
    directory = None if content["model_dir"] is None else Path(content["model_dir"])
    card = ModelCard.model_validate(content["card"])
    return ModelSpec(**{**content, "card": card, "model_dir": directory})


def is_running(pid: int, started: float | None) -> bool:
    """Whether a process runs, and is the one that started then."""
    try:
        process = psutil.Process(pid)
        if started is not None and abs(process.create_time() - started) > 1:
            return False
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.AccessDenied:
        return True
    except psutil.NoSuchProcess:
        return False


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
