"""Java and Spark as a test wants them that starts one of its own: quick to start, whatever they do for hours.

In a new JVM a command compiles: queries to Java, Java to machine code, twice. On a few rows nothing of that
is earned back, and it is nearly half of the CPU time. What the job does stays the same.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Final
from zipfile import is_zipfile

import pytest

MUST_RUN: Final = os.environ.get("FAIL_WITHOUT_SPARK") == "1"
ABSENT: Final = [module for module in ("pyspark", "delta") if find_spec(module) is None]
"""Packages that Spark tests need and that are not installed."""

OPTIONS: Final = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC -XX:ReservedCodeCacheSize=240m"
"""One compiler, the fast one, with as much room for its code as the two have: without, a run that brings the
jars for S3 fills it, and Spark stops. And one thread that collects garbage."""

INTERPRETED: Final = {
    # Queries are interpreted.
    "spark.sql.codegen.wholeStage": "false",
    "spark.sql.codegen.factoryMode": "NO_CODEGEN",
}
"""Settings for queries that compile longer than they run."""

COLD: Final = {
    **INTERPRETED,
    # Plans are not changed on the way, of which each has one task or two.
    "spark.sql.adaptive.enabled": "false",
    # No test makes, in a process of its own, the 50 files that Delta would compact; to look costs a job.
    "spark.databricks.delta.autoCompact.enabled": "false",
}
"""Settings for a Spark that lives for one command."""

_OF_S3: Final = (
    "org.apache.hadoop_hadoop-aws-*.jar",
    "software.amazon.*.jar",
    "org.apache.httpcomponents.*5_*.jar",
    "org.reactivestreams_*.jar",
)
"""The jars for S3, as the package manager names them; Spark has all others that they need."""


def arguments(settings: dict[str, object]) -> str:
    """Return PYSPARK_SUBMIT_ARGS: settings for the Spark that a program starts and does not set itself."""
    return " ".join([*(f"--conf {key}={value}" for key, value in settings.items()), "pyspark-shell"])


def quick(**settings: object) -> dict[str, str]:
    """Return the environment of a program that starts a quick Spark, with more settings."""
    return {"JDK_JAVA_OPTIONS": OPTIONS, "PYSPARK_SUBMIT_ARGS": arguments({**COLD, **settings})}


def together(master: str) -> dict[str, str]:
    """Return settings of a local-cluster: no task before all executors are there, so that each has some."""
    num_executors, cores, _ = master.removeprefix("local-cluster[").removesuffix("]").split(",")
    return {
        "spark.cores.max": str(int(num_executors) * int(cores)),  # of which the share is counted
        "spark.scheduler.minRegisteredResourcesRatio": "1.0",
        "spark.scheduler.maxRegisteredResourcesWaitingTime": "600s",
    }


def need_spark() -> None:
    """Skip tests where Spark is absent, or fail them where FAIL_WITHOUT_SPARK is 1; get Delta's jars."""
    home = os.environ.get("JAVA_HOME")
    has_java = shutil.which(f"{home}/bin/java" if home else "java")
    missing = [*ABSENT, *([] if has_java else ["Java"])]
    if not missing:
        _download_jars(_delta_jars)
    elif MUST_RUN:
        pytest.fail(f"FAIL_WITHOUT_SPARK is 1, and there is no {' and no '.join(missing)}", pytrace=False)
    else:
        pytest.skip(f"needs {' and '.join(missing)}")


def write_defaults(folder: Path, settings: Mapping[str, object]) -> Path:
    """Write a directory for SPARK_CONF_DIR: settings of any Spark that starts, and the jars for S3."""
    lines = {"spark.jars": ",".join(s3_jars()), **settings}
    text = "".join(f"{name} {value}\n" for name, value in lines.items())
    (folder / "spark-defaults.conf").write_text(text, encoding="utf-8")
    return folder


def s3_jars() -> list[str]:
    """Return the jars for S3; downloads them if they are not there."""
    return _download_jars(_found_s3_jars, "s3a://bucket")


def _delta_jars() -> list[str]:
    from nsfw_spark.spark.jars import downloaded_jars

    return downloaded_jars()


def _found_s3_jars() -> list[str]:
    """Return the jars of hadoop-aws and of the modules that it needs, if Spark's package manager has them."""
    from nsfw_spark.spark.jars import connector

    named = ["{}_{}-{}.jar".format(*package.split(":")) for package in connector("s3a")]
    for folder in Path.home().glob(".ivy2*[0-9]/jars"):
        if all(is_zipfile(folder / name) for name in named):
            return sorted(str(path) for pattern in _OF_S3 for path in folder.glob(pattern))
    return []


def _download_jars(find: Callable[[], list[str]], location: str | None = None) -> list[str]:
    """Fill ~/.ivy2 by one Spark, while other test processes wait: two downloads at once break each other."""
    with (Path(tempfile.gettempdir()) / f"nsfw-spark-tests-{os.getuid()}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not find():
            code = f"from nsfw_spark.spark.session import get_session; get_session({location!r}).stop()"
            subprocess.run([sys.executable, "-c", code], check=True, stdin=subprocess.DEVNULL)
        return find()
