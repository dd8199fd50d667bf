"""What `nsfw-spark doctor` learns from Spark: settings, executors, and access to INPUT and OUT.

In: locations and a model card. Out: findings, group by group, as they are found; and the `Cluster` that the
estimate needs. Judging settings is the work of `nsfw_spark.doctor.settings`, without Spark.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
from py4j.protocol import Py4JError
from pyspark import TaskContext
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

from nsfw_spark.doctor.cluster import NAMES, Cluster
from nsfw_spark.doctor.executors import check_executors
from nsfw_spark.doctor.facts import Facts, measure
from nsfw_spark.doctor.finding import Finding
from nsfw_spark.doctor.settings import check_settings
from nsfw_spark.errors import NsfwSparkError
from nsfw_spark.model_card import ModelCard
from nsfw_spark.spark.jars import delta_package
from nsfw_spark.spark.session import num_slots, open_session
from nsfw_spark.spark.store_probe import check_input, check_output
from nsfw_spark.weights import fingerprint, locate_weights

SPARK: Final = "Spark"
_FEW: Final = 4  # tasks that ask executors, without --cluster
_SECONDS_OF_ALL: Final = 1.0  # of decoding: so long a task holds its slot, and the next one goes elsewhere
_SECONDS_OF_FEW: Final = 0.3


@dataclass(frozen=True)
class Question:
    """What the doctor is asked."""

    source: str | None
    """INPUT; None leaves its checks out."""
    output: str | None
    """OUT; None leaves its checks out."""
    card: ModelCard
    model_dir: Path | None
    driver: Facts
    everywhere: bool = False
    """Whether as many tasks ask executors as run at once."""


def examine(question: Question, show: Callable[[Sequence[Finding]], None]) -> Cluster | None:
    """Ask Spark; show each group of findings as soon as it is known.

    Returns:
        The facts about the cluster; None if Spark did not start.
    """
    try:
        session = open_session(question.source, question.output)
    except Exception as error:  # noqa: BLE001 - whatever stops Spark is the finding
        show([_not_started(error)])
        return None
    show([Finding(SPARK, "session", "ok", _describe(session))])
    cluster = observe(session, question)
    show(list(check_settings(cluster)))
    show(list(check_executors(cluster)))
    for check, location in ((check_input, question.source), (check_output, question.output)):
        if location is not None:
            show(check(session, location))
    return cluster


def observe(session: SparkSession, question: Question) -> Cluster:
    """Collect settings and the facts of executors."""
    slots = num_slots(session)
    num_tasks = slots if question.everywhere and slots else min(slots or _FEW, _FEW)
    seconds = _SECONDS_OF_ALL if question.everywhere else _SECONDS_OF_FEW
    cluster = Cluster(
        settings=settings_of(session),
        card=question.card,
        driver=replace(question.driver, weights=_weights(question.card, question.model_dir, fail=False)),
        slots=slots,
        spark=session.version,
        delta_jar=_delta_jar(session),
        delta_package=_delta_package(),
        num_asked=num_tasks,
    )
    try:
        executors = _ask(session, question, num_tasks, seconds)
    except (PySparkException, Py4JError) as error:
        return replace(cluster, problem=_cause(str(error)))
    return replace(cluster, executors=executors)


def settings_of(session: SparkSession) -> dict[str, str]:
    """Return the settings that the doctor judges and that are set."""
    found: dict[str, str] = {}
    if hasattr(session, "_jsc"):
        found = {name: value for name, value in session.sparkContext.getConf().getAll() if name in NAMES}
    for name in NAMES:
        value = session.conf.get(name, None)
        if value is not None:
            found[name] = value
    return found


def _ask(session: SparkSession, question: Question, num_tasks: int, seconds: float) -> list[Facts]:
    """Measure in Spark tasks.

    Raises:
        PySparkException: A task failed.
    """
    card, model_dir, asks_weights = question.card, question.model_dir, question.everywhere

    def ask(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            if batch.num_rows:
                facts = replace(
                    measure(card.preprocessing, seconds),
                    assigned=_assigned(),
                    weights=_weights(card, model_dir, fail=True) if asks_weights else "",
                )
                yield pa.RecordBatch.from_arrays([pa.array([facts.as_json()])], ["facts"])

    frame = session.range(0, num_tasks, 1, num_tasks).mapInArrow(ask, "facts string")
    facts = [Facts.from_json(row.facts) for row in frame.collect()]
    if asks_weights:
        return facts
    return [replace(each, weights=_weights(card, model_dir, fail=False)) for each in facts]


def _assigned() -> tuple[str, ...]:
    context = TaskContext.get()
    gpu = context.resources().get("gpu") if context else None
    return tuple(gpu.addresses) if gpu else ()


def _weights(card: ModelCard, model_dir: Path | None, *, fail: bool) -> str:
    """Return the fingerprint of the weights here; without them the reason (`fail`) or an empty text."""
    try:
        return fingerprint(card, locate_weights(card, model_dir))
    except (NsfwSparkError, OSError) as error:
        return str(error) if fail else ""


def _cause(text: str) -> str:
    """Return the last line of a Python worker's traceback; else the whole text."""
    lines = [line.strip() for line in text.splitlines()]
    errors = [line for line in lines if "Error: " in line or "MISMATCH" in line]
    return next((line for line in errors if "No module named" in line or "MISMATCH" in line), text)


def _describe(session: SparkSession) -> str:
    master = session.conf.get("spark.master", None) or "Spark Connect"
    java = ""
    if hasattr(session, "_jvm"):
        jvm: Any = session._jvm  # noqa: SLF001 - Spark has no public way
        java = f", Java {jvm.java.lang.System.getProperty('java.version')}"
    return f"{session.version}, master {master}, {num_slots(session) or 'unknown'} tasks at once{java}"


def _not_started(error: Exception) -> Finding:
    cure = "correct what the message names; docs/stores.md has the jars and settings"
    if isinstance(error, NsfwSparkError):
        problem, _, cure = str(error).partition(". ")
        return Finding(SPARK, "session", "problem", problem, "a running Spark", "", cure)
    return Finding(SPARK, "session", "problem", f"did not start: {error}", "a running Spark", "", cure)


def _delta_package() -> str:
    try:
        return delta_package()
    except ImportError:  # a Spark that was not tried, without delta-spark: the platform's own Delta Lake
        return ""


def _delta_jar(session: SparkSession) -> str | None:
    """Return the name of the jar with Delta Lake; None if there is none, empty if unknown."""
    if not hasattr(session, "_jvm"):
        return ""
    jvm: Any = session._jvm  # noqa: SLF001 - Spark has no public way
    loader = jvm.java.lang.Thread.currentThread().getContextClassLoader()
    try:
        found = loader.loadClass("io.delta.sql.DeltaSparkSessionExtension")
    except Py4JError:
        return None
    try:
        location = found.getProtectionDomain().getCodeSource().getLocation().getPath()
    except (Py4JError, AttributeError):  # a platform that hides it
        return ""
    return Path(str(location)).name
