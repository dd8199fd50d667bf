"""The display of a run's scoring: words, estimates, and the two kinds of output."""

from __future__ import annotations

import io
import time

import pytest

pytest.importorskip("pyspark")

from rich.console import Console

from nsfw_spark.scorer import Timings
from nsfw_spark.spark.display import Display, State, bar_text, batch_line, bound, inside_line
from nsfw_spark.spark.progress import Counts


def state(**values: object) -> State:
    made = State(started=time.monotonic() - 100, batch_started=time.monotonic() - 75)
    for name, value in values.items():
        setattr(made, name, value)
    return made


DECODING = Timings(decode_seconds=9.0, wait_seconds=1.0, batch_slots=10, encoded=5)


def test_the_bar_tells_of_amount_speed_time_statuses_and_limit() -> None:
    shown = bar_text(
        state(
            counts=Counts(images=2_000, ok=1_990, timings=DECODING),
            done=2_000,
            begun=1_000,
            total=10_000,
            tasks=(10, 5),
        )
    )
    assert shown == (
        "scored 2,500 of 10,000 images · 20.0 images/s · about 5 min 0 s left · 10 without a score · "
        "decoding-bound · 5 of 10 tasks"
    )


def test_without_a_total_the_count_is_shown_and_no_estimate() -> None:
    shown = bar_text(state(counts=Counts(images=2_000, ok=2_000), done=30, unit="files"))
    assert shown == "scored 2,000 images so far · 20.0 images/s"


def test_the_position_never_exceeds_the_total() -> None:
    assert state(done=9, begun=4, total=10, tasks=(4, 4)).position == 10
    assert state(done=9, begun=4, total=10).position == 9
    assert state(total=10).seconds_left is None
    assert state(done=10, total=10).seconds_left is None


def test_a_line_for_each_micro_batch() -> None:
    counts = Counts(images=100, ok=98, timings=DECODING)
    line = batch_line(3, counts, 10, state(counts=counts, done=50, total=100, unit="files"))
    assert line == (
        "micro-batch 3: 100 images, 2 of them without a score, 10 images/s; tasks: 90% decoding, 10% waiting "
        "for the model (decoding-bound); batches 50% full; scored 50 of 100 files, about 1 min 40 s left"
    )


def test_a_long_micro_batch_tells_from_inside() -> None:
    assert inside_line(state(batch=4, tasks=(12, 5), done=20, total=100)) == (
        "still scoring micro-batch 4, about 1 min 15 s, 5 of 12 tasks; scored 20 of 100 images"
    )


@pytest.mark.parametrize(
    ("timings", "word"), [(DECODING, "decoding-bound"), (Timings(1.0, 2.0, batch_slots=1), "model-bound")]
)
def test_the_limit_is_what_tasks_wait_for(timings: Timings, word: str) -> None:
    assert bound(timings) == word
    assert bound(Timings()) == ""


def test_elsewhere_a_line_is_due_after_the_time_and_not_before(capsys: pytest.CaptureFixture[str]) -> None:
    with Display(state(), 0.2) as display:
        display.refresh()
        assert not display.wants_tasks
        time.sleep(0.3)
        assert display.wants_tasks
        display.refresh()
        display.refresh()
    assert capsys.readouterr().err.count("still scoring micro-batch 0") == 1


def test_a_terminal_shows_the_bar_and_no_line_for_a_micro_batch() -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=120)
    shown = state(counts=Counts(images=5, ok=5), done=5, total=10)
    with Display(shown, 60, console) as display:
        display.batch_ended(0, shown.counts, 1.0)
        display.refresh()
        display.say("nsfw-spark: words")
    assert "scored 5 of 10 images" in file.getvalue()
    assert "nsfw-spark: words\n" in file.getvalue()
    assert "micro-batch 0" not in file.getvalue()
