"""The doctor without Spark: each fault on purpose, the cure that is named, and that the cure cures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from nsfw_spark.cards import load_card
from nsfw_spark.doctor.cluster import DELTA, Cluster
from nsfw_spark.doctor.estimate import Estimate
from nsfw_spark.doctor.executors import check_executors
from nsfw_spark.doctor.facts import PACKAGES, Facts, measure, memory_limit, num_cpus
from nsfw_spark.doctor.finding import Finding
from nsfw_spark.doctor.machine import check_gpu, check_locations, check_machine, check_weights, check_writable
from nsfw_spark.doctor.settings import check_settings
from nsfw_spark.doctor.text import can_show_marks, estimate_lines, lines_of, verdict
from tests.fakes import card_content
from tests.unit.test_conf import GPU_FILES, settings

CARD: Final = load_card("laion-vit-l-14")
VERSIONS: Final = {"nsfw-spark": "1", "pillow": "12.0", "numpy": "2.1", "pyspark": "4.2.0"}
DRIVER: Final = Facts("driver", python="3.12.1", executable="/opt/python", versions=VERSIONS, cpus=8)
GPU: Final = "NVIDIA H100, 570.1, 81559 MiB"
EXECUTOR: Final = replace(
    *(DRIVER,), host="node-1", executor="1", cpus=16, scratch="/scratch", scratch_bytes=10**12, gpus=(GPU,),
    assigned=("0",), decodes_per_second=200.0,
)  # fmt: skip
PACKAGE: Final = "io.delta:delta-spark_4.2_2.13:4.4.0"
HEALTHY: Final = {
    **DELTA,
    "spark.master": "yarn",
    "spark.executor.cores": "16",
    "spark.executor.instances": "1",
    "spark.executor.resource.gpu.amount": "1",
    "spark.task.resource.gpu.amount": "0.0625",
    "spark.executor.memoryOverhead": "10g",
    "spark.executor.memory": "8g",
    "spark.sql.execution.arrow.maxRecordsPerBatch": "128",
    "spark.scheduler.minRegisteredResourcesRatio": "1.0",
    "spark.sql.sources.parallelPartitionDiscovery.parallelism": "48",
    "spark.sql.files.openCostInBytes": "65536",
}


def cluster(changes: Mapping[str, str | None] | None = None, **facts: Any) -> Cluster:  # noqa: ANN401
    """Return a healthy cluster with some settings changed; None removes one."""
    changed = {**HEALTHY, **(changes or {})}
    given = {name: value for name, value in changed.items() if value is not None}
    known = {"card": CARD, "driver": DRIVER, "executors": [EXECUTOR], "slots": 16, "num_asked": 1}
    jar = {"spark": "4.2.0", "delta_jar": "delta-spark_4.2_2.13-4.4.0.jar", "delta_package": PACKAGE}
    return Cluster(given, **{**known, **jar, **facts})


def check(cluster: Cluster) -> list[Finding]:
    return [*check_settings(cluster), *check_executors(cluster)]


def problems(found: Iterator[Finding] | list[Finding]) -> list[Finding]:
    return [each for each in found if each.level == "problem"]


def cured(changes: Mapping[str, str | None], cure: str) -> dict[str, str | None]:
    """Do what a cure says: `name=value`, or `unset name`."""
    name, is_set, value = cure.removeprefix("unset ").partition("=")
    assert name.startswith("spark.")
    return {**changes, name: value if is_set else None}


def test_of_a_healthy_cluster_there_is_nothing_to_say() -> None:
    assert [each for each in check(cluster()) if each.level != "ok"] == []


FAULTS: Final[dict[str, tuple[dict[str, str | None], str]]] = {
    "one-task-a-gpu": ({"spark.task.resource.gpu.amount": "1"}, "spark.task.resource.gpu.amount=0.0625"),
    "no-share": ({"spark.task.resource.gpu.amount": None}, "spark.task.resource.gpu.amount=0.0625"),
    "address-space": ({"spark.executor.pyspark.memory": "4g"}, "unset spark.executor.pyspark.memory"),
    "overhead": ({"spark.executor.memoryOverhead": "2g"}, "spark.executor.memoryOverhead=10g"),
    "default-overhead": ({"spark.executor.memoryOverhead": None}, "spark.executor.memoryOverhead=10g"),
    "reuse": ({"spark.python.worker.reuse": "false"}, "spark.python.worker.reuse=true"),
    "arrow": (
        {"spark.sql.execution.arrow.maxRecordsPerBatch": "10000"},
        "spark.sql.execution.arrow.maxRecordsPerBatch=128",
    ),
    "no-limit-of-rows": (
        {"spark.sql.execution.arrow.maxRecordsPerBatch": "0"},
        "spark.sql.execution.arrow.maxRecordsPerBatch=128",
    ),
    "tries-once": ({"spark.task.maxFailures": "1"}, "spark.task.maxFailures=4"),
    "speculation": ({"spark.speculation": "true"}, "spark.speculation=false"),
    "dynamic": ({"spark.dynamicAllocation.enabled": "true"}, "spark.dynamicAllocation.enabled=false"),
    "listing": (
        {"spark.sql.sources.parallelPartitionDiscovery.parallelism": "10000"},
        "spark.sql.sources.parallelPartitionDiscovery.parallelism=48",
    ),
    "open-cost": ({"spark.sql.files.openCostInBytes": "4194304"}, "spark.sql.files.openCostInBytes=65536"),
    "no-extension": (
        {"spark.sql.extensions": "org.example.Other"},
        f"spark.sql.extensions=org.example.Other,{DELTA['spark.sql.extensions']}",
    ),
    "no-catalog": (
        {"spark.sql.catalog.spark_catalog": None},
        f"spark.sql.catalog.spark_catalog={DELTA['spark.sql.catalog.spark_catalog']}",
    ),
    "too-many-cores": (
        {"spark.executor.cores": "32", "spark.executor.memoryOverhead": "20g"},
        "spark.executor.cores=16",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_setting_is_found_and_its_cure_cures_it(fault: str) -> None:
    changes, cure = FAULTS[fault]
    sick = cluster(changes, slots=int(changes.get("spark.executor.cores") or 16))
    found = problems(check(sick))
    assert cure in [each.cure for each in found]
    assert all(each.why and each.expected for each in found)
    for each in found:
        changes = cured(changes, each.cure)
    assert problems(check(cluster(changes))) == []


@pytest.mark.parametrize("name", GPU_FILES)
def test_the_property_files_in_conf_have_no_problem(name: str) -> None:
    found = settings(name)
    cores = int(found["spark.executor.cores"])
    slots = cores * int(found.get("spark.executor.instances", "2"))
    sure = {**found, "spark.sql.sources.parallelPartitionDiscovery.parallelism": str(3 * slots)}
    sure["spark.sql.files.openCostInBytes"] = "65536"  # a job sets these two
    assert problems(check(replace(cluster(), settings=sure, slots=slots))) == []


def test_a_local_session_that_tries_once_or_has_too_many_tasks() -> None:
    local = {name: None for name in HEALTHY if "executor" in name or "gpu" in name}
    alone = replace(EXECUTOR, cpus=4, gpus=(), assigned=())
    for master, cure in (("local[4]", "spark.master=local[4,4]"), ("local[16,4]", "spark.master=local[4,4]")):
        slots = int(master.removeprefix("local[").partition(",")[0].removesuffix("]"))
        sick = cluster({**local, "spark.master": master}, executors=[alone], slots=slots)
        assert [each.cure for each in problems(check(sick))] == [cure]
    well = cluster({**local, "spark.master": "local[4,4]"}, executors=[alone], slots=4)
    assert problems(check(well)) == []


def test_a_session_that_began_before_its_executors_is_found() -> None:
    sick = cluster({"spark.executor.instances": "3", "spark.scheduler.minRegisteredResourcesRatio": None})
    (found,) = problems(check(sick))
    assert found.cure == "spark.scheduler.minRegisteredResourcesRatio=1.0"
    assert found.value.startswith("16 of 48 cores are there")
    well = cluster({"spark.executor.instances": "3"}, slots=48)
    assert problems(check(well)) == []


@pytest.mark.parametrize(
    ("jar", "word"), [(None, "no jar has Delta Lake"), ("io.delta_delta-spark_4.0_2.13-4.0.0.jar", "4.0")]
)
def test_a_jar_of_delta_lake_that_does_not_fit(jar: str | None, word: str) -> None:
    (found,) = problems(check(cluster(delta_jar=jar)))
    assert word in found.value
    assert found.cure == f"spark.jars.packages={PACKAGE}"


def test_other_packages_and_other_weights_of_executors_are_found() -> None:
    other = replace(EXECUTOR, versions={**VERSIONS, "pillow": "11.3"}, weights="other")
    sick = cluster(executors=[other], driver=replace(DRIVER, weights="mine"))
    packages, weights = problems(check(sick))
    assert packages.value == "pillow 11.3 on node-1 (driver: 12.0)"
    assert "pip install nsfw-spark==1 pillow==12.0" in packages.cure
    assert (weights.value, "--ship-weights" in weights.cure) == ("node-1: other", True)
    same = replace(EXECUTOR, weights="mine")
    assert problems(check(cluster(executors=[same], driver=replace(DRIVER, weights="mine")))) == []


@pytest.mark.parametrize(
    ("problem", "word"),
    [
        ("ModuleNotFoundError: No module named 'nsfw_spark'", "no package nsfw_spark"),
        ("[PYTHON_VERSION_MISMATCH] Python in worker has different version", "another version of Python"),
    ],
)
def test_executors_with_another_python_are_told_which_one(problem: str, word: str) -> None:
    (found,) = problems(check(cluster(executors=[], problem=problem)))
    assert word in found.value
    assert found.cure == "PYSPARK_PYTHON=/opt/python"


def test_a_full_disk_of_an_executor_is_found() -> None:
    (found,) = problems(check(cluster(executors=[replace(EXECUTOR, scratch_bytes=10**8)])))
    assert "0.1 GB free in /scratch" in found.value


# this machine


@pytest.mark.parametrize(
    ("facts", "cure"),
    [
        (replace(EXECUTOR, visible=""), "unset CUDA_VISIBLE_DEVICES"),
        (replace(EXECUTOR, visible="-1"), "unset CUDA_VISIBLE_DEVICES"),
        (replace(EXECUTOR, versions={"torch": "2.9.0+cpu"}), "pip install --force-reinstall torch"),
    ],
)
def test_a_gpu_that_is_hidden_or_that_torch_cannot_use(facts: Facts, cure: str) -> None:
    found = check_gpu("x", facts)
    assert found.level == "problem"
    assert found.cure.startswith(cure)
    well = replace(facts, visible="1", versions={"torch": "2.9.0"}, torch_cuda="12.8")
    assert check_gpu("x", well).level == "ok"
    assert check_gpu("x", replace(well, visible=None)).level == "ok"
    assert check_gpu("x", replace(well, visible=" 11")).level == "ok"


def test_gpus_are_those_of_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\necho '{GPU}'\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    facts = measure(CARD.preprocessing, 0.01)
    assert facts.gpus == (GPU,)
    assert check_gpu("x", facts).cure == "unset CUDA_VISIBLE_DEVICES"
    program.write_text("#!/bin/sh\necho 'No devices were found'\n", encoding="utf-8")
    assert measure(CARD.preprocessing, 0.01).gpus == ()


def card_with_weights(folder: Path, content: bytes) -> Path:
    """Write a card that pins the sha256 of b"right", and weights with some content."""
    (folder / "weights.bin").write_bytes(content)
    weights = {"path": "weights.bin", "sha256": sha256(b"right").hexdigest()}
    path = folder / "card.yaml"
    path.write_text(yaml.safe_dump(card_content(name="card", encoder={"weights": weights})), encoding="utf-8")
    return path


def test_altered_and_absent_weights_are_found(tmp_path: Path) -> None:
    card = load_card(card_with_weights(tmp_path, b"wrong"))
    altered = check_weights(card, None)
    assert (altered.level, "has sha256" in altered.value) == ("problem", True)
    assert altered.cure.startswith("put the right file there")
    (tmp_path / "weights.bin").write_bytes(b"right")
    assert check_weights(card, None).level == "ok"
    (tmp_path / "weights.bin").unlink()
    assert check_weights(card, None).level == "problem"


def test_weights_that_are_not_there_are_fetched_by_the_command_that_it_names(tmp_path: Path) -> None:
    found = check_weights(CARD, tmp_path)
    if found.level == "ok":
        pytest.skip("this machine has the weights in its cache")
    command = f"nsfw-spark models fetch laion-vit-l-14 --model-dir {tmp_path}"
    assert found.cure.startswith(command)


@pytest.mark.parametrize("java", ["missing", "old"])
def test_java_that_is_missing_or_old_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, java: str
) -> None:
    program = tmp_path / "bin" / "java"
    program.parent.mkdir()
    if java == "old":
        program.write_text("#!/bin/sh\necho 'openjdk version \"1.8.0_412\"' >&2\n", encoding="utf-8")
        program.chmod(0o755)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    found = next(check_machine(DRIVER, CARD))
    assert (found.name, found.level) == ("Java", "problem")
    assert "apt-get install" in found.cure
    program.write_text("#!/bin/sh\necho 'openjdk version \"21.0.2\"' >&2\n", encoding="utf-8")
    program.chmod(0o755)
    assert next(check_machine(DRIVER, CARD)).value.startswith("21.0.2")


def test_places_that_are_wrong_are_found(tmp_path: Path) -> None:
    source = tmp_path / "photos"
    (found,) = problems(check_locations(str(source), str(tmp_path / "out"), is_local=True))
    assert (found.group, "No such file" in found.value) == ("INPUT", True)
    source.mkdir()
    (found,) = problems(check_locations(str(source), str(source / "out"), is_local=True))
    assert "outside of INPUT" in found.cure
    (source / "file").touch()
    assert check_writable(source / "file" / "out").level == "problem"
    assert problems(check_locations(str(source), str(tmp_path / "out"), is_local=True)) == []
    assert [path.name for path in tmp_path.rglob("*")] == ["photos", "file"]


def test_a_place_with_credentials_is_refused_and_not_shown() -> None:
    (found,) = check_locations("s3a://KEY:SECRET@bucket/a", None, is_local=True)
    assert found.level == "problem"
    assert "SECRET" not in json.dumps(found.as_dict())


def test_texts_of_findings_show_no_secret_and_steer_no_terminal() -> None:
    found = Finding("a", "b", "ok", "s3a://K:S3CRET@b\x1b[31m\nnext", "https://h?sig=S3CRET")
    assert (found.value, found.expected) == ("s3a://***@b\ufffd[31m next", "https://h?sig=***")


WITHOUT_SPARK: Final = """
import sys
sys.modules["pyspark"] = None  # as if it were not installed
from nsfw_spark.cli import main
main(sys.argv[1:])
"""


def test_without_pyspark_it_checks_the_machine_and_names_the_extra(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_SPARK, "doctor", str(tmp_path), "--model", "open-nsfw"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    assert done.returncode == 2, done.stderr
    at = next(i for i, line in enumerate(lines) if "not installed: pyspark" in line)
    assert "-> pip install 'nsfw-spark[spark" in lines[at + 1]
    assert any("images/s on one core" in line for line in lines)
    assert "not measured here" in done.stdout
    assert "Settings" not in lines

    asked = subprocess.run([*command, "--json", "--images", "5"], capture_output=True, text=True, check=False)
    document = json.loads(asked.stdout)
    assert document["problems"] == sum(each["level"] == "problem" for each in document["findings"]) > 0
    assert document["estimate"]["images"] == 5


# facts


def test_facts_are_measured_and_travel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    facts = measure(CARD.preprocessing, 0.02)
    assert facts.decodes_per_second > 1
    assert (facts.executable, facts.visible) == (sys.executable, "1")
    assert facts.versions["pillow"]
    assert set(facts.versions) <= {*PACKAGES, "nsfw-spark"}
    assert min(facts.cpus, facts.memory_bytes, facts.scratch_bytes) > 0
    assert Facts.from_json(facts.as_json()) == facts


def test_the_limits_of_a_container_count(tmp_path: Path) -> None:
    all_cpus, memory = num_cpus(tmp_path), memory_limit(tmp_path)
    (tmp_path / "cpu.max").write_text("100000 100000\n")
    (tmp_path / "memory.max").write_text("1000000\n")
    assert (num_cpus(tmp_path), memory_limit(tmp_path)) == (1, 1_000_000)
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert (num_cpus(tmp_path), memory_limit(tmp_path)) == (all_cpus, memory)


# the estimate and the text


def test_the_estimate_is_of_the_slower_of_decoding_and_model() -> None:
    cost = CARD.seconds_per_image
    by_gpu = Estimate.of(CARD, 3_600_000, 200.0, 16, 1)
    assert (by_gpu.images_per_second, by_gpu.bound) == (1 / cost.cuda, "the model")
    assert by_gpu.hours == pytest.approx(3_600_000 * cost.cuda / 3600)
    by_decoding = Estimate.of(CARD, 1000, 10.0, 16, 4)
    assert (by_decoding.images_per_second, by_decoding.bound) == (160, "decoding")
    by_cpu = Estimate.of(CARD, 1000, 100.0, 4, 0)
    assert by_cpu.images_per_second == pytest.approx(4 / (0.01 + cost.cpu))
    assert by_decoding.as_dict()["gpu_hours"] == round(4 * by_decoding.hours, 3)


def test_the_estimate_says_what_was_not_measured() -> None:
    text = "\n".join(estimate_lines(Estimate.of(CARD, 1_000_000, 200.0, 16, 2)))
    assert "Measured here: a core decodes 200 images/s" in text
    assert "not measured here" in text
    assert "1,000,000 images take about 0.1 hours, 0.3 GPU-hours on 2 GPUs: 2,000.0 images/s" in text


def test_a_problem_has_its_cure_on_the_line_below() -> None:
    found = check(cluster({"spark.speculation": "true"}))
    lines = list(lines_of(found))
    at = next(i for i, line in enumerate(lines) if "✗" in line)
    assert lines[at].split() == ["✗", "spark.speculation", "true;", "expected", "false"]
    assert lines[at + 1].startswith("      -> set spark.speculation=false. A task is slow because")
    assert verdict(found) == "1 problem found; the line below each one names the cure."
    assert lines[0] == "Settings"
    assert all(line.isascii() for line in lines_of(found, has_marks=False))
    assert not can_show_marks("ascii")
    assert can_show_marks("utf-8")
    assert verdict([]) == "No problem found."
