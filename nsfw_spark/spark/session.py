"""The SparkSession: the running one, the one of spark-submit, or a local one for a laptop.

Settings of spark-submit, a cluster or a notebook stay; only unset ones get a value here.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib import metadata, resources
from pathlib import Path
from typing import Final

from pyspark.sql import SparkSession

from nsfw_spark.errors import ConfigError

_DELTA: Final = {
    "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
    "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
}
_IN_SPARK: Final = (
    *("org.apache.hadoop:hadoop-client-api", "org.apache.hadoop:hadoop-client-runtime"),
    *("org.apache.logging.log4j:log4j-api", "org.apache.logging.log4j:log4j-core"),
    *("org.apache.logging.log4j:log4j-slf4j2-impl", "org.slf4j:slf4j-api"),
    *("org.apache.parquet:parquet-hadoop", "org.roaringbitmap:RoaringBitmap"),
    *("com.fasterxml.jackson.core:jackson-databind", "com.fasterxml.jackson.datatype:jackson-datatype-jdk8"),
)
_MIN_JAVA: Final = 17
_TASKS_PER_CORE: Final = 3  # in a micro-batch: they even out slow images, and start fast


def get_session() -> SparkSession:
    """Return the running session; under spark-submit, its session; else a local one with Delta Lake.

    Raises:
        ConfigError: There is no Java for a local session, no Delta Lake on the cluster, or a memory limit
            under which no model loads.
    """
    session = SparkSession.getActiveSession()
    if session is None:
        is_submitted = "PYSPARK_GATEWAY_PORT" in os.environ
        session = _submitted_session() if is_submitted else _local_session()
    check_memory(session)
    _tune(session)
    return session


def starts_local_session() -> bool:
    """Whether `get_session` would start a local Spark, whose file system is that of this machine."""
    is_submitted = "PYSPARK_GATEWAY_PORT" in os.environ
    has_other_files = "HADOOP_CONF_DIR" in os.environ
    return SparkSession.getActiveSession() is None and not is_submitted and not has_other_files


def _submitted_session() -> SparkSession:
    from pyspark import SparkConf

    submitted = SparkConf()
    builder = SparkSession.builder
    for key, value in _DELTA.items():
        if not submitted.contains(key):
            builder = builder.config(key, value)
    try:
        session = builder.getOrCreate()
        session.sql("SELECT 1").collect()
    except Exception as error:
        if "io.delta" in str(error) or "sql.delta" in str(error):
            raise ConfigError(f"Delta Lake is not on the cluster. {_delta_hint()}") from error
        raise
    return session


def _local_session() -> SparkSession:
    from delta import configure_spark_with_delta_pip

    _check_java()
    sys.stderr.write("nsfw-spark: starting Spark…\n")
    # Else Spark runs the first `python3` in PATH, not this environment's.
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    builder = SparkSession.builder.appName("nsfw-spark")
    for key, value in {**_DELTA, **_local_settings()}.items():
        builder = builder.config(key, value)
    if jars := _downloaded_jars():
        builder = builder.config("spark.jars", ",".join(jars))
    else:
        builder = configure_spark_with_delta_pip(builder)
    return builder.getOrCreate()


def _local_settings() -> dict[str, str]:
    cores = os.cpu_count() or 1
    log = resources.files("nsfw_spark.spark") / "log4j2.properties"
    return {
        # 4: as on a cluster, Spark retries a failed task; else one dead process ends the job.
        "spark.master": f"local[{cores},4]",
        "spark.driver.memory": "2g",
        "spark.driver.extraJavaOptions": f"-Dlog4j2.configurationFile=file:{log}",
        "spark.ui.enabled": "false",  # `progress` shows progress; the pages' data grow with each micro-batch
        "spark.ui.showConsoleProgress": "false",
        # Delta depends on these, and Spark has them: 60 MB less to download.
        "spark.jars.excludes": ",".join(_IN_SPARK),
        # Small tables need no 50 tasks to read Delta's log, nor 200 to count.
        "spark.databricks.delta.snapshotPartitions": "2",
        "spark.sql.shuffle.partitions": str(cores),
        # With a task for each file, listing a directory of 2,000 files takes 8 s.
        "spark.sql.sources.parallelPartitionDiscovery.parallelism": str(cores),
    }


def _downloaded_jars() -> list[str]:
    """Return Delta's jars that Spark's package manager stored at an earlier start, if any.

    The package manager takes 3 s and prints 70 lines, even if it has the jars.
    """
    delta = metadata.version("delta-spark")
    spark = ".".join(metadata.version("pyspark").split(".")[:2])
    for main in Path.home().glob(f".ivy2*[0-9]/jars/io.delta_delta-spark_{spark}_2.13-{delta}.jar"):
        jars = [*main.parent.glob(f"io.delta_*-{delta}.jar"), *main.parent.glob("io.unitycatalog_*.jar")]
        return sorted(str(jar) for jar in jars)
    return []


def _tune(session: SparkSession) -> None:
    """Set the unset settings that decide this job's speed."""
    settings = {
        # Spark counts each file as 4 MB more, and so puts 32 small images into a task; starting a Python
        # task costs as much as 100 images.
        "spark.sql.files.openCostInBytes": "65536",
        "spark.sql.execution.arrow.maxRecordsPerBatch": "128",  # of 10,000: a gigabyte of images
    }
    if (slots := num_slots(session)) is not None:
        settings["spark.sql.files.minPartitionNum"] = str(_TASKS_PER_CORE * slots)
    submitted = _set_by_others(session)
    for key, value in settings.items():
        if key not in submitted:
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


def _set_by_others(session: SparkSession) -> set[str]:
    if not hasattr(session, "_jsc"):
        return set()
    return {key for key, _ in session.sparkContext.getConf().getAll()}


def _check_java() -> None:
    """Fail with a sentence before Spark fails with a stack trace."""
    home = os.environ.get("JAVA_HOME")
    java = str(Path(home) / "bin" / "java") if home else shutil.which("java")
    advice = (
        f"Spark needs Java {_MIN_JAVA} or newer: install it (Debian and Ubuntu: apt-get install "
        "openjdk-17-jre-headless; macOS: brew install openjdk@17) and set JAVA_HOME if it is not in PATH"
    )
    if java is None or not Path(java).exists():
        raise ConfigError(f"no Java found{f' at JAVA_HOME={home}' if home else ' in PATH'}. {advice}")
    text = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr  # noqa: S603
    version = re.search(r'version "(?:1\.)?(\d+)', text)
    if version is None or int(version[1]) < _MIN_JAVA:
        raise ConfigError(f"{java} is Java {version[1] if version else 'of unknown version'}. {advice}")


def _delta_hint() -> str:
    import pyspark

    spark = ".".join(pyspark.__version__.split(".")[:2])
    return f"Add it: spark-submit --packages io.delta:delta-spark_{spark}_2.13:4.4.0 …, or see conf/"
