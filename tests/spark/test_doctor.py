"""The doctor with Spark: a cluster with twelve faults, their cures; a store that refuses, and Ctrl-C.

The sick cluster, the cured one, and the one with another Python each start a Spark of their own.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import venv
from collections.abc import Iterator
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from pyspark.sql import SparkSession

from nsfw_spark.spark.store_probe import check_input, check_output
from tests import java
from tests.conftest import png
from tests.fakes import card_content
from tests.s3 import FORBIDDEN, PYTHON, READS, SPARK, Fault, S3Server
from tests.spark.conftest import write_files
from tests.spark.test_command import ROOT, nsfw_spark, run
from tests.spark.test_s3 import QUICK

CPUS: Final = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
SCRIPT: Final = ROOT / "tests" / "cluster" / "discover_gpus.sh"
FILES: Final = {f"{i}.png": png(seed=i) for i in range(3)}
_NUMBERS: Final = count()
_GPU: Final = "resource.gpu"
CLUSTER: Final = {
    "spark.driver.host": "localhost",
    "spark.ui.enabled": "false",
    f"spark.worker.{_GPU}.amount": "1",
    f"spark.worker.{_GPU}.discoveryScript": str(SCRIPT),
    f"spark.executor.{_GPU}.amount": "1",
    f"spark.executor.{_GPU}.discoveryScript": str(SCRIPT),
    **java.INTERPRETED,
}
FAULTS: Final = {
    "spark.master": f"local-cluster[1,{2 * CPUS},1024]",
    f"spark.task.{_GPU}.amount": "1",
    "spark.executor.pyspark.memory": f"{CPUS}g",
    "spark.python.worker.reuse": "false",
    "spark.sql.execution.arrow.maxRecordsPerBatch": "10000",
    "spark.task.maxFailures": "1",
    "spark.speculation": "true",
    "spark.dynamicAllocation.enabled": "true",
    "spark.sql.sources.parallelPartitionDiscovery.parallelism": "10000",
    "spark.sql.files.openCostInBytes": "4194304",
}
"""Ten of the twelve; the others are OUT inside INPUT, and altered weights."""


class Sick:
    """A cluster with its faults, its weights and its places; cures change them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.settings = {**CLUSTER, **FAULTS}
        self.source = write_files(folder / "photos", FILES)
        self.output = self.source / "out"
        weights = {"path": "weights.bin", "sha256": sha256(b"right").hexdigest()}
        content = card_content(name="card", encoder={"weights": weights})
        self.card, self.weights = folder / "card.yaml", folder / "weights.bin"
        self.card.write_text(yaml.safe_dump(content), encoding="utf-8")
        self.weights.write_bytes(b"wrong")
        self._runs = 0

    def doctor(self) -> tuple[int, dict[str, dict[str, str]], dict[str, Any]]:
        """Submit the job; return its exit status, its problems by name, and the estimate."""
        from nsfw_spark.spark.jars import downloaded_jars

        self._runs += 1
        settings = {"spark.jars": ",".join(downloaded_jars()), **self.settings}
        conf = [word for name, value in settings.items() for word in ("--conf", f"{name}={value}")]
        submit = [
            str(Path(sys.executable).with_name("spark-submit")),
            *conf,
            str(ROOT / "jobs" / "doctor.py"),
        ]
        places = [str(self.source), str(self.output), "--cluster", "--json", "--model", str(self.card)]
        environment = {"JDK_JAVA_OPTIONS": java.OPTIONS, "TMPDIR": str(self.folder)}
        done = run([*submit, *places], self.folder / f"cwd-{self._runs}", environment)
        document = json.loads(done.stdout.splitlines()[-1])
        found = {each["name"]: each for each in document["findings"] if each["level"] == "problem"}
        assert document["problems"] == len(found), found
        return done.returncode, found, document["estimate"]

    def cure(self, finding: dict[str, str]) -> None:
        """Do what the cure says."""
        cure = finding["cure"]
        if cure.startswith("choose an OUT outside of INPUT"):
            self.output = self.folder / "out"
        elif cure.startswith("put the right file there"):
            self.weights.write_bytes(b"right")
        elif cure.startswith("unset spark."):
            del self.settings[cure.removeprefix("unset ")]
        else:
            name, _, value = cure.partition("=")
            assert name in self.settings
            self.settings[name] = value


@pytest.mark.skipif(CPUS > 16, reason="starts twice as many tasks as this machine has cores")
def test_each_of_twelve_faults_is_found_and_its_cure_cures_it(tmp_path: Path) -> None:
    sick = Sick(tmp_path)
    status, found, _ = sick.doctor()
    named = {name: each["cure"].removeprefix("unset ").partition("=")[0] for name, each in found.items()}
    assert set(named.values()) >= FAULTS.keys()
    assert {"place", "card"} <= found.keys()
    assert (status, len(found)) == (2, 12)
    for finding in found.values():
        sick.cure(finding)
    status, found, estimate = sick.doctor()
    assert (status, found) == (0, {})
    assert estimate["gpus"] == 1
    assert estimate["slots"] == CPUS
    assert {path.name for path in sick.source.iterdir()} == set(FILES)
    assert not sick.output.exists()


