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
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import pytest

MUST_RUN: Final = os.environ.get("FAIL_WITHOUT_SPARK") == "1"
ABSENT: Final = [module for module in ("pyspark", "delta") if find_spec(module) is None]
"""Packages that Spark tests need and that are not installed."""

OPTIONS: Final = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
"""One compiler, the fast one, and one thread that collects garbage."""

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
        _download_jars()
    elif MUST_RUN:
        pytest.fail(f"FAIL_WITHOUT_SPARK is 1, and there is no {' and no '.join(missing)}", pytrace=False)
    else:
        pytest.skip(f"needs {' and '.join(missing)}")


def _download_jars() -> None:
    """Fill ~/.ivy2 by one Spark, while other test processes wait: two downloads at once break each other."""
    from nsfw_spark.spark.jars import downloaded_jars

    with (Path(tempfile.gettempdir()) / f"nsfw-spark-tests-{os.getuid()}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not downloaded_jars():
            code = "from nsfw_spark.spark.session import get_session; get_session().stop()"
            subprocess.run([sys.executable, "-c", code], check=True, stdin=subprocess.DEVNULL)
