"""A stream is followed to its end, or to the end of a micro-batch; here the stream is a fake."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("pyspark")

from pyspark.sql import Row

from nsfw_spark.errors import RunInterruptedError, TableError
from nsfw_spark.spark.fence import Fence
from nsfw_spark.spark.follow import follow
from nsfw_spark.spark.progress import Counts


@dataclass
class FakeQuery:
    """A query whose polls run functions: each may end a micro-batch, or press Ctrl-C."""

    polls: list[Callable[[FakeQuery], None]]
    recentProgress: list[SimpleNamespace] = field(default_factory=list)  # noqa: N815 - pyspark's name
    status: Mapping[str, bool] = field(default_factory=lambda: {"isDataAvailable": True})
    is_stopped: bool = False

    def awaitTermination(self, _: float) -> bool:  # noqa: N802 - pyspark's name
        if self.polls:
            self.polls.pop(0)(self)
        return not self.polls

    def stop(self) -> None:
        self.is_stopped = True


def ends(number: int, images: int = 10) -> Callable[[FakeQuery], None]:
    """A poll after which a micro-batch has ended."""

    def poll(query: FakeQuery) -> None:
        values: dict[str, Any] = dict.fromkeys(
            ("decode_seconds", "wait_seconds", "encode_seconds", "encoded", "batch_slots", "normalized"), 1.0
        )
        values |= {"second": 0.0, "images": images, "ok": images, "files_lost": 0}
        query.recentProgress.append(
            SimpleNamespace(
                batchId=number,
                numInputRows=images,
                batchDuration=2000,
                observedMetrics={"images": Row(**values)},
            )
        )

    return poll


def nothing(_: FakeQuery) -> None:
    """A poll after which nothing has happened."""


def ctrl_c(_: FakeQuery) -> None:
    """A poll during which Ctrl-C is pressed."""
    os.kill(os.getpid(), signal.SIGINT)


def followed(query: FakeQuery, **options: Any) -> Counts:  # noqa: ANN401
    return follow(query, Fence(), object(), **options)  # type: ignore[arg-type]


def test_each_micro_batch_has_a_line_and_the_counts_add_up(capsys: pytest.CaptureFixture[str]) -> None:
    query = FakeQuery([nothing, ends(3), nothing, ends(4, 5), nothing])
    assert followed(query, first_batch=3).images == 15
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == ["micro-batch 3: 10 images", "micro-batch 4: 5 images"]
    assert lines[1].endswith("scored 15 images so far")


def test_ctrl_c_ends_after_the_micro_batch(capsys: pytest.CaptureFixture[str]) -> None:
    query = FakeQuery([ends(0), ctrl_c, nothing, nothing, ends(1), ends(2), ends(3)])
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(RunInterruptedError, match="interrupted after 20 images; run the same command again"):
        followed(query)
    assert query.is_stopped
    assert len(query.polls) == 2
    assert capsys.readouterr().err.count("ending after this micro-batch; Ctrl-C again ends now\n") == 1
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_twice_ends_now() -> None:
    query = FakeQuery([ends(0), ctrl_c, nothing, ctrl_c, nothing, ends(1)])
    with pytest.raises(KeyboardInterrupt):
        followed(query)
    assert query.is_stopped
    assert len(query.polls) == 2


def test_ctrl_c_while_no_micro_batch_runs_ends_now() -> None:
    query = FakeQuery([nothing, ctrl_c, nothing], status={"isDataAvailable": False})
    with pytest.raises(RunInterruptedError, match="after 0 images"):
        followed(query)
    assert len(query.polls) == 1


def test_ctrl_c_in_the_last_micro_batch_leaves_the_filtered_tables_to_the_next_run() -> None:
    query = FakeQuery([ends(0), ctrl_c, ends(1)])
    with pytest.raises(RunInterruptedError, match="after 20 images"):
        followed(query)


def test_a_long_micro_batch_tells_that_it_still_runs(capsys: pytest.CaptureFixture[str]) -> None:
    followed(FakeQuery([ends(0), nothing, nothing, ends(1)]), tell_seconds=0.0)
    assert "still scoring micro-batch 1, less than a second; scored 10 images" in capsys.readouterr().err
    followed(FakeQuery([ends(0), nothing, nothing, ends(1)]))
    assert "still scoring" not in capsys.readouterr().err


def test_a_run_that_lost_its_output_stops() -> None:
    fence, query = Fence(), FakeQuery([nothing, nothing])
    fence.close("another run")
    with pytest.raises(TableError, match="another run"):
        follow(query, fence, object())  # type: ignore[arg-type]
    assert query.is_stopped
