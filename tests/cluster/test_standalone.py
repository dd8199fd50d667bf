"""The wheel on a standalone cluster, started as README says; workers, executors and drivers are killed."""

from __future__ import annotations

import os
import random
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

import nsfw_spark
from tests.cluster.commands import FILTERED, Command, ids, rows, runs
from tests.cluster.kills import (
    FILTERS,
    GOES_ON,
    MAKES_TABLE,
    SCORES,
    SEED,
    Undisturbed,
    assert_accounted,
    assert_same,
    kill_at,
)
from tests.cluster.standalone import CORES, SPARK, WORKERS, Standalone, install_wheel
from tests.conftest import png

NUM_DISTINCT: Final = 40
SLOTS: Final = CORES * len(WORKERS)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel and without the sources."""
    return install_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture
def standalone(environment: Path, tmp_path: Path) -> Iterator[Standalone]:
    """A running cluster; fails the test if a driver leaves anything there."""
    with tempfile.TemporaryDirectory(prefix="h", dir="/tmp", ignore_cleanup_errors=True) as hosts:
        cluster = Standalone(tmp_path / "cluster", environment, Path(hosts))
        try:
            cluster.start()
            yield cluster
            assert cluster.left_behind() == []
        finally:
            cluster.stop()


def write_images(folder: Path, num: int) -> None:
    """Write images; those after the first 40 are links to these."""
    folder.mkdir()
    for i in range(num):
        if i < NUM_DISTINCT:
            (folder / f"{i:05}.png").write_bytes(png(seed=i))
        else:
            os.link(folder / f"{i % NUM_DISTINCT:05}.png", folder / f"{i:05}.png")


def arguments(folder: Path, output: Path, card: Path, *more: object) -> list[object]:
    model = ["--model", card, "--allow-random-weights", "--threshold", 0.002]
    return [folder, "--output", output, *model, *more]


def check(said: dict[str, Any], folder: Path, output: Path, card: Path) -> None:
    """Each image is once in image_scores, with its score, and once in a filtered table; all counts say so."""
    files = sorted(folder.iterdir())
    scores = nsfw_spark.load_scorer(card, device="cpu").score([path.read_bytes() for path in files])
    expected = {f"file:{path}": score.nsfw_score for path, score in zip(files, scores, strict=True)}
    found = rows(output / "image_scores")
    assert {name: row["nsfw_score"] for name, row in found.items()} == pytest.approx(expected, abs=1e-6)
    filtered = Counter(name for table in FILTERED for name in ids(output / table))
    assert filtered == dict.fromkeys(expected, 1)
    assert (said["images"], said["ok"], said["quarantined"]) == (len(files), len(files), 0)
    assert said["safe"] == len(ids(output / "safe_images")) > 0
    assert [row["images"] for row in runs(output)] == [len(files)]


def test_the_wheel_runs_on_a_cluster_with_the_properties_file_in_it(
    standalone: Standalone, card: Path, tmp_path: Path
) -> None:
    folder, output = tmp_path / "images", tmp_path / "out"
    write_images(folder, 33)  # Spark lists 32 paths without tasks
    with standalone.submitted(tmp_path / "cwd", *arguments(folder, output, card)) as command:
        said = command.end()
    check(said, folder, output, card)

    loads = re.findall(r"model host \d+: loaded \S+ on \S+ \(requested: (\S+)\)", standalone.log())
    assert sorted(loads) == [f"cuda:{number}" for number in WORKERS]
    tasks = Counter(re.findall(r"Running task \S+ in stage (\S+)", standalone.log()))
    assert max(tasks.values()) <= 3 * SLOTS
    assert tasks.total() < 300  # 1,111 with Spark's defaults
    (totals,) = (line for line in command.stdout().splitlines() if line.startswith("image_scores "))
    assert totals.split()[:4] == ["image_scores", "33", "100.0%", "33"]
    assert command.stderr().partition("Setting Spark log level")[2].count("\n") < 20
    sent = {path.name.partition("_")[2] for path in standalone.executors()[0].glob("*.jar")}
    assert "delta-storage-4.4.0.jar" in sent
    assert {named(path) for path in sent} & {named(path.name) for path in SPARK.glob("jars/*.jar")} == set()


def named(jar: str) -> str:
    """Return a jar's name without its version."""
    return re.sub(r"-\d.*", "", jar)


def kill_and_replace_workers(standalone: Standalone, command: Command) -> None:
    for number in WORKERS:
        command.until(lambda number=number: standalone.tasks_with_images(number) > 1)
        assert not command.is_over
        standalone.kill_worker(number)
        standalone.start_worker(number)
        before = standalone.tasks_with_images(number)
        command.until(lambda number=number, before=before: standalone.tasks_with_images(number) > before)


def kill_executors(standalone: Standalone, command: Command) -> None:
    for number in WORKERS:
        command.until(lambda number=number: standalone.tasks_with_images(number) > 1)
        assert not command.is_over
        standalone.kill_executor(number)


@pytest.mark.long
@pytest.mark.parametrize("disturb", [kill_and_replace_workers, kill_executors])
def test_the_tables_and_counts_are_right_though_machines_and_executors_come_and_go(
    standalone: Standalone, card: Path, tmp_path: Path, disturb: Callable[[Standalone, Command], None]
) -> None:
    folder, output = tmp_path / "images", tmp_path / "out"
    write_images(folder, 500)
    given = arguments(folder, output, card, "--files-per-batch", 25)
    with standalone.submitted(tmp_path / "cwd", *given) as command:
        disturb(standalone, command)
        said = command.end()
    assert len(standalone.executors()) > len(WORKERS)
    check(said, folder, output, card)


@pytest.mark.long
def test_a_driver_that_is_killed_on_a_cluster_goes_on_with_the_same_command(
    standalone: Standalone, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    source, output = undisturbed.sources["files"], tmp_path / "out"
    given = undisturbed.in_small_batches(source, output)[1:]  # without `run`
    chance = random.Random(SEED)  # noqa: S311 - to be repeated, not to be secret
    print(f"\nKILL_SEED={SEED}")  # noqa: T201 - shown where a test fails, and with -s
    for moment in (MAKES_TABLE, SCORES, GOES_ON, FILTERS):
        with standalone.submitted(tmp_path / "cwd", *given) as command:
            print(kill_at(command, moment, output, chance))  # noqa: T201
        assert standalone.left_behind() == []
    with standalone.submitted(tmp_path / "cwd", *given) as command:
        command.end()
    assert_same(output, undisturbed.output("files"))
    assert_accounted(output, source.num_images)
