"""Limits on the time and the memory of fuzzed files."""

from __future__ import annotations

import resource
import signal
import sys
from collections.abc import Iterator
from types import FrameType

import pytest

from tests.fuzz.examples import NUM_EXAMPLES

MAX_GROWTH = 1 << 30  # bytes


def peak_memory() -> int:
    """Return the peak memory of this process, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@pytest.fixture(autouse=True)
def bounded() -> Iterator[None]:
    """Fail if the examples of a test hang, or raise the peak memory by a gigabyte."""

    def hang(_: int, __: FrameType | None) -> None:
        raise TimeoutError("it hangs")

    before, handler = peak_memory(), signal.signal(signal.SIGALRM, hang)
    signal.alarm(120 + NUM_EXAMPLES)  # a hundred times their usual time
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
    assert peak_memory() - before < MAX_GROWTH
