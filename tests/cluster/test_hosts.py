"""One model for each GPU of an executor: counted in the model hosts' own log lines."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import pytest

import nsfw_spark
from tests.cluster.conftest import ROOT, Cluster
from tests.conftest import png
from tests.unit.test_conf import put_nvidia_smi

NUM_IMAGES: Final = 3 * 64
GPUS: Final = "0, GPU-0, Disabled\n1, GPU-1, Disabled\n"
EXECUTORS: Final = "local-cluster[2,4,2048]"


def expected(card: str | Path, num_images: int = NUM_IMAGES) -> Any:  # noqa: ANN401 - what pytest.approx returns
    scores = nsfw_spark.load_scorer(card, device="cpu", batch_size=1).score(
        [png(seed=seed) for seed in range(24)]
    )
    return pytest.approx([scores[seed % 24].nsfw_score for seed in range(num_images)], abs=1e-6)


def by_seed(said: dict[str, Any]) -> list[float]:
    assert {row["status"] for row in said["scores"]} == {"ok"}
    found = {row["seed"]: row["nsfw_score"] for row in said["scores"]}
    return [found[seed] for seed in range(len(said["scores"]))]


@pytest.fixture
def with_gpus(cluster: Cluster) -> Cluster:
    """A cluster whose machines have an nvidia-smi that lists two GPUs, for conf/discover_gpus.sh."""
    put_nvidia_smi(cluster.folder, GPUS)
    cluster.environment["PATH"] = f"{cluster.folder}:{cluster.environment['PATH']}"
    return cluster


@pytest.mark.parametrize(
    ("gpus", "share", "num_loads"), [pytest.param(1, 0.25, 2, marks=pytest.mark.long), (2, 0.5, 4)]
)
def test_a_model_is_loaded_once_for_each_gpu_of_each_executor(
    with_gpus: Cluster, card: Path, gpus: int, share: float, num_loads: int
) -> None:
    if gpus == 1:
        put_nvidia_smi(with_gpus.folder, GPUS.splitlines()[0])
    script = ROOT / "conf" / "discover_gpus.sh"
    said = with_gpus.run("scores", EXECUTORS, card=card, gpus=gpus, share=share, script=script)
    assert by_seed(said) == expected(card)
    assert sorted(with_gpus.loads()) == sorted(num_loads // gpus * [f"cuda:{i}" for i in range(gpus)])
    # Which GPU each task had from Spark, and which model got its images.
    tasks = re.findall(r"task \d+ \(partition \d+, GPU (\d)\): (\d+) images on cuda:(\d)", with_gpus.log())
    assert sum(int(num_images) for _, num_images, _ in tasks) == NUM_IMAGES
    assert {(address, device) for address, _, device in tasks} == {(str(i), str(i)) for i in range(gpus)}


def test_on_one_machine_the_model_is_loaded_once_and_no_worker_imports_its_library(cluster: Cluster) -> None:
    said = cluster.run("scores", "local[4]", card="open-nsfw")
    assert by_seed(said) == expected("open-nsfw")
    assert (cluster.loads(), said["libraries"]) == (["auto:0"], [])


def test_without_a_host_each_python_worker_holds_the_model(cluster: Cluster) -> None:
    """The same, with `host="off"`: else the test above would show nothing."""
    said = cluster.run("scores", "local[4]", card="open-nsfw", options={"host": "off"})
    assert by_seed(said) == expected("open-nsfw")
    assert cluster.loads() == []
    assert "onnxruntime" in said["libraries"]


@pytest.mark.long
def test_workers_that_live_for_one_task_share_the_host_too(cluster: Cluster, card: Path) -> None:
    settings = {"spark.python.worker.reuse": "false"}
    said = cluster.run("scores", "local[4]", card=card, partitions=8, settings=settings)
    assert by_seed(said) == expected(card, 24)
    assert len(cluster.loads()) == 1
