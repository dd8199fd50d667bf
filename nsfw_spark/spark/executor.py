"""Which executor a Python worker belongs to: what a model host must know to be shared, and to end in time."""

from __future__ import annotations

import os

import psutil

from nsfw_spark.host import Owner


def this_executor() -> Owner:
    """Return the executor of this Python worker; in local mode the driver.

    Spark tells each worker the directories of its executor's block manager. They are made when the executor
    (or, in local mode, the SparkContext) begins, have a random name, and are removed when it ends in order.
    Its process tells the rest: a killed one removes nothing.
    """
    directories = os.environ.get("SPARK_LOCAL_DIRS", "")
    directory = next((each for each in directories.split(",") if os.path.isdir(each)), None)  # noqa: PTH112
    jvm = _jvm()
    name = directories or (f"process {jvm.pid} of {jvm.create_time()}" if jvm else "unknown")
    if jvm is None:
        return Owner(name, directory=directory)
    return Owner(name, jvm.pid, jvm.create_time(), directory)


def _jvm() -> psutil.Process | None:
    """Return the Java process above this one: the parent, or the parent of Spark's Python daemon.

    None where the workers live in a sandbox that hides it.
    """
    try:
        return next((each for each in psutil.Process().parents() if "java" in each.name()), None)
    except psutil.Error:
        return None
