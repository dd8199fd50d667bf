"""The SparkSession: the running one, the one of spark-submit, or a local one for a laptop.

Settings of spark-submit, a cluster or a notebook stay; only unset ones get a value here.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from glob import glob
from importlib import resources
from pathlib import Path
from typing import Final
from zipfile import is_zipfile

import pyspark
from pyspark.errors import PySparkRuntimeError
from pyspark.sql import SparkSession

from nsfw_spark.errors import ConfigError
from nsfw_spark.spark.hadoop import has_file_system

_DELTA: Final = {
    "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
    "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
}
_SPARK: Final = ".".join(pyspark.__version__.split(".")[:2])
_TRIED: Final = {"4.2": ("4.4.0", "3.5.0", "2.57.8")}
"""Spark's version → versions of Delta Lake, hadoop-aws and Amazon's SDK that have run together."""

_SDK: Final = ("s3", "s3-transfer-manager", "sts", "apache-client", "netty-nio-client")
# Delta and hadoop-aws depend on these. Spark has them; the bundle is 600 MB, and _SDK is 16.
EXCLUDES: Final = (
    *("org.apache.hadoop:hadoop-client-api", "org.apache.hadoop:hadoop-client-runtime"),
    *("org.apache.logging.log4j:log4j-api", "org.apache.logging.log4j:log4j-core"),
    *("org.apache.logging.log4j:log4j-slf4j2-impl", "org.slf4j:slf4j-api"),
    *("org.apache.parquet:parquet-hadoop", "org.roaringbitmap:RoaringBitmap"),
    *("com.fasterxml.jackson.core:jackson-databind", "com.fasterxml.jackson.datatype:jackson-datatype-jdk8"),
    *("com.fasterxml.jackson.core:jackson-core", "com.fasterxml.jackson.core:jackson-annotations"),
    *("commons-codec:commons-codec", "commons-logging:commons-logging", "com.google.code.findbugs:jsr305"),
    *("org.apache.httpcomponents:httpclient", "org.apache.httpcomponents:httpcore"),
    *("org.wildfly.openssl:wildfly-openssl", "software.amazon.awssdk:bundle", "io.netty:*"),
)
_PACKAGES: Final = "spark.jars.packages"
_MIN_JAVA: Final = 17
_TASKS_PER_CORE: Final = 3  # in a micro-batch: they even out slow images, and start fast


def get_session(*locations: str | None) -> SparkSession:
    """Return the running session; under spark-submit, its session; else a local one with Delta Lake.

    Args:
        locations: URIs that Spark will read or write; a local session brings the jars for `s3a://`.

    Raises:
        ConfigError: There is no Java for a local session, no Delta Lake, no connector for a location, or a
            memory limit under which no model loads.
    """
    session = SparkSession.getActiveSession()
    if session is None:
        is_submitted = "PYSPARK_GATEWAY_PORT" in os.environ
        session = _submitted_session() if is_submitted else _local_session(locations)
    check_memory(session)
    _check_connectors(session, locations)
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
    for key, value in {**_DELTA, "spark.log.level": "WARN"}.items():  # INFO hides the result in 9,000 lines
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
    _check_java()
    sys.stderr.write("nsfw-spark: starting Spark…\n")
    # Else Spark runs the first `python3` in PATH, not this environment's.
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    builder, jars = SparkSession.builder.appName("nsfw-spark"), _jar_settings(locations)
    for key, value in {**_DELTA, **_local_settings(), **jars}.items():
        builder = builder.config(key, value)
    try:
        return builder.getOrCreate()
    except PySparkRuntimeError as error:
        if "JAVA_GATEWAY_EXITED" not in str(error) or _PACKAGES not in jars:
            raise
        raise ConfigError(
            f"Spark did not start; it asked Maven for {jars[_PACKAGES]}, and its messages above say why it "
            "stopped. Behind a proxy, set JAVA_TOOL_OPTIONS='-Dhttps.proxyHost=HOST -Dhttps.proxyPort=PORT'. "
            "Without a network, put the jars into a directory and write `spark.jars /DIRECTORY/*.jar` into "
            "$SPARK_CONF_DIR/spark-defaults.conf: docs/stores.md"
        ) from error


def delta_package() -> str:
    """Return the Maven coordinate of Delta Lake for this Spark: a tried one, or that of delta-spark."""
    if _SPARK in _TRIED:
        return f"io.delta:delta-spark_{_SPARK}_2.13:{_TRIED[_SPARK][0]}"
    from delta import configure_spark_with_delta_pip

    return str(configure_spark_with_delta_pip(SparkSession.Builder())._options[_PACKAGES])  # noqa: SLF001


def s3_packages() -> list[str]:
    """Return the Maven coordinates of the connector for `s3a://`; none if nobody has tried this Spark."""
    _, hadoop, sdk = _TRIED.get(_SPARK, ("", "", ""))
    amazons = [f"software.amazon.awssdk:{module}:{sdk}" for module in _SDK]
    return [f"org.apache.hadoop:hadoop-aws:{hadoop}", *amazons] if hadoop else []


def _jar_settings(locations: Sequence[str | None]) -> dict[str, str]:
    """Return the settings that bring Delta Lake's jars and S3's, beside those that Spark's user names."""
    home = os.environ.get("SPARK_HOME") or os.path.dirname(pyspark.__file__)  # noqa: PTH120
    defaults = Path(os.environ.get("SPARK_CONF_DIR") or f"{home}/conf", "spark-defaults.conf")
    text = defaults.read_text(encoding="utf-8") if defaults.is_file() else ""
    named = dict(re.findall(r"^[ \t]*(spark\.jars(?:\.\w+)?)[ \t=:]+(\S+)", text, re.MULTILINE))
    patterns = [*named.get("spark.jars", "").split(","), f"{home}/jars/*.jar"]
    files = [file for each in patterns for file in (each, *glob(each.removeprefix("file:")))]  # noqa: PTH207
    there = " ".join([named.get(_PACKAGES, ""), *(Path(file).name for file in files)])
    jars: list[str] = [] if "delta-spark" in there else _downloaded_jars()
    packages = [] if jars or "delta-spark" in there else [delta_package()]
    if any((each or "").startswith("s3a:") for each in locations) and "hadoop-aws" not in there:
        packages += s3_packages()
    added = {"spark.jars": jars, _PACKAGES: packages, "spark.jars.excludes": EXCLUDES}
    return {key: ",".join([*filter(None, [named.get(key)]), *new]) for key, new in added.items() if new}


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
        # Small tables need no 50 tasks to read Delta's log, nor 200 to count.
        "spark.databricks.delta.snapshotPartitions": "2",
        "spark.sql.shuffle.partitions": str(cores),
        # With a task for each file, listing a directory of 2,000 files takes 8 s.
        "spark.sql.sources.parallelPartitionDiscovery.parallelism": str(cores),
    }


