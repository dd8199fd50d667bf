"""Who holds a lock, and how another run is told."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import uuid
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Self

import psutil

from nsfw_spark.errors import TableError
from nsfw_spark.host.directory import is_running

POLL_SECONDS: Final = 0.2
"""So often one looks whether a lock has become free."""


@dataclass(frozen=True)
class Holder:
    """Who holds a lock; its content."""

    token: str
    """Tells two holders apart, even two in one process."""
    since: str
    host: str
    pid: int
    started: float
    """When the process started, seconds since 1970: a process id is used again one day."""
    machine: str
    """Where the process id means something: in one boot of one machine, in one container."""

    @classmethod
    def this_process(cls) -> Self:
        """Return a new holder."""
        since = datetime.now(UTC).isoformat(timespec="seconds")
        pid = os.getpid()
        started = psutil.Process(pid).create_time()
        return cls(uuid.uuid4().hex, since, socket.gethostname(), pid, started, _machine())

    @classmethod
    def from_json(cls, text: str) -> Self | None:
        """Return the holder that a lock's content names; None where it is being written, or damaged."""
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError):
            return None

    def as_json(self) -> str:
        """Return what `from_json` reads."""
        return json.dumps(asdict(self))

    def is_gone(self) -> bool:
        """Whether the process is known to have ended; False where it runs elsewhere."""
        return self.machine == _machine() and not is_running(self.pid, self.started)


def _machine() -> str:
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):  # where there is no /proc, the name must do
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(parts)


def refusal(where: str, holder: Holder | None) -> TableError:
    """Return the error of a run that finds another's lock; `holder` is None where that is being written."""
    who = f"since {holder.since}, on host {holder.host}, process {holder.pid}" if holder else "just now"
    return TableError(
        f"another run writes to this output: {who}; it holds {where}. Only one can: wait for it, or stop it, "
        "and run this one again"
    )
