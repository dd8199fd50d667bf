"""What is known of a Spark session and its executors, as a value, and the names of the judged settings."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from nsfw_spark.doctor.facts import Facts
from nsfw_spark.model_card import ModelCard

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
    num_asked: int = 0
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

    @property
    def gpu_share(self) -> str:
        """The right share of a task: GPUs by cores, rounded down, so that all tasks run at once."""
        cores = self.cores or 1
        return f"{math.floor(self.gpus * 10_000 / cores) / 10_000:g}" if cores > self.gpus else "1"

    @property
    def by_executor(self) -> dict[tuple[str, str], Facts]:
        """The facts of one task of each executor."""
        return {(each.host, each.executor): each for each in self.executors}
