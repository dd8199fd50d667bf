"""Images that end the Python worker: one row each, and one failed attempt of their task at most."""

from __future__ import annotations

import os
from itertools import count
from pathlib import Path

import pytest
from pyspark import TaskContext
from pyspark.sql import SparkSession

from nsfw_spark.spark import read_images, score_images
from nsfw_spark.spark.summary import RunSummary
from tests.poison import POISONOUS, poisoned, poisoned_files
from tests.spark.conftest import Run, Tables, image_id, write_files

NUM_GOOD = 60
SECONDS = 5
"""That an image may take: of one that hangs they are waited for in full, any other takes milliseconds."""
_UNKNOWN_STAGES = 100  # so many ids in a row that were never run, and there are no more


@pytest.fixture
def poisonous_workers(spark: SparkSession, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python workers in which poison works."""
    path = os.pathsep.join([str(POISONOUS), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setitem(spark.sparkContext.environment, "PYTHONPATH", path)


def stage_now(spark: SparkSession) -> int:
    """Return the id of a stage that has just run; later ones have higher ids."""
    ids = spark.sparkContext.parallelize([0], 1).map(lambda _: TaskContext.get().stageId())  # type: ignore[union-attr]
    return ids.first()


def tasks_of_stages(spark: SparkSession, after: int) -> dict[int, tuple[int, int]]:
    """Return how many tasks each stage had that ran after one, and how many attempts failed."""
    tracker, found, unknown = spark.sparkContext.statusTracker(), {}, 0
    for stage in count(after + 1):
        if (info := tracker.getStageInfo(stage)) is None:
            unknown += 1
            if unknown == _UNKNOWN_STAGES:
                return found
        else:
            found[stage], unknown = (info.numTasks, info.numFailedTasks), 0
    raise AssertionError


@pytest.mark.usefixtures("poisonous_workers")
def test_poison_costs_its_own_rows_and_no_task_fails_twice(
    spark: SparkSession, run: Run, tmp_path: Path
) -> None:
    files = poisoned_files(NUM_GOOD)
    images, output = tmp_path / "images", tmp_path / "out"
    write_files(images, {name: content for name, (content, _) in files.items()})
    before = stage_now(spark)
    summary: RunSummary = run(images, output, decode_timeout_seconds=SECONDS)
    stages = tasks_of_stages(spark, before)
    failed = {stage: (tasks, failures) for stage, (tasks, failures) in stages.items() if failures}
    rows = Tables(spark, output).rows("image_scores")
    expected = {image_id(images / name): status for name, (_, status) in files.items()}
    assert {id_: row.status for id_, row in rows.items()} == expected
    assert summary.counts.images == len(files)
    assert failed, "no task failed: the poison did not work"
    assert all(failures <= tasks for tasks, failures in failed.values()), failed
    hung = next(row for id_, row in rows.items() if "hang" in id_)
    assert "decode_timeout_seconds = 5 (--decode-timeout-seconds)" in hung.error
    assert (hung.length, hung.nsfw_score) == (len(poisoned("hang")), None)


def test_where_poison_does_not_work_no_task_fails(spark: SparkSession, run: Run, tmp_path: Path) -> None:
    """Else the test above might show something else."""
    files = poisoned_files(NUM_GOOD)
    images = write_files(tmp_path / "images", {name: content for name, (content, _) in files.items()})
    before = stage_now(spark)
    assert run(images, tmp_path / "out").counts.ok == len(files)
    stages = tasks_of_stages(spark, before)
    assert stages
    assert not [stage for stage, (_, failures) in stages.items() if failures]


@pytest.mark.usefixtures("poisonous_workers")
def test_the_udf_gives_poison_a_row_too(spark: SparkSession, card_file: str, tmp_path: Path) -> None:
    files = {"good.png": poisoned_files(1)["0000-good.png"][0], "abort.png": poisoned("abort")}
    images = read_images(spark, str(write_files(tmp_path / "images", files)))
    rows = score_images(images, model=card_file).select("image_id", "status", "error").collect()
    assert {Path(row.image_id).name: row.status for row in rows} == {"good.png": "ok", "abort.png": "crashed"}
    assert "SIGABRT" in str([row.error for row in rows])
