"""Judges Spark's settings: each that matters, its value, the right one, and why.

In: a `Cluster`, that is settings and facts as values. Out: findings. A pure function: no Spark, no files.
Each reason follows from the code or from conf/; where a number is a rule of thumb, the finding says so.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from nsfw_spark.doctor.cluster import (
    ARROW,
    CATALOG,
    CORES,
    DELTA,
    DYNAMIC,
    EXTENSIONS,
    FAILURES,
    LISTING,
    MASTER,
    OPEN_COST,
    OVERHEAD,
    PYSPARK_MEMORY,
    RATIO,
    REUSE,
    SPECULATION,
    TASK_GPU,
    Cluster,
)
from nsfw_spark.doctor.finding import Finding, Level
from nsfw_spark.doctor.machine import model_memory_mb

SETTINGS: Final = "Settings"
_PER_TASK_MB: Final = 300  # of a Python worker: conf/*.conf
_JVM_MB: Final = 1000
_GPU_HOST_MB: Final = 2500  # the model host with torch and CUDA
_MOST_ROWS: Final = 1024
_MOST_OPEN_COST: Final = 1 << 20
_SIZE: Final = re.compile(r"(\d+)\s*([kmgt]?)b?", re.IGNORECASE)
_JAR: Final = re.compile(r"delta-spark(?:_(\d+\.\d+))?_2\.\d+-(\d[\w.]*)\.jar$")


def check_settings(cluster: Cluster) -> Iterator[Finding]:
    """Yield a finding for each setting that matters here."""
    for check in _CHECKS:
        if (finding := check(cluster)) is not None:
            yield finding


def _judge(  # noqa: PLR0913 - the parts of a finding
    name: str,
    found: str | None,
    expected: str,
    why: str,
    *,
    is_wrong: bool,
    cure: str = "",
    label: str = "",
) -> Finding:
    """Return a finding of group Settings; the cure defaults to `name=expected`, the label to the name."""
    value = "not set" if found is None else found
    level: Level = "problem" if is_wrong else "ok"
    cure = (cure or f"{name}={expected}") * is_wrong
    return Finding(SETTINGS, label or name, level, value, expected, why, cure)


def _gpu_share(cluster: Cluster) -> Finding | None:
    gpus, cores = cluster.gpus, cluster.cores
    if not gpus or not cores:
        return None
    right, amount = cluster.gpu_share, cluster.settings.get(TASK_GPU)
    why = f"{cores} tasks share {gpus} GPU{'s' * (gpus > 1)} of an executor: they decode for it"
    if amount is None:
        why += ". Without a share Spark gives tasks no GPU, and does not count how many share one"
        return _judge(TASK_GPU, None, right, why, is_wrong=True)
    share = float(amount)
    tasks = gpus * math.floor(1 / share + 1e-9) if 0 < share <= 1 else gpus // max(1, round(share))
    if tasks < cores:
        why += f". With this value only {tasks} of {cores} run at once, and the other cores are idle"
        return _judge(TASK_GPU, amount, right, why, is_wrong=True)
    return _judge(TASK_GPU, amount, right, why, is_wrong=False)


def _pyspark_memory(cluster: Cluster) -> Finding:
    why = "It limits address space. CUDA reserves far more than it uses, so no model loads; a run refuses it"
    found = cluster.settings.get(PYSPARK_MEMORY)
    cure = f"unset {PYSPARK_MEMORY}"
    return _judge(PYSPARK_MEMORY, found, "not set", why, is_wrong=bool(found), cure=cure)


def needed_overhead_mb(cluster: Cluster, cores: int) -> int:
    """Return the memory outside of the heap that an executor needs, in MB."""
    weights = 4e-6 * (cluster.card.size.parameters or 0)
    host = cluster.gpus * (_GPU_HOST_MB + weights) if cluster.gpus else model_memory_mb(cluster.card)
    return math.ceil(_JVM_MB + _PER_TASK_MB * cores + host)


def _overhead(cluster: Cluster) -> Finding | None:
    cores = cluster.cores
    if cores is None or not cluster.master.startswith(("yarn", "k8s:")):
        return None  # nobody else reserves it
    heap = _mebibytes(cluster.settings.get("spark.executor.memory", "1g"))
    is_pod = cluster.master.startswith("k8s:")
    factor = float(cluster.settings.get("spark.executor.memoryOverheadFactor", "0.4" if is_pod else "0.1"))
    found = cluster.settings.get(OVERHEAD)
    given = _mebibytes(found) if found else max(384, heap * factor)
    needed = needed_overhead_mb(cluster, cores)
    why = (
        f"Python uses it: {_PER_TASK_MB} MB for each of {cores} tasks, 1 GB for the JVM, the rest for the "
        f"model {cluster.card.name}. A container that needs more is killed. A rule of thumb: measure yours"
    )
    value = found or f"not set ({given:.0f} MB)"
    right = f"{math.ceil(needed / 1024)}g"
    return _judge(OVERHEAD, value, right, why, is_wrong=given * 1.048576 < needed)


def _mebibytes(text: str) -> float:
    """Return a size of Spark in MiB, its unit where none is named."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        return 0
    return int(match[1]) * {"k": 1 / 1024, "": 1, "m": 1, "g": 1024, "t": 1 << 20}[match[2].lower()]


