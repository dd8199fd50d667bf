"""Separate executors with pretended GPUs: the model travels, and each task knows its device."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Final

import pytest

import nsfw_spark
from tests.cluster.conftest import HERE, Cluster
from tests.conftest import png

NUM_IMAGES: Final = 24
Said = dict[str, list[dict[str, Any]]]


def drive(folder: Path, card: Path, visible: str | None = None) -> Said:
    with tempfile.TemporaryDirectory(prefix="h", dir="/tmp", ignore_cleanup_errors=True) as hosts:
        cluster = Cluster(folder, Path(hosts))
        script = HERE / "discover_gpus.sh"
        said: Said = cluster.run(
            "addresses", "local-cluster[2,2,1024]", card=card, script=script, visible=visible
        )
        return said


@pytest.fixture(scope="module")
def said(card: Path, tmp_path_factory: pytest.TempPathFactory) -> Said:
    """What the driver says where nobody set CUDA_VISIBLE_DEVICES."""
    return drive(tmp_path_factory.mktemp("cluster"), card)


@pytest.fixture(scope="module")
def said_narrowed(card: Path, tmp_path_factory: pytest.TempPathFactory) -> Said:
    """What it says where the executors see GPUs 5 and 6 only."""
    return drive(tmp_path_factory.mktemp("cluster"), card, "5,6")


def test_executors_give_the_scores_of_the_scorer(said: Said, card: Path) -> None:
    scorer = nsfw_spark.load_scorer(card, batch_size=1)
    expected = scorer.score([png(seed=seed) for seed in range(NUM_IMAGES)])
    found = {row["seed"]: (row["status"], row["nsfw_score"]) for row in said["scores"]}
    assert found == {seed: ("ok", score.nsfw_score) for seed, score in enumerate(expected)}
    assert len(said["scores"]) == NUM_IMAGES


def test_there_were_several_executors_and_workers(said: Said) -> None:
    """Else the tests around this one would show nothing."""
    assert len({task["executor"] for task in said["tasks"]}) == 2
    assert len({task["worker"] for task in said["tasks"]}) > 2


def test_a_task_takes_the_gpu_that_spark_gave_it(said: Said) -> None:
    assert {task["address"] for task in said["tasks"]} == {"1"}
    assert {task["visible"] for task in said["tasks"]} == {"not set"}
    assert {(task["device"], task["named"]) for task in said["tasks"]} == {("cuda:1", "cuda:1")}


def test_where_the_visible_gpus_are_narrowed_an_address_among_them_is_not_mapped_again(
    said_narrowed: Said,
) -> None:
    assert {task["visible"] for task in said_narrowed["tasks"]} == {"5,6"}
    assert {task["address"] for task in said_narrowed["tasks"]} == {"1"}
    assert {(task["device"], task["named"]) for task in said_narrowed["tasks"]} == {("cuda:1", "cuda:1")}