def test_executors_with_another_python_are_found(tmp_path: Path) -> None:
    """The other Python has no packages: not even the path of these sources."""
    venv.create(tmp_path / "other", with_pip=False)
    other = tmp_path / "other" / "bin" / "python-of-executors"
    # Without PYTHONPATH's entries of this environment, with those of Spark.
    other.write_text(
        f'#!/bin/sh\nexport PYTHONPATH="{_spark_python()}"\nexec {tmp_path}/other/bin/python "$@"\n',
        encoding="utf-8",
    )
    other.chmod(0o755)
    environment = {"PYSPARK_PYTHON": str(other), **java.quick(**{"spark.ui.enabled": "false"})}
    source = write_files(tmp_path / "photos", FILES)
    done = nsfw_spark("doctor", source, folder=tmp_path / "cwd", environment=environment)
    assert done.returncode == 2, done.stderr
    lines = done.stdout.splitlines()
    at = next(i for i, line in enumerate(lines) if "the executors' Python has no package" in line)
    assert f"-> PYSPARK_PYTHON={sys.executable}" in lines[at + 1]
    assert lines[0] == "This machine"
    assert lines[-1].endswith("the line below each one names the cure.")


def _spark_python() -> str:
    import pyspark

    python = Path(pyspark.__file__).parent / "python" / "lib"
    return os.pathsep.join(map(str, sorted(python.glob("*.zip"))))


# stores, with the tier's Spark


@pytest.fixture(scope="module")
def server(spark: SparkSession) -> Iterator[S3Server]:
    hadoop = spark._jsc.hadoopConfiguration()
    with S3Server() as server:
        for name, value in {**server.settings, **QUICK}.items():
            hadoop.set(name, value)
        yield server
        for name in (*server.settings, *QUICK):
            hadoop.unset(name)


@pytest.fixture
def uri(server: S3Server) -> Iterator[str]:
    """A bucket with three images in photos/."""
    name = f"s3a://doctor-{next(_NUMBERS)}"
    server.put(f"{name}/photos", FILES)
    yield name
    server.faults, server.latency_seconds = [], 0.0


def test_access_to_a_store_is_tried_and_nothing_stays(
    spark: SparkSession, server: S3Server, uri: str
) -> None:
    before = server.names(uri)
    found = check_input(spark, f"{uri}/photos")
    assert [(each.name, each.level) for each in found] == [("listing", "ok"), ("small reads", "ok")]
    found = check_output(spark, f"{uri}/new/out")
    assert [each.name for each in found] == [
        *("writing", "renaming", "conditional writes", "small reads", "deleting")
    ]
    assert {each.level for each in found} <= {"ok", "note"}
    assert server.names(uri) == before


@pytest.mark.parametrize(
    ("fault", "name"),
    [
        (Fault(FORBIDDEN, operations=("PUT",), client=SPARK), "making a directory"),
        (Fault(FORBIDDEN, keys="renamed", operations=("PUT",), client=SPARK), "renaming"),
        (Fault(FORBIDDEN, keys="renamed", operations=READS, client=PYTHON), "small reads"),
    ],
)
def test_a_right_that_out_lacks_is_named_and_nothing_stays(
    spark: SparkSession, server: S3Server, uri: str, fault: Fault, name: str
) -> None:
    before = server.names(uri)
    server.faults = [fault]
    (found,) = (each for each in check_output(spark, f"{uri}/out") if each.level == "problem")
    assert (found.group, found.name) == ("OUT", name)
    assert "docs/stores.md" in found.cure
    server.faults = []
    assert server.names(uri) == before
    assert all(each.level != "problem" for each in check_output(spark, f"{uri}/out"))


def test_a_probe_that_cannot_be_deleted_is_named(spark: SparkSession, server: S3Server, uri: str) -> None:
    server.faults = [Fault(FORBIDDEN, operations=("DELETE", "POST"), client=SPARK)]
    found = {each.name: each for each in check_output(spark, f"{uri}/out")}
    assert found["renaming"].level == found["deleting"].level == "problem"
    (left,) = {name.split("/")[1] for name in server.names(uri) if name.startswith("out/_")}
    assert left in found["deleting"].value


def test_an_input_that_python_may_not_read_or_that_is_not_there(
    spark: SparkSession, server: S3Server, uri: str
) -> None:
    server.faults = [Fault(FORBIDDEN, keys="photos/", operations=READS, client=PYTHON)]
    _, found = check_input(spark, f"{uri}/photos")
    assert (found.name, found.level) == ("small reads", "problem")
    assert "through pyarrow" in found.why
    server.faults = []
    assert check_input(spark, f"{uri}/photos")[1].level == "ok"
    assert check_input(spark, f"{uri}/nothing")[0].level == "problem"


def test_after_ctrl_c_nothing_stays(spark: SparkSession, server: S3Server, uri: str) -> None:
    before = server.names(uri)
    server.latency_seconds = 0.1
    stop = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT))
    stop.start()
    with pytest.raises(KeyboardInterrupt):
        check_output(spark, f"{uri}/new/out")
    stop.join()
    assert server.asked["PUT", "ok"]
    assert server.names(uri) == before


def test_a_local_out_is_as_it_was(spark: SparkSession, tmp_path: Path) -> None:
    found = check_output(spark, str(tmp_path / "a" / "b"))
    assert {each.level for each in found} == {"ok"}
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    refused, deleted = check_output(spark, str(tmp_path / "file" / "out"))
    assert (refused.name, refused.level) == ("making a directory", "problem")
    assert deleted.level == "ok"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_tables_are_looked_up_in_the_catalog(spark: SparkSession, tmp_path: Path) -> None:
    assert check_input(spark, "no_schema.no_table")[0].level == "problem"
    spark.sql(f"CREATE SCHEMA doctor LOCATION '{tmp_path}/tables'")
    try:
        assert {each.level for each in check_output(spark, "spark_catalog.doctor")} == {"ok"}
    finally:
        spark.sql("DROP SCHEMA doctor CASCADE")
    assert not list(tmp_path.glob("tables/*"))