def _reuse(cluster: Cluster) -> Finding:
    why = "Each task would start a Python process and load its libraries; that costs as much as 100 images"
    found = cluster.settings.get(REUSE)
    return _judge(REUSE, found, "true", why, is_wrong=not cluster.is_true(REUSE, "true"))


def _arrow(cluster: Cluster) -> Finding:
    found = cluster.settings.get(ARROW)
    rows = int(found or 10_000)
    why = (
        f"Rows that Spark passes to Python at once, with their images: Spark's 10,000 are about a gigabyte "
        f"for each task. The limit of this check, {_MOST_ROWS:,}, is a rule of thumb"
    )
    return _judge(ARROW, found, "128", why, is_wrong=not 0 < rows <= _MOST_ROWS)


def _failures(cluster: Cluster) -> Finding:
    why = (
        "An image that ends the decoder ends its task. Spark's second try isolates it; without one, each "
        "image is decoded in a child process from the start, and one dead process ends the job"
    )
    if cluster.is_local:
        threads, _, tries = cluster.master.removeprefix("local[").removesuffix("]").partition(",")
        expected = f"local[{'1' if cluster.master == 'local' else threads},4]"
        return _judge(
            MASTER, cluster.master, expected, why, is_wrong=int(tries or 1) == 1, label="tries of a task"
        )
    found = cluster.settings.get(FAILURES)
    return _judge(FAILURES, found, "4", why, is_wrong=int(found or 4) == 1)


def _dynamic(cluster: Cluster) -> Finding:
    why = (
        "Each new executor loads its model again, and the job sizes its work by the cores that it sees at "
        "the start"
    )
    found = cluster.settings.get(DYNAMIC)
    return _judge(DYNAMIC, found, "false", why, is_wrong=cluster.is_true(DYNAMIC))


def _speculation(cluster: Cluster) -> Finding:
    why = "A task is slow because of its images, and a copy would score all of them again"
    found = cluster.settings.get(SPECULATION)
    return _judge(SPECULATION, found, "false", why, is_wrong=cluster.is_true(SPECULATION))


def _listing(cluster: Cluster) -> Finding | None:
    if cluster.slots is None:
        return None
    found, right = cluster.settings.get(LISTING), 3 * cluster.slots
    why = (
        "Tasks that list files. Spark's default of 10,000 starts a task for each file: 3,000 files took "
        "26 s. Ten times the right number is still accepted, a rule of thumb"
    )
    return _judge(LISTING, found, str(right), why, is_wrong=int(found or 10_000) > 10 * right)


def _open_cost(cluster: Cluster) -> Finding:
    found = cluster.settings.get(OPEN_COST)
    why = (
        "Spark counts each file as so many bytes more. Its default of 4 MB puts 32 small images into a "
        "task, and starting a Python task costs as much as 100 images"
    )
    size = _mebibytes(found if re.search(r"\D", found) else f"{int(found) // 1024}k") if found else 4
    return _judge(OPEN_COST, found, "65536", why, is_wrong=size * (1 << 20) > _MOST_OPEN_COST)


def _extensions(cluster: Cluster) -> Finding:
    found, right = cluster.settings.get(EXTENSIONS, ""), DELTA[EXTENSIONS]
    others = [each.strip() for each in found.split(",") if each.strip()]
    why = "Spark cannot change Delta tables without it"
    value = ",".join([*others, right])
    is_wrong = right not in others
    return _judge(EXTENSIONS, found or None, right, why, is_wrong=is_wrong, cure=f"{EXTENSIONS}={value}")


