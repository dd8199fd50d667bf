"""Whether a run may still write: a run that has lost its lock must commit nothing more.

In: what the lock knows. Out: an error before the next write. A kernel's lock is never lost. A lease is lost
if its holder is suspended, or cannot reach the store. This module knows clocks, and neither files nor Spark.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from nsfw_spark.errors import TableError

Times = tuple[float, ...]
"""One moment, by several clocks."""


def _clocks() -> Times:
    """Return the time in seconds by two clocks.

    The first counts while this machine sleeps. The second is put right after a virtual machine was paused,
    which the first may not notice.
    """
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)), time.time()


class Fence:
    """Open as long as this run holds its output's lock; once closed, it stays so."""

    def __init__(self, clocks: Callable[[], Times] = _clocks) -> None:
        """Stay open for ever, unless the lock calls `guard` or `close`."""
        self.now = clocks
        self._since, self._seconds = clocks(), math.inf
        self._too_late = self._reason = ""
        self._look: Callable[[], None] = lambda: None

    def guard(self, since: Times, seconds: float, too_late: str, look: Callable[[], None]) -> None:
        """Close when there was no `renew` for some seconds.

        Args:
            since: When the lock was taken.
            seconds: How long a renewal is good for.
            too_late: The message of the error then.
            look: Calls `close` if another run holds the lock; `check` calls it.
        """
        self._since, self._seconds, self._too_late, self._look = since, seconds, too_late, look

    def renew(self, since: Times) -> None:
        """Note when the lock was still this run's; if that comes too late, it has no effect."""
        if not self.is_closed:
            self._since = since

    def close(self, reason: str) -> None:
        """Let nothing pass any more; the first reason counts."""
        self._reason = self._reason or reason

    @property
    def is_closed(self) -> bool:
        """Whether this run may have lost its lock."""
        passed = max(end - start for start, end in zip(self._since, self.now(), strict=True))
        if passed > self._seconds:
            self.close(self._too_late)
        return bool(self._reason)

    def check(self) -> None:
        """Make sure that this run still holds its lock; call it before a commit.

        Raises:
            TableError: It has lost the lock, or could not renew it in time.
        """
        if not self.is_closed:
            self._look()
        if self.is_closed:
            raise TableError(self._reason)
