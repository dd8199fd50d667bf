"""Java and Spark as a test wants them that starts one of its own: quick to start, whatever they do for hours.

In a new JVM a command compiles: queries to Java, Java to machine code, twice. On a few rows nothing of that
is earned back, and it is nearly half of the CPU time. What the job does stays the same.
"""

from __future__ import annotations

from typing import Final

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
