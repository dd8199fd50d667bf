"""Model hosts and executors are killed while the job runs: the tables are complete and right all the same."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import deltalake
import psutil
import pytest

import nsfw_spark
from tests.cluster.conftest import Cluster, command, within
from tests.conftest import jpeg

CLUSTER: Final = "local-cluster[2,2,1024]"
NUM_FILES: Final = 1_200
NUM_DISTINCT: Final = 40
DEADLINE_SECONDS: Final = 600  # of what hangs: on a busy machine a cluster alone needs minutes to start


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough files for a run that can be disturbed; most are links to a few."""
    folder = tmp_path_factory.mktemp("images")
    for i in range(NUM_DISTINCT):
        (folder / f"{i:05}.jpg").write_bytes(jpeg(320, 240, seed=i))
    for i in range(NUM_DISTINCT, NUM_FILES):
        os.link(folder / f"{i % NUM_DISTINCT:05}.jpg", folder / f"{i:05}.jpg")
    return folder


@pytest.fixture(scope="module")
def expected(images: Path, card: Path) -> dict[str, float | None]:
    scorer = nsfw_spark.load_scorer(card, device="cpu")
    scores = scorer.score([(images / f"{i:05}.jpg").read_bytes() for i in range(NUM_DISTINCT)])
    return {f"file:{images}/{i:05}.jpg": scores[i % NUM_DISTINCT].nsfw_score for i in range(NUM_FILES)}


def disturbed(
    cluster: Cluster, images: Path, card: Path, disturb: Callable[[Cluster], object], master: str = CLUSTER
) -> dict[str, Any]:
    """Run the job, disturb it, and return its result and its table."""
    output = cluster.folder / "out"
    # Several micro-batches: who is killed in the first is needed in the others.
    options = {
        "input": images,
        "output": output,
        "model": card,
        "threshold": 0.002,
        "files_per_batch": NUM_FILES // 4,
    }
    process = cluster.start("job", master, **options)
    with process:
        try:
            disturb(cluster)
            said = cluster.result(process)
        finally:
            process.kill()
    columns = ["image_id", "status", "nsfw_score"]
    rows = deltalake.DeltaTable(output / "image_scores").to_pyarrow_table(columns=columns).to_pylist()
    return {"said": said, "rows": rows}


def check(found: dict[str, Any], expected: dict[str, float | None]) -> None:
    """Each file has exactly one row, with the right score."""
    assert len(found["rows"]) == len(expected)
    assert {row["status"] for row in found["rows"]} == {"ok"}
    scores = {row["image_id"]: row["nsfw_score"] for row in found["rows"]}
    assert scores == pytest.approx(expected, abs=1e-6)
    assert found["said"]["images"] == found["said"]["ok"] == len(expected)


def serving(cluster: Cluster) -> int | None:
    """Return a host that has served images to at least one task."""
    running = {process.pid for process in cluster.running_hosts()}
    # Not for the test image alone, which is asked for before there is anything to score.
    told = re.findall(r"model host (\d+): task .*: [1-9]\d* images on", cluster.log())
    served = (int(pid) for pid in told)
    return next((pid for pid in served if pid in running), None)


def kill_a_serving_host(cluster: Cluster) -> set[int]:
    """Kill a host that has served; return all hosts that ran until then."""
    assert within(DEADLINE_SECONDS, lambda: serving(cluster)), cluster.log()
    pid = serving(cluster)
    assert pid is not None
    known = {process.pid for process in cluster.running_hosts()}
    os.kill(pid, signal.SIGKILL)
    return known


def kill_hosts_of_all_ages(cluster: Cluster) -> None:
    """Kill the first host before it has loaded its model, later one that has served, then its successor."""
    kill_the_next_host(cluster, set())
    known = kill_a_serving_host(cluster)
    kill_the_next_host(cluster, known)


def kill_the_next_host(cluster: Cluster, known: set[int]) -> None:
    """Kill a host that is not known as soon as there is one: it has not loaded its model yet."""

    def killed() -> list[psutil.Process]:
        new = [process for process in cluster.running_hosts() if process.pid not in known]
        for process in new:
            process.kill()
        return new

    assert within(DEADLINE_SECONDS, killed), cluster.log()


def kill_an_executor(cluster: Cluster) -> None:
    """Kill the executor of a host that has served."""
    assert within(DEADLINE_SECONDS, lambda: serving(cluster)), cluster.log()
    pid = serving(cluster)
    hosts = [json.loads(path.read_text()) for path in cluster.hosts.glob("nsfw-spark-*/host.json")]
    (executor,) = (host["owner"][0] for host in hosts if host["pid"] == pid)
    assert any("CoarseGrainedExecutorBackend" in word for word in command(psutil.Process(executor)))
    os.kill(executor, signal.SIGKILL)


def kill_the_python_workers(cluster: Cluster) -> None:
    """Kill all that run tasks, as somebody might who is short of memory: no image is to blame."""
    assert within(DEADLINE_SECONDS, lambda: serving(cluster)), cluster.log()
    daemons = [process for process in psutil.process_iter() if is_daemon_of(cluster, process)]
    workers = [worker for daemon in daemons for worker in daemon.children()]
    workers = [worker for worker in workers if "pyspark.daemon" in command(worker)]
    assert workers
    for worker in workers:
        worker.kill()


def is_daemon_of(cluster: Cluster, process: psutil.Process) -> bool:
    """Whether this is what starts the Python workers of one of the cluster's executors."""
    try:
        is_worker = "pyspark.daemon" in command(process.parent())
        return (
            not is_worker
            and "pyspark.daemon" in command(process)
            and process.environ().get("TMPDIR") == str(cluster.hosts)
        )
    except (psutil.Error, AttributeError):  # it has ended meanwhile, or has no parent
        return False


@pytest.mark.long
def test_the_tables_are_complete_though_python_workers_are_killed(
    cluster: Cluster, images: Path, card: Path, expected: dict[str, float | None]
) -> None:
    check(disturbed(cluster, images, card, kill_the_python_workers), expected)
    assert "exited unexpectedly" in cluster.log(), "none of them was needed"


@pytest.mark.parametrize(
    "disturb", [pytest.param(kill_hosts_of_all_ages, marks=pytest.mark.long), kill_an_executor]
)
def test_the_tables_are_complete_whoever_is_killed(
    cluster: Cluster,
    images: Path,
    card: Path,
    expected: dict[str, float | None],
    disturb: Callable[[Cluster], object],
) -> None:
    found = disturbed(cluster, images, card, disturb)
    check(found, expected)
    assert len(cluster.loads()) > 2, "the one that was killed was not needed again"


def test_on_one_machine_too_a_host_may_die(
    cluster: Cluster, images: Path, card: Path, expected: dict[str, float | None]
) -> None:
    found = disturbed(cluster, images, card, kill_a_serving_host, master="local[2,4]")
    check(found, expected)
    assert len(cluster.loads()) == 2
