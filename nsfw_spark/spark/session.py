"""The SparkSession: the running one, the one of spark-submit, or a local one for a laptop.

Settings of spark-submit, a cluster or a notebook stay; only unset ones get a value here.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib import resources
from typing import Any, Final

from pyspark.errors import PySparkRuntimeError
from pyspark.sql import SparkSession

from nsfw_spark.early import VERBOSE, announce_once, reads_local_files
from nsfw_spark.errors import ConfigError
from nsfw_spark.java import check_java
from nsfw_spark.spark.hadoop import has_file_system
from nsfw_spark.spark.jars import (
    PACKAGES,
    conf_directory,
    defaults,
    delta_package,
    jar_settings,
    no_connector,
    not_downloaded,
    record_jars,
)
from nsfw_spark.spark.launch import quiet_start

_DELTA: Final = {
    "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
    "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
}
_JAVA_OPTIONS: Final = "spark.driver.extraJavaOptions"
_TASKS_PER_CORE: Final = 3  # in a micro-batch: they even out slow images, and start fast


def get_session(*locations: str | None) -> SparkSession:
    """Return the running session; under spark-submit, its session; else a local one with Delta Lake.

    Args:
        locations: URIs that Spark will read or write; a local session brings the jars for `s3a://`.

    Raises:
        ConfigError: There is no Java for a local session, no Delta Lake, no connector for a location, or a
            memory limit under which no model loads.
    """
    session = open_session(*locations)
    check_memory(session)
    _check_connectors(session, locations)
    return session


def open_session(*locations: str | None) -> SparkSession:
    """Return the session of `get_session` without its checks, for `nsfw-spark doctor`.

    Raises:
        ConfigError: There is no Java for a local session, or no Delta Lake.
    """
    session = running_session()
    if session is None:
        is_submitted = "PYSPARK_GATEWAY_PORT" in os.environ
        session = _submitted_session() if is_submitted else _local_session(locations)
    _tune(session)
    return session


def starts_local_session() -> bool:
    """Whether `get_session` would start a local Spark, whose file system is that of this machine."""
    return running_session() is None and reads_local_files()


def running_session() -> SparkSession | None:
    """Return the session that runs in this process, whichever thread started it."""
    try:
        return SparkSession.active()
    except PySparkRuntimeError:
        return None


def _submitted_session() -> SparkSession:
    from pyspark import SparkConf, SparkContext

    SparkContext._ensure_initialized()  # noqa: SLF001 - before it, a SparkConf is empty
    submitted = SparkConf()
    builder = SparkSession.builder
    has_log = _has_own_log(submitted.get(_JAVA_OPTIONS, ""))
    quiet = {} if has_log else {"spark.log.level": "WARN"}  # INFO hides the result in 9,000 lines
    for key, value in {**_DELTA, **quiet}.items():
        if not submitted.contains(key):
            builder = builder.config(key, value)
    try:
        session = builder.getOrCreate()
        session.sql("SELECT 1").collect()
    except Exception as error:
        if "io.delta" in str(error) or "sql.delta" in str(error):
            advice = f"Add it: spark-submit --packages {delta_package()} …, or see conf/"
            raise ConfigError(f"Delta Lake is not on the cluster. {advice}") from error
        raise
    return session


def _local_session(locations: Sequence[str | None]) -> SparkSession:
    check_java()
    announce_once()
    # Else Spark runs the first `python3` in PATH, not this environment's.
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    builder, jars = SparkSession.builder.appName("nsfw-spark"), jar_settings(locations)
    for key, value in {**_DELTA, **_local_settings(), **jars}.items():
        builder = builder.config(key, value)
    try:
        with _quiet(jars):
            session = builder.getOrCreate()
    except PySparkRuntimeError as error:
        if "JAVA_GATEWAY_EXITED" not in str(error) or PACKAGES not in jars:
            raise
        raise not_downloaded(jars[PACKAGES]) from error
    if PACKAGES in jars and PACKAGES not in defaults():
        # The session's own `spark.jars` lacks what the package manager found, if this package has set some.
        java: Any = session._jvm  # noqa: SLF001
        record_jars(jars[PACKAGES], java.System.getProperty("spark.jars") or "")
    return session


def _quiet(jars: Mapping[str, str]) -> AbstractContextManager[None]:
    """Return the context of a start: quiet, unless its user wants to see Spark's log."""
    if os.environ.get(VERBOSE) or _has_own_log(defaults().get(_JAVA_OPTIONS, "")):
        return nullcontext()
    asked = jars.get(PACKAGES, "")
    names = {"delta-spark": "Delta Lake", "hadoop-aws": "S3's connector", "hadoop-azure": "Azure's connector"}
    downloads = [name for artefact, name in names.items() if f":{artefact}" in asked]
    return quiet_start(" and ".join(downloads) or None)


