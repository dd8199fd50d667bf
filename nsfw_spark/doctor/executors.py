"""Judges what tasks on executors found: their Python, versions, weights, speed, disk and GPUs.

In: a `Cluster`. Out: findings. A pure function, as `settings`.
"""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

from nsfw_spark.doctor.cluster import EXECUTOR_GPU, TASK_GPU, Cluster
from nsfw_spark.doctor.facts import Facts
from nsfw_spark.doctor.finding import Finding
from nsfw_spark.doctor.machine import check_disk, check_gpu

EXECUTORS: Final = "Executors"
_SAME: Final = ("nsfw-spark", "pillow", "numpy", "cykooz-resizer", "pyspark")
"""Packages that decide pixels or messages, so that all machines need the same version."""


def check_executors(cluster: Cluster) -> Iterator[Finding]:
    """Yield what the tasks on executors found."""
    if cluster.problem:
        yield _not_asked(cluster)
        return
    if not cluster.executors:
        return
    executors = cluster.by_executor
    hosts = sorted({each.host for each in cluster.executors})
    shown = ", ".join(hosts[:5]) + (f" and {len(hosts) - 5} more" if len(hosts) > 5 else "")  # noqa: PLR2004
    num = len(executors)
    asked = f"{cluster.num_asked} tasks ran on {num} executor{'s' * (num > 1)}, on {shown}"
    yield Finding(EXECUTORS, "asked", "ok", asked)
    yield _same_versions(cluster)
    yield _same_weights(cluster)
    speeds = [each.decodes_per_second for each in cluster.executors]
    value = f"{min(speeds):,.0f} to {max(speeds):,.0f} images/s on one core, {len(speeds)} tasks at once"
    yield Finding(EXECUTORS, "decoding", "ok", value)
    worst = min(executors.values(), key=lambda each: each.scratch_bytes)
    yield check_disk(EXECUTORS, "disk of Spark", worst.scratch, worst.scratch_bytes)
    yield _gpus(cluster, list(executors.values()))


def _not_asked(cluster: Cluster) -> Finding:
    module = re.search(r"No module named '(\w+)", cluster.problem)
    right = f"PYSPARK_PYTHON={shlex.quote(cluster.driver.executable)}"
    expected = f"the driver's Python {cluster.driver.python}, with nsfw-spark"
    if module:
        value = f"the executors' Python has no package {module[1]}"
    elif "PYTHON_VERSION_MISMATCH" in cluster.problem or "different minor version" in cluster.problem:
        value = "the executors run another version of Python than the driver"
    else:
        first = cluster.problem.strip().splitlines()[0] if cluster.problem.strip() else "no message"
        return Finding(
            EXECUTORS,
            "Python",
            "problem",
            f"a task failed: {first:.300}",
            "a task that runs",
            "A run needs Python tasks on executors",
            "read the executor's log; nsfw-spark and its extra spark must be installed on each machine",
        )
    why = "On a cluster, set spark.pyspark.python to that path, which must exist on each machine"
    return Finding(EXECUTORS, "Python", "problem", value, expected, why, right)


def _same_versions(cluster: Cluster) -> Finding:
    driver, others = cluster.driver, Counter[str]()
    for each in cluster.executors:
        for package in _SAME:
            here, there = driver.versions.get(package), each.versions.get(package)
            if here != there:
                others[f"{package} {there or 'not installed'} on {each.host} (driver: {here or 'none'})"] += 1
    if not others:
        return Finding(EXECUTORS, "versions", "ok", f"as the driver's: Python {driver.python}, packages too")
    wanted = [f"{name}=={driver.versions[name]}" for name in _SAME if name in driver.versions]
    why = "Two versions of the image library may decode an image differently, which changes its score"
    return Finding(
        *(EXECUTORS, "versions", "problem", "; ".join(others), "the driver's versions", why),
        f"on each machine: pip install {' '.join(wanted)}",
    )


def _same_weights(cluster: Cluster) -> Finding:
    driver, name = cluster.driver.weights, "weights"
    wrong = {each.weights: each.host for each in cluster.executors if each.weights != driver}
    if not driver or not wrong:
        asked = "the driver's" if driver else "not asked: the driver has none"
        return Finding(EXECUTORS, name, "ok", asked)
    found = "; ".join(f"{host}: {weights or 'not asked'}" for weights, host in wrong.items())
    why = "A task whose weights have another fingerprint than the driver's fails"
    cure = "give all machines the same --model-dir, or pass --ship-weights to the run"
    return Finding(EXECUTORS, name, "problem", found, f"fingerprint {driver}", why, cure)


def _gpus(cluster: Cluster, executors: Sequence[Facts]) -> Finding:
    for each in executors:
        finding = check_gpu(EXECUTORS, each)
        if finding.level == "problem":
            return finding
    addresses = sorted({f"{each.host}:{address}" for each in cluster.executors for address in each.assigned})
    if addresses:
        return Finding(EXECUTORS, "GPU", "ok", f"Spark gave tasks the GPUs {', '.join(addresses)}")
    if cluster.gpus:
        why = f"{EXECUTOR_GPU} is {cluster.gpus}, but a task got none: Spark gives GPUs by {TASK_GPU}"
        cure = f"{TASK_GPU}={cluster.gpu_share}"
        return Finding(EXECUTORS, "GPU", "note", "no task has a GPU", "a GPU", why, cure)
    if any(each.gpus for each in executors) and not cluster.is_local:
        why = "Without GPUs of Spark's own, tasks share them out by partition, whatever their number"
        cure = f"{EXECUTOR_GPU}=1, with the discovery script in conf/"
        return Finding(EXECUTORS, "GPU", "note", "there are GPUs, and Spark does not know", "", why, cure)
    return check_gpu(EXECUTORS, executors[0])