def _catalog(cluster: Cluster) -> Finding | None:
    found, right = cluster.settings.get(CATALOG), DELTA[CATALOG]
    if found and "delta" not in found.lower() and not found.startswith("org.apache.spark"):
        return Finding(SETTINGS, CATALOG, "note", found, right, "Another catalog than Delta's: not checked")
    why = "Spark creates Delta tables through this catalog"
    return _judge(CATALOG, found, right, why, is_wrong=not found or "delta" not in found.lower())


def _cores(cluster: Cluster) -> Finding | None:
    """Compare the tasks of each host with its cores."""
    if cluster.cores is None or not cluster.executors:
        return None
    executors = cluster.by_executor
    on_host = Counter(host for host, _ in executors)
    host, num = on_host.most_common(1)[0]
    cpus = min(each.cpus for each in executors.values() if each.host == host)
    tasks, right = num * cluster.cores, max(1, cpus // num)
    name = MASTER if cluster.is_local else CORES
    expected = f"local[{right},4]" if cluster.is_local else str(right)
    found = f"{cluster.master if cluster.is_local else cluster.cores}"
    why = (
        f"{tasks} tasks at once on {cpus} cores of {host}. Each task decodes on a core; a quarter more "
        "tasks than cores is accepted, a rule of thumb"
    )
    if cluster.is_local:
        why += ". `nsfw-spark run` takes all cores of a machine, so set it by spark-submit"
    if cluster.master.startswith("local-cluster["):
        nodes, _, memory = re.findall(r"\d+", cluster.master)
        name, found, expected = MASTER, cluster.master, f"local-cluster[{nodes},{right},{memory}]"
    return _judge(name, found, expected, why, is_wrong=tasks > 1.25 * cpus, label="cores of an executor")


def _registered(cluster: Cluster) -> Finding | None:
    """Find a session that began before its executors were there."""
    if cluster.is_local or cluster.slots is None or cluster.cores is None:
        return None
    total = cluster.settings.get("spark.cores.max")
    instances = cluster.settings.get("spark.executor.instances")
    wanted = int(total) if total else int(instances) * cluster.cores if instances else None
    found = cluster.settings.get(RATIO)
    why = "The job sizes its work by the cores that it sees at the start, so it must wait for all executors"
    if wanted is not None and cluster.slots < wanted:
        value = f"{cluster.slots} of {wanted} cores are there ({RATIO} is {found or 'not set'})"
        return Finding(SETTINGS, RATIO, "problem", value, f"{wanted} cores, and 1.0", why, f"{RATIO}=1.0")
    level: Level = "ok" if found and float(found) >= 1 else "note"
    return Finding(SETTINGS, RATIO, level, found or "not set", "1.0", why, f"{RATIO}=1.0" * (level == "note"))


def _delta_jar(cluster: Cluster) -> Finding | None:
    if cluster.delta_jar == "":
        return None
    name, package = "Delta Lake's jar", cluster.delta_package
    cure = f"spark.jars.packages={package}"
    if cluster.delta_jar is None:
        why = "The tables are Delta tables"
        return Finding(SETTINGS, name, "problem", "no jar has Delta Lake", package, why, cure)
    match = _JAR.search(cluster.delta_jar)
    spark = ".".join(cluster.spark.split(".")[:2])
    if match and match[1] and match[1] != spark:
        why = f"This jar is made for Spark {match[1]}, and Spark {cluster.spark} runs here"
        return Finding(SETTINGS, name, "problem", cluster.delta_jar, package, why, cure)
    python = cluster.driver.versions.get("delta-spark")
    tried = package.rpartition(":")[2]
    if match and tried and match[2] != tried:
        why = "Only this version was tried with this Spark"
        return Finding(SETTINGS, name, "note", cluster.delta_jar, package, why, cure)
    beside = f"; Python package delta-spark {python}" if python else ""
    return Finding(SETTINGS, name, "ok", f"{cluster.delta_jar}{beside}")


_CHECKS: Final[Sequence[Callable[[Cluster], Finding | None]]] = (
    *(_delta_jar, _extensions, _catalog, _gpu_share, _cores, _overhead, _pyspark_memory, _reuse, _arrow),
    *(_failures, _speculation, _dynamic, _registered, _listing, _open_cost),
)