def _has_own_log(options: str) -> bool:
    """Whether Spark's user has configured its log: in Java's options, or in a file of Spark's conf/."""
    variables = ("JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS", "SPARK_SUBMIT_OPTS", "PYSPARK_SUBMIT_ARGS")
    is_option = any("log4j" in each for each in (options, *(os.environ.get(name, "") for name in variables)))
    return is_option or any(file.suffix != ".template" for file in conf_directory().glob("log4j2*"))


def _local_settings() -> dict[str, str]:
    cores = os.cpu_count() or 1
    log = resources.files("nsfw_spark.spark") / "log4j2.properties"
    options = defaults().get(_JAVA_OPTIONS, "")
    if not _has_own_log(options):
        options += f" -Dlog4j2.configurationFile=file:{log}"
    return {
        # 4: as on a cluster, Spark retries a failed task; else one dead process ends the job.
        "spark.master": f"local[{cores},4]",
        "spark.driver.memory": "2g",
        **({_JAVA_OPTIONS: options.strip()} if options else {}),
        "spark.ui.enabled": "false",  # `progress` shows progress; the pages' data grow with each micro-batch
        "spark.ui.showConsoleProgress": "false",
        # Small tables need no 50 tasks to read Delta's log, nor 200 to count.
        "spark.databricks.delta.snapshotPartitions": "2",
        "spark.sql.shuffle.partitions": str(cores),
        # With a task for each file, listing a directory of 2,000 files takes 8 s.
        "spark.sql.sources.parallelPartitionDiscovery.parallelism": str(cores),
    }


def _tune(session: SparkSession) -> None:
    """Set the unset settings that decide this job's speed."""
    settings = {
        # Spark counts each file as 4 MB more, and so puts 32 small images into a task; starting a Python
        # task costs as much as 100 images.
        "spark.sql.files.openCostInBytes": "65536",
        "spark.sql.execution.arrow.maxRecordsPerBatch": "128",  # of 10,000: a gigabyte of images
    }
    if (slots := num_slots(session)) is not None:
        tasks = str(_TASKS_PER_CORE * slots)
        settings["spark.sql.files.minPartitionNum"] = tasks
        settings["spark.sql.shuffle.partitions"] = tasks  # of 200
        # Spark lists up to 10,000 files with a task each: 3,000 files took 26 s.
        settings["spark.sql.sources.parallelPartitionDiscovery.parallelism"] = tasks
        settings["spark.databricks.delta.snapshotPartitions"] = str(min(50, slots))  # 50 for a small log
    for key, value in settings.items():
        if session.conf.get(key, None) is None:
            session.conf.set(key, value)


def num_slots(session: SparkSession) -> int | None:
    """Return how many tasks run at once; None on Spark Connect, which hides it."""
    if not hasattr(session, "_jsc"):
        return None
    return int(session.sparkContext.defaultParallelism)


def executor_cores(session: SparkSession) -> int | None:
    """Return how many tasks one executor runs at once; None if unknown."""
    if cores := session.conf.get("spark.executor.cores", None):
        return int(cores)
    master = session.conf.get("spark.master", None) or ""
    return num_slots(session) if master.startswith("local[") else None


def tries_once(session: SparkSession) -> bool:
    """Whether the first failure of a task ends its job; False if unknown."""
    master = session.conf.get("spark.master", None) or ""
    if master == "local" or master.startswith("local["):
        _, _, max_failures = master.removeprefix("local[").removesuffix("]").partition(",")
        return int(max_failures or 1) == 1
    return session.conf.get("spark.task.maxFailures", None) == "1"


def check_memory(session: SparkSession) -> None:
    """Raise ConfigError for a limit under which no model can be loaded."""
    if limit := session.conf.get("spark.executor.pyspark.memory", None):
        raise ConfigError(
            f"spark.executor.pyspark.memory is {limit}; expected it unset. It limits the address space of "
            "Python processes; CUDA reserves far more of it than it uses, so no model loads. Make room in "
            "spark.executor.memoryOverhead instead"
        )


def _check_connectors(session: SparkSession, locations: Sequence[str | None]) -> None:
    """Raise ConfigError for a location of which Spark has no file system, with the jars that it needs."""
    for location in filter(None, locations if hasattr(session, "_jsc") else ()):
        scheme, separator, _ = location.partition(":/")
        if separator and not has_file_system(session, scheme):
            raise no_connector(scheme, location)
