"""Images that end the Python worker, on separate executors, and where Spark tries a task only once."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import deltalake
import pytest

from tests import java
from tests.cluster.conftest import Cluster
from tests.poison import POISONOUS, poisoned_files

NUM_GOOD: Final = 60
SECONDS: Final = 5
"""That an image may take: of one that hangs they are waited for in full, any other takes milliseconds."""


@pytest.fixture
def poisonous(cluster: Cluster) -> Cluster:
    """A cluster in whose Python workers poison works, and which keeps a log of its tasks."""
    (cluster.folder / "events").mkdir()
    settings = {"enabled": "true", "compress": "false", "dir": f"file:{cluster.folder / 'events'}"}
    cluster.environment |= java.quick(**{f"spark.eventLog.{key}": value for key, value in settings.items()})
    path = cluster.environment["PYTHONPATH"]
    cluster.environment["PYTHONPATH"] = os.pathsep.join([str(POISONOUS), path])
    return cluster


def attempts(cluster: Cluster) -> Iterator[dict[str, Any]]:
    """Yield what Spark's event log says of each attempt at a task that has ended."""
    for log in (cluster.folder / "events").rglob("events_*"):
        for line in log.read_text(encoding="utf-8").splitlines():
            event = json.loads(line)
            if event["Event"] == "SparkListenerTaskEnd":
                yield event["Task Info"]


def scored(cluster: Cluster, card: Path, master: str) -> None:
    """Run the job over poison; each file must have its row, and the right one."""
    files, images, output = poisoned_files(NUM_GOOD), cluster.folder / "images", cluster.folder / "out"
    images.mkdir()
    for name, (content, _) in files.items():
        (images / name).write_bytes(content)
    options = {"input": images, "output": output, "model": card, "decode_timeout_seconds": SECONDS}
    said = cluster.run("job", master, **options)
    columns = ["image_id", "status"]
    rows = deltalake.DeltaTable(output / "image_scores").to_pyarrow_table(columns=columns).to_pylist()
    expected = {f"file:{images}/{name}": status for name, (_, status) in files.items()}
    assert {row["image_id"]: row["status"] for row in rows} == expected
    assert len(rows) == said["images"] == len(files)


def test_poison_costs_no_executor_and_each_task_one_failure_at_most(poisonous: Cluster, card: Path) -> None:
    scored(poisonous, card, "local-cluster[2,2,1024]")
    failed = [task for task in attempts(poisonous) if task["Failed"]]
    assert failed, "no task failed: the poison did not work"
    assert {task["Attempt"] for task in failed} == {0}
    assert len({task["Executor ID"] for task in attempts(poisonous)}) == 2, "an executor was lost"


@pytest.mark.long
def test_where_spark_tries_a_task_once_none_fails(poisonous: Cluster, card: Path) -> None:
    scored(poisonous, card, "local[2]")
    ended = list(attempts(poisonous))
    assert ended
    assert not [task for task in ended if task["Failed"]]
