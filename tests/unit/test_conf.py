"""The files in conf/: what the discovery script says of pretended GPUs, and what the property files set."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Final

import pytest

CONF: Final = Path(__file__).parents[2] / "conf"
SCRIPT: Final = CONF / "discover_gpus.sh"
FILES: Final = sorted(path.name for path in CONF.glob("*.conf"))
GPU_FILES: Final = ["kubernetes-gpu.conf", "standalone-gpu.conf", "yarn-gpu.conf"]

GPU_0, GPU_1 = "GPU-5d5ba0d6-d33d-2b2c", "GPU-7e21a4f0-1c9b-4d3e"
MIG_0, MIG_1 = "MIG-c6d4f1ef-42e4-5de3", "MIG-cba663e8-9bed-5b25"
TWO: Final = f"0, {GPU_0}, Disabled\n1, {GPU_1}, [N/A]\n"
SPLIT: Final = f"0, {GPU_0}, Disabled\n1, {GPU_1}, Enabled\n"
SPLIT_LISTED: Final = f"""\
GPU 0: NVIDIA A100-SXM4-40GB (UUID: {GPU_0})
GPU 1: NVIDIA A100-SXM4-40GB (UUID: {GPU_1})
  MIG 3g.20gb     Device  0: (UUID: {MIG_0})
  MIG 1g.5gb      Device  1: (UUID: {MIG_1})
