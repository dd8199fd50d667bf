"""Ctrl-C in a real run: a micro-batch ends, nothing is lost, and the next run goes on."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("pyspark")

from nsfw_spark.errors import RunInterruptedError
from tests.conftest import png
from tests.spark.conftest import Run, Tables, write_files

NUM_IMAGES = 8


def interrupt_in_second_batch(output: Path) -> None:
    """Press Ctrl-C once the first micro-batch has been noted as written."""
    deadline = time.monotonic() + 120
    while not list(output.glob("_checkpoints/*/commits/0")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_keeps_what_is_scored_and_the_next_run_goes_on(
    run: Run, tmp_path: Path, spark: object, capfd: pytest.CaptureFixture[str]
) -> None:
    images = write_files(tmp_path / "images", {f"{i}.png": png(seed=i) for i in range(NUM_IMAGES)})
    out, tables = tmp_path / "out", Tables(spark, tmp_path / "out")  # type: ignore[arg-type]
    threading.Thread(target=interrupt_in_second_batch, args=[out], daemon=True).start()
    with pytest.raises(RunInterruptedError) as ended:
        run(images, out, files_per_batch=1)
    said = capfd.readouterr().err
    assert "ending after this micro-batch; Ctrl-C again ends now" in said
    assert "scored 1 of 8 images" in said
    scored = tables.rows("image_scores")
    assert 1 <= len(scored) < NUM_IMAGES
    assert f"interrupted after {len(scored)} images" in str(ended.value)
    first, *others = tables.frame("runs").collect()
    assert (first.outcome, first.images, others) == ("interrupted", len(scored), [])
    assert not (out / "safe_images").exists()

    summary = run(images, out)
    assert summary.counts.images == NUM_IMAGES - len(scored)
    assert len(tables.rows("image_scores")) == NUM_IMAGES
    assert summary.totals["safe_images"] + summary.totals["flagged_images"] == NUM_IMAGES
