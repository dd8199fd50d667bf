"""Drivers, each run in a process of its own: the executors' home must be known before Java starts.

`drivers.py FUNCTION MASTER ARGUMENTS`; what the tests look at is the last line printed, one JSON document.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import pandas as pd
from pyspark import TaskContext
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.functions import pandas_udf
from pyspark.sql.types import ArrayType, StringType, StructField, StructType

from nsfw_spark.options import job_options
from nsfw_spark.spark import score_images
from nsfw_spark.spark.jars import downloaded_jars
from nsfw_spark.spark.pipeline import run_job
from nsfw_spark.spark.worker import task_device
from tests import java
from tests.conftest import grey, png

NUM_IMAGES = 24


def session(master: str, gpus: int, script: str, share: float, **settings: str) -> SparkSession:
    """Return a session whose executors have GPUs, by what the discovery script says."""
    resources = {
        "spark.worker.resource.gpu.amount": gpus,
        "spark.worker.resource.gpu.discoveryScript": script,
        "spark.executor.resource.gpu.amount": gpus,
        "spark.executor.resource.gpu.discoveryScript": script,
        "spark.task.resource.gpu.amount": share,
    }
    builder = SparkSession.builder.appName("nsfw-spark tests").master(master)
    shared = {
        "spark.driver.host": "localhost",
        "spark.ui.enabled": "false",
        "spark.sql.shuffle.partitions": 4,
    }
    for key, value in {**shared, **(resources if gpus else {}), **settings}.items():
        builder = builder.config(key, value)
    return builder.getOrCreate()


FIELDS = ("executor", "worker", "address", "device", "named", "visible")


@pandas_udf(StructType([StructField(name, StringType()) for name in FIELDS]))
def where(ids: pd.Series) -> pd.DataFrame:
    """Say where a task runs and which device it is to use."""
    context = TaskContext.get()
    assert context is not None
    row = {
        "executor": str(os.getppid()),  # pyspark.daemon, of which each executor has one
        "worker": str(os.getpid()),
        "address": context.resources()["gpu"].addresses[0],
        "device": task_device("auto"),
        "named": task_device("cuda"),
        "visible": os.environ.get("CUDA_VISIBLE_DEVICES", "not set"),
    }
    return pd.DataFrame([row] * len(ids))


@pandas_udf(ArrayType(StringType()))
def libraries(ids: pd.Series) -> pd.Series:
    """Say which model libraries this Python worker holds."""
    held = sorted({"torch", "onnxruntime", "onnx", "open_clip"} & set(sys.modules))
    return pd.Series([held] * len(ids))


def rows(frame: DataFrame) -> list[dict[str, Any]]:
    return [row.asDict() for row in frame.collect()]


def scored(spark: SparkSession, card: str, partitions: int, **options: Any) -> list[dict[str, Any]]:  # noqa: ANN401
    """Score some images, a few in each partition."""
    contents = [(seed, png(seed=seed % NUM_IMAGES)) for seed in range(max(NUM_IMAGES, 3 * partitions))]
    images = spark.createDataFrame(contents, "seed int, content binary").repartition(partitions, "seed")
    scores = score_images(images, model=card, batch_size=1, **options)
    return rows(scores.select("seed", "status", "nsfw_score"))


def addresses(master: str, card: str, script: str, visible: str | None = None) -> dict[str, Any]:
    """Score, and say where tasks ran; each executor has one GPU, which two tasks share."""
    narrowed = {} if visible is None else {"spark.executorEnv.CUDA_VISIBLE_DEVICES": visible}
    spark = session(master, 1, script, 0.5, **narrowed)
    tasks = spark.range(0, 64, 1, 16).select(where(F.col("id")).alias("task")).select("task.*").distinct()
    return {"scores": scored(spark, card, 8), "tasks": rows(tasks)}


def scores(  # noqa: PLR0913
    master: str,
    card: str,
    *,
    gpus: int = 0,
    share: float = 1.0,
    script: str = "",
    partitions: int = 64,
    options: dict[str, Any] | None = None,
    settings: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Score images; say which model libraries the Python workers hold afterwards."""
    spark = session(master, gpus, script, share, **(settings or {}))
    found = scored(spark, card, partitions, **(options or {}))
    held = spark.range(0, partitions, 1, partitions).select(libraries(F.col("id")).alias("held")).distinct()
    return {"scores": found, "libraries": sorted({name for row in held.collect() for name in row.held})}


def job(master: str, more: dict[str, str] | None = None, /, **options: Any) -> dict[str, Any]:  # noqa: ANN401
    """Run the job, without GPUs, with more settings of Spark."""
    builder = SparkSession.builder.appName("nsfw-spark tests").master(master)
    settings = {
        "spark.driver.host": "localhost",
        "spark.ui.enabled": "false",
        "spark.jars": ",".join(downloaded_jars()),
        "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
        "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
        "spark.databricks.delta.snapshotPartitions": "2",
        "spark.sql.shuffle.partitions": "4",
        "spark.sql.sources.parallelPartitionDiscovery.parallelism": "4",  # of a task for each file
    }
    for key, value in {**settings, **(more or {})}.items():
        builder = builder.config(key, value)
    builder.getOrCreate()  # which the job finds
    return run_job(job_options({"allow_random_weights": True, **options})).as_dict()


def delivered(
    master: str,
    card: str,
    *,
    executors_home: str,
    gone: str | None = None,
    head_only: bool = False,
    output: str = "",
    **options: Any,  # noqa: ANN401
) -> dict[str, Any]:
    """Score 12 greys on executors with a cache of their own; return scores by grey, or the error.

    Args:
        master: Of the cluster.
        card: Path of its file.
        executors_home: HF_HOME of the executors; the driver's is that of this process.
        gone: A directory that is gone when the executors look, as if it was on the driver alone.
        head_only: Score embeddings with the job, in place of images.
        output: Of that job.
        options: Of `score_images`, or of the job.
    """
    apart = {
        "spark.executorEnv.HF_HOME": executors_home,
        "spark.task.maxFailures": "1",
        **java.together(master),
    }
    try:
        if head_only:
            return job(master, apart, model=card, output=output, **options)
        spark = session(master, 0, "", 1.0, **apart)
        greys = [(value, grey(value)) for value in range(0, 240, 20)]
        images = spark.createDataFrame(greys, "value int, content binary").repartition(6)
        scored = score_images(images, model=card, **options)
        if gone is not None:
            os.rename(gone, f"{gone}.gone")  # noqa: PTH104
        return {row.value: row.nsfw_score for row in scored.collect()}
    except Exception as error:  # noqa: BLE001 - whatever a user would see
        return {"error": f"{type(error).__name__}: {error}"}


if __name__ == "__main__":
    driver, its_master, arguments = sys.argv[1:]
    result = globals()[driver](its_master, **json.loads(arguments))
    SparkSession.builder.getOrCreate().stop()  # or executors are started anew while the driver ends
    sys.stdout.write(json.dumps(result) + "\n")
