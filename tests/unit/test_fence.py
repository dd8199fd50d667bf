"""The fence: when a run must no longer write, by clocks that this file sets."""

from __future__ import annotations

import pytest

from nsfw_spark.errors import TableError

pytest.importorskip("pyspark")

from nsfw_spark.spark.fence import Fence


class Lock:
    """A lock's fence, with clocks that stand still until a test turns them."""

    def __init__(self) -> None:
        self.clocks = [100.0, 5000.0]
        self.looks = 0
        self.fence = Fence(lambda: tuple(self.clocks))
        self.clocks[0] += 1000  # it waited for the lock
        self.fence.guard(self.fence.now(), 75.0, "too late", self._look)

    def _look(self) -> None:
        self.looks += 1


@pytest.mark.parametrize("clock", [0, 1])
def test_it_closes_for_good_when_any_clock_says_that_the_lock_was_not_renewed(clock: int) -> None:
    lock = Lock()
    lock.clocks[clock] += 70
    lock.fence.check()
    lock.fence.renew(lock.fence.now())
    lock.clocks[clock] += 70
    before_it_slept = lock.fence.now()
    lock.fence.check()
    lock.clocks[clock] += 10
    for _ in range(2):
        with pytest.raises(TableError, match=r"^too late$"):
            lock.fence.check()
        lock.fence.renew(before_it_slept)
        lock.fence.renew(lock.fence.now())
    assert lock.looks == 2


def test_a_clock_that_is_put_back_closes_nothing() -> None:
    lock = Lock()
    lock.clocks[1] -= 4000
    lock.fence.check()


def test_the_first_reason_counts() -> None:
    lock = Lock()
    lock.fence.close("taken over")
    lock.clocks[0] += 1000
    with pytest.raises(TableError, match=r"^taken over$"):
        lock.fence.check()


def test_a_lock_that_cannot_be_lost_needs_no_renewal() -> None:
    clocks = [0.0]
    fence = Fence(lambda: tuple(clocks))
    clocks[0] = 1e9
    fence.check()
