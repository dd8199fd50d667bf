"""Judges Spark's settings: each that matters, its value, the right one, and why.

In: a `Cluster`, that is settings and facts as values. Out: findings. A pure function: no Spark, no files.
Each reason follows from the code or from conf/; where a number is a rule of thumb, the finding says so.
"""

from __future__ import annotations

import math
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from nsfw_spark.doctor.facts import Facts
from nsfw_spark.doctor.finding import Finding, Level
from nsfw_spark.doctor.machine import check_disk, check_gpu, model_memory_mb
from nsfw_spark.model_card import ModelCard

SETTINGS: Final = "Settings"
EXECUTORS: Final = "Executors"
TASK_GPU: Final = "spark.task.resource.gpu.amount"
EXECUTOR_GPU: Final = "spark.executor.resource.gpu.amount"
CORES: Final = "spark.executor.cores"
OVERHEAD: Final = "spark.executor.memoryOverhead"
PYSPARK_MEMORY: Final = "spark.executor.pyspark.memory"
REUSE: Final = "spark.python.worker.reuse"
ARROW: Final = "spark.sql.execution.arrow.maxRecordsPerBatch"
FAILURES: Final = "spark.task.maxFailures"
DYNAMIC: Final = "spark.dynamicAllocation.enabled"
SPECULATION: Final = "spark.speculation"
LISTING: Final = "spark.sql.sources.parallelPartitionDiscovery.parallelism"
OPEN_COST: Final = "spark.sql.files.openCostInBytes"
EXTENSIONS: Final = "spark.sql.extensions"
CATALOG: Final = "spark.sql.catalog.spark_catalog"
RATIO: Final = "spark.scheduler.minRegisteredResourcesRatio"
MASTER: Final = "spark.master"
DELTA: Final = {
    EXTENSIONS: "io.delta.sql.DeltaSparkSessionExtension",
    CATALOG: "org.apache.spark.sql.delta.catalog.DeltaCatalog",
}
NAMES: Final = (
    *(TASK_GPU, EXECUTOR_GPU, CORES, OVERHEAD, PYSPARK_MEMORY, REUSE, ARROW, FAILURES, DYNAMIC, SPECULATION),
    *(LISTING, OPEN_COST, EXTENSIONS, CATALOG, RATIO, MASTER, "spark.executor.memory"),
    *("spark.executor.memoryOverheadFactor", "spark.executor.instances", "spark.cores.max"),
)
"""The settings that are judged, for their collector."""

_PER_TASK_MB: Final = 300  # of a Python worker: conf/*.conf
_JVM_MB: Final = 1000
_GPU_HOST_MB: Final = 2500  # the model host with torch and CUDA
_MOST_ROWS: Final = 1024
_MOST_OPEN_COST: Final = 1 << 20
_SIZE: Final = re.compile(r"(\d+)\s*([kmgt]?)b?", re.IGNORECASE)
_JAR: Final = re.compile(r"delta-spark(?:_(\d+\.\d+))?_2\.\d+-(\d[\w.]*)\.jar$")
_SAME: Final = ("nsfw-spark", "pillow", "numpy", "cykooz-resizer", "pyspark")
"""Packages that decide pixels or messages, so that all machines need the same version."""


@dataclass(frozen=True)
class Cluster:
    """What is known of a session and its executors."""

    settings: Mapping[str, str]
    """Those that are set, by the user or by the job; a missing one has Spark's default."""
    card: ModelCard
    driver: Facts
    executors: Sequence[Facts] = ()
    """Of the tasks that were asked, one or more an executor."""
    slots: int | None = None
    """Tasks at once; None on Spark Connect, which hides it."""
    spark: str = ""
    """Version of Spark."""
    delta_jar: str | None = None
    """Name of the jar with Delta Lake; None if there is none, empty if unknown."""
    delta_package: str = ""
    """Maven coordinate of the right one."""
    problem: str = ""
    """Why executors could not be asked; empty if they could."""
    num_asked: int = field(default=0)
    """Tasks that asked executors."""

    @property
    def master(self) -> str:
        """Spark's master; empty if unknown."""
        return self.settings.get(MASTER, "")

    @property
    def is_local(self) -> bool:
        """Whether driver and executor are one process."""
        return self.master == "local" or self.master.startswith("local[")

    @property
    def cores(self) -> int | None:
        """Tasks of one executor at once; None if unknown."""
        if self.is_local:
            return self.slots
        if CORES in self.settings:
            return int(self.settings[CORES])
        match = re.match(r"local-cluster\[\s*\d+\s*,\s*(\d+)", self.master)
        return int(match[1]) if match else None

    @property
    def gpus(self) -> int:
        """GPUs of one executor, by the settings."""
        return int(float(self.settings.get(EXECUTOR_GPU, "0") or 0))

    @property
    def num_gpus(self) -> int:
        """GPUs of all executors; in local mode those of this machine."""
        if self.is_local or not self.gpus:
            facts = {each.host: each.num_visible_gpus for each in (self.executors or [self.driver])}
            return sum(facts.values())
        cores = self.cores or 1
        return max(1, (self.slots or cores) // cores) * self.gpus

    def is_true(self, name: str, default: str = "false") -> bool:
        """Whether a switch is on."""
        return self.settings.get(name, default).strip().lower() == "true"


def check_settings(cluster: Cluster) -> Iterator[Finding]:
    """Yield a finding for each setting that matters here, then those about executors."""
    for check in _CHECKS:
        if (finding := check(cluster)) is not None:
            yield finding
    yield from check_executors(cluster)


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
    right = f"{math.floor(gpus * 10_000 / cores) / 10_000:g}" if cores > gpus else "1"
    amount = cluster.settings.get(TASK_GPU)
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
    executors = {(each.host, each.executor): each for each in cluster.executors}
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


def check_executors(cluster: Cluster) -> Iterator[Finding]:
    """Yield what the tasks on executors found."""
    if cluster.problem:
        yield _not_asked(cluster)
        return
    if not cluster.executors:
        return
    executors = {(each.host, each.executor): each for each in cluster.executors}
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
        cure = f"{TASK_GPU}={math.floor(cluster.gpus * 10_000 / (cluster.cores or 1)) / 10_000:g}"
        return Finding(EXECUTORS, "GPU", "note", "no task has a GPU", "a GPU", why, cure)
    if any(each.gpus for each in executors) and not cluster.is_local:
        why = "Without GPUs of Spark's own, tasks share them out by partition, whatever their number"
        cure = f"{EXECUTOR_GPU}=1, with the discovery script in conf/"
        return Finding(EXECUTORS, "GPU", "note", "there are GPUs, and Spark does not know", "", why, cure)
    return check_gpu(EXECUTORS, executors[0])
