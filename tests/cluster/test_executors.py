"""Separate executors with pretended GPUs: the model travels, and each task knows its device."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

import nsfw_spark
from tests.conftest import png
from tests.fakes import card_content

HERE: Final = Path(__file__).parent
ROOT: Final = HERE.parents[1]
NUM_IMAGES: Final = 24


def need_spark() -> None:
    """Skip without pyspark or Java; where FAIL_WITHOUT_SPARK is 1, fail."""
    home = os.environ.get("JAVA_HOME")
    java = shutil.which(f"{home}/bin/java" if home else "java")
    if java and find_spec("pyspark"):
        return
    if os.environ.get("FAIL_WITHOUT_SPARK") == "1":
        pytest.fail("FAIL_WITHOUT_SPARK is 1, and pyspark or Java is absent", pytrace=False)
    pytest.skip("needs pyspark and Java")


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("card") / "sampled.yaml"
    path.write_text(yaml.safe_dump(card_content(name="sampled")), encoding="utf-8")
    return path


def drive(folder: Path, *arguments: str | Path) -> dict[str, list[dict[str, Any]]]:
    """Run the driver in an empty folder, which no executor has as its own; return what it says."""
    need_spark()
    command = [sys.executable, str(HERE / "driver.py"), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, env=environment)
    assert done.returncode == 0, done.stderr
    said: dict[str, list[dict[str, Any]]] = json.loads(done.stdout.splitlines()[-1])
    return said


@pytest.fixture(scope="module")
def said(card: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """What the driver says where nobody set CUDA_VISIBLE_DEVICES."""
    return drive(tmp_path_factory.mktemp("cwd"), card)


@pytest.fixture(scope="module")
def said_narrowed(card: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """What it says where the executors see GPUs 5 and 6 only."""
    return drive(tmp_path_factory.mktemp("cwd"), card, "5,6")


def test_executors_give_the_scores_of_the_scorer(said: dict[str, list[dict[str, Any]]], card: Path) -> None:
    scorer = nsfw_spark.load_scorer(card, batch_size=1)
    expected = scorer.score([png(seed=seed) for seed in range(NUM_IMAGES)])
    found = {row["seed"]: (row["status"], row["nsfw_score"]) for row in said["scores"]}
    assert found == {seed: ("ok", score.nsfw_score) for seed, score in enumerate(expected)}
    assert len(said["scores"]) == NUM_IMAGES


def test_there_were_several_executors_and_workers(said: dict[str, list[dict[str, Any]]]) -> None:
    """Else the tests around this one would show nothing."""
    assert len({task["executor"] for task in said["tasks"]}) == 2
    assert len({task["worker"] for task in said["tasks"]}) > 2


def test_a_task_takes_the_gpu_that_spark_gave_it(said: dict[str, list[dict[str, Any]]]) -> None:
    assert {task["address"] for task in said["tasks"]} == {"1"}
    assert {task["visible"] for task in said["tasks"]} == {"not set"}
    assert {(task["device"], task["named"]) for task in said["tasks"]} == {("cuda:1", "cuda:1")}


def test_where_the_visible_gpus_are_narrowed_an_address_among_them_is_not_mapped_again(
    said_narrowed: dict[str, list[dict[str, Any]]],
) -> None:
    assert {task["visible"] for task in said_narrowed["tasks"]} == {"5,6"}
    assert {task["address"] for task in said_narrowed["tasks"]} == {"1"}
    assert {(task["device"], task["named"]) for task in said_narrowed["tasks"]} == {("cuda:1", "cuda:1")}