def _downloaded_jars() -> list[str]:
    """Return Delta's jars that Spark's package manager stored at an earlier start, if all are there.

    The package manager takes 3 s and prints 70 lines, even if it has the jars.
    """
    delta = _TRIED.get(_SPARK, ("none",))[0]
    parts = (f"spark_{_SPARK}_2.13", "storage", "kernel-api", "kernel-defaults", "kernel-unitycatalog")
    patterns = [f"io.delta_delta-{part}-{delta}.jar" for part in parts]
    patterns += [f"io.unitycatalog_unitycatalog-{part}-*.jar" for part in ("client", "hadoop")]
    for folder in Path.home().glob(".ivy2*[0-9]/jars"):
        found = [max(map(str, folder.glob(pattern)), default="") for pattern in patterns]
        if all(map(is_zipfile, found)):  # not of one that was killed
            return sorted(found)
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
        if not separator or has_file_system(session, scheme):
            continue
        advice = f"--packages {','.join(s3_packages())} --exclude-packages {','.join(EXCLUDES)}"
        raise ConfigError(
            f"Spark has no connector for {scheme}://, which {location} needs; expected its jars in "
            "spark.jars.packages or spark.jars, or in Spark's directory jars/: docs/stores.md"
            + (f". For S3: spark-submit {advice}" if scheme == "s3a" and s3_packages() else "")
        )


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