"""


def put_nvidia_smi(folder: Path, queried: str, *, listed: str = "", status: int = 0) -> None:
    """Write an `nvidia-smi` that answers the query for GPUs and `-L`, and ends with the status."""
    (folder / "queried").write_text(queried, encoding="utf-8")
    (folder / "listed").write_text(listed, encoding="utf-8")
    program = folder / "nvidia-smi"
    program.write_text(
        "#!/bin/sh\n"
        'case "$1" in\n'
        f'--query-gpu=index,uuid,mig.mode.current) cat "{folder}/queried" ;;\n'
        f'-L) cat "{folder}/listed" ;;\n'
        f"esac\nexit {status}\n",
        encoding="utf-8",
    )
    program.chmod(0o755)


def discover(folder: Path, visible: str | None = None, *, path: str | None = None) -> tuple[int, str, str]:
    """Run the script with the folder first in PATH; return its exit status and what it wrote."""
    environment = {**os.environ, "PATH": path or f"{folder}{os.pathsep}{os.environ['PATH']}"}
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    if visible is not None:
        environment["CUDA_VISIBLE_DEVICES"] = visible
    done = subprocess.run([SCRIPT], capture_output=True, text=True, check=False, env=environment)
    return done.returncode, done.stdout, done.stderr


def addresses(folder: Path, visible: str | None = None) -> list[str]:
    status, said, message = discover(folder, visible)
    assert (status, message) == (0, "")
    assert said.count("\n") == 1
    found = json.loads(said)
    assert set(found) == {"name", "addresses"}
    assert found["name"] == "gpu"
    listed: list[str] = found["addresses"]
    return listed


def complaint(folder: Path, visible: str | None = None) -> str:
    status, said, message = discover(folder, visible)
    assert (status, said) == (1, "")
    assert message.startswith("discover_gpus.sh: ")
    return message


def test_gpus_are_their_indices(tmp_path: Path) -> None:
    put_nvidia_smi(tmp_path, TWO)
    assert discover(tmp_path) == (0, '{"name": "gpu", "addresses": ["0", "1"]}\n', "")


def test_where_a_gpu_is_split_mig_devices_and_other_gpus_are_their_uuids(tmp_path: Path) -> None:
    put_nvidia_smi(tmp_path, SPLIT, listed=SPLIT_LISTED)
    assert addresses(tmp_path) == [MIG_0, MIG_1, GPU_0]


def test_a_gpu_in_mig_mode_without_mig_devices_is_left_out(tmp_path: Path) -> None:
    put_nvidia_smi(tmp_path, SPLIT, listed=f"GPU 0: A (UUID: {GPU_0})\nGPU 1: A (UUID: {GPU_1})\n")
    assert addresses(tmp_path) == [GPU_0]
    put_nvidia_smi(tmp_path, f"0, {GPU_0}, Enabled\n", listed=f"GPU 0: A (UUID: {GPU_0})\n")
    assert "lists no GPU that CUDA can use" in complaint(tmp_path)


@pytest.mark.parametrize("status", [0, 6])
def test_no_gpu_is_a_failure(tmp_path: Path, status: int) -> None:
    put_nvidia_smi(tmp_path, "No devices were found\n", status=status)
    assert "No devices were found" in complaint(tmp_path)


def test_nvidia_smi_that_is_missing_is_named(tmp_path: Path) -> None:
    status, said, message = discover(tmp_path, path=str(tmp_path))
    assert (status, said) == (1, "")
    assert "nvidia-smi is not in PATH" in message


def test_what_a_failing_nvidia_smi_says_is_passed_on(tmp_path: Path) -> None:
    put_nvidia_smi(tmp_path, "NVIDIA-SMI has failed because of the driver\n", status=9)
    assert "nvidia-smi failed: NVIDIA-SMI has failed because of the driver" in complaint(tmp_path)


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        ("1", ["1"]),
        ("1,0", ["1", "0"]),
        (" 0 , 1,", ["0", "1"]),
        (f"{GPU_1},{GPU_0}", [GPU_1, GPU_0]),
        ("GPU-7e2", ["GPU-7e2"]),
    ],
)
def test_visible_devices_are_given_as_they_are_listed(
    tmp_path: Path, visible: str, expected: list[str]
) -> None:
    put_nvidia_smi(tmp_path, TWO)
    assert addresses(tmp_path, visible) == expected


@pytest.mark.parametrize("visible", ["1", "0,1", "1,0"])
def test_a_task_finds_each_index_at_its_place_among_the_visible_devices(tmp_path: Path, visible: str) -> None:
    pytest.importorskip("pyspark")
    from nsfw_spark.spark.worker import device_index

    put_nvidia_smi(tmp_path, TWO)
    found = addresses(tmp_path, visible)
    assert [device_index(address, visible) for address in found] == list(range(len(found)))


def test_visible_devices_may_be_mig_devices(tmp_path: Path) -> None:
    put_nvidia_smi(tmp_path, SPLIT, listed=SPLIT_LISTED)
    assert addresses(tmp_path, MIG_1) == [MIG_1]


@pytest.mark.parametrize("visible", ["2", "-1", "0,7", "GPU-9", "GPU-", "0 1", "*"])
def test_a_visible_device_that_is_not_there_is_named(tmp_path: Path, visible: str) -> None:
    put_nvidia_smi(tmp_path, TWO)
    message = complaint(tmp_path, visible)
    assert f"CUDA_VISIBLE_DEVICES is '{visible}', but" in message
    assert f"is none of: 0 1 {GPU_0} {GPU_1}" in message


def test_where_a_gpu_is_split_visible_devices_must_be_uuids(tmp_path: Path) -> None:
    put_nvidia_smi(tmp_path, SPLIT, listed=SPLIT_LISTED)
    assert f"'0' is none of: {MIG_0} {MIG_1} {GPU_0}" in complaint(tmp_path, "0")


@pytest.mark.parametrize("visible", ["", " ", ","])
def test_no_visible_device_is_a_failure(tmp_path: Path, visible: str) -> None:
    put_nvidia_smi(tmp_path, TWO)
    assert "names no GPU" in complaint(tmp_path, visible)


def settings(name: str) -> dict[str, str]:
    """Read lines of `key value`, as Java does, which takes all after the key as the value."""
    found: dict[str, str] = {}
    for line in (CONF / name).read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            key, value = line.split(maxsplit=1)
            assert key not in found
            found[key] = value
    return found


@pytest.mark.parametrize("name", FILES)
def test_a_line_is_a_setting_of_spark_without_a_comment_behind_it(name: str) -> None:
    for key, value in settings(name).items():
        assert key.startswith("spark.")
        assert not re.search(r"[=:\\]", key)
        assert re.fullmatch(r"[^\s#\\]+", value)


@pytest.mark.parametrize("name", FILES)
def test_the_first_line_is_the_command_with_that_file(name: str) -> None:
    first = (CONF / name).read_text(encoding="utf-8").splitlines()[0]
    assert f"spark-submit --properties-file conf/{name} " in first
    job = re.search(r"\S*?(jobs/\w+\.py)", first)
    assert job
    assert (CONF.parent / job[1]).is_file()


@pytest.mark.parametrize("name", FILES)
def test_jars_are_those_of_a_local_session(name: str) -> None:
    pytest.importorskip("pyspark")
    from nsfw_spark.spark import jars, session

    found = settings(name)
    needs_s3 = "s3a://" in (CONF / name).read_text(encoding="utf-8").splitlines()[0]
    packages = [jars.delta_package(), *(jars.connector("s3a") if needs_s3 else [])]
    assert found["spark.jars.packages"].split(",") == packages
    assert found["spark.jars.excludes"].split(",") == list(jars.EXCLUDES)
    assert {key: found[key] for key in session._DELTA} == session._DELTA


@pytest.mark.parametrize("name", FILES)
def test_the_memory_of_python_workers_is_not_limited(name: str) -> None:
    assert "spark.executor.pyspark.memory" not in settings(name)


@pytest.mark.parametrize("name", GPU_FILES)
def test_an_executors_tasks_share_all_its_gpus(name: str) -> None:
    found = settings(name)
    shared = float(found["spark.task.resource.gpu.amount"]) * int(found["spark.executor.cores"])
    assert shared == float(found["spark.executor.resource.gpu.amount"])


@pytest.mark.parametrize("name", ["kubernetes-gpu.conf", "yarn-gpu.conf"])
def test_beside_the_heap_there_is_room_for_python(name: str) -> None:
    """About 300 MB a task; for each GPU 2.5 GB of torch and CUDA, and 1.2 GB of weights."""
    found = settings(name)
    tasks, gpus = int(found["spark.executor.cores"]), int(found["spark.executor.resource.gpu.amount"])
    room = found["spark.executor.memoryOverhead"]
    assert int(room.removesuffix("g")) >= 0.3 * tasks + 3.7 * gpus


@pytest.mark.parametrize("name", GPU_FILES)
def test_slow_tasks_are_not_copied_and_executors_stay(name: str) -> None:
    found = settings(name)
    assert found["spark.speculation"] == "false"
    assert found["spark.dynamicAllocation.enabled"] == "false"


@pytest.mark.parametrize("name", GPU_FILES)
def test_the_discovery_script_is_the_one_beside_it(name: str) -> None:
    """In standalone mode it is a setting of Spark's workers, and stands in a comment."""
    text = (CONF / name).read_text(encoding="utf-8")
    named = re.findall(r"gpu\.discoveryScript[ =]+([\w./-]+)", text)
    assert [Path(path).name for path in named] == [SCRIPT.name]
    assert os.access(SCRIPT, os.X_OK)
