"""A driver with two separate executors, each with a pretended GPU that two tasks share.

Run as `driver.py CARD [CUDA_VISIBLE_DEVICES of the executors]`, in a process of its own: the executors' home
must be known before Java starts. What the tests look at is the last line that it prints, one JSON object.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pandas as pd
import pyspark
from pyspark import TaskContext
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.functions import pandas_udf
from pyspark.sql.types import StringType, StructField, StructType

from nsfw_spark.spark import score_images
from nsfw_spark.spark.gpu import task_device
from tests.conftest import png

HERE = Path(__file__).parent
NUM_IMAGES = 24


def session(visible: str | None) -> SparkSession:
    os.environ["SPARK_HOME"] = str(Path(pyspark.__file__).parent)
    os.environ["PYSPARK_PYTHON"] = sys.executable
    settings = {
        "spark.master": "local-cluster[2,2,1024]",
        "spark.driver.host": "localhost",
        "spark.ui.enabled": "false",
        "spark.worker.resource.gpu.amount": "1",
        "spark.worker.resource.gpu.discoveryScript": str(HERE / "discover_gpus.sh"),
        "spark.executor.resource.gpu.amount": "1",
        "spark.executor.resource.gpu.discoveryScript": str(HERE / "discover_gpus.sh"),
        "spark.task.resource.gpu.amount": "0.5",
        "spark.sql.shuffle.partitions": "4",
        "spark.executorEnv.PYTHONPATH": os.environ["PYTHONPATH"],
    }
    if visible is not None:
        settings["spark.executorEnv.CUDA_VISIBLE_DEVICES"] = visible
    builder = SparkSession.builder.appName("nsfw-spark tests")
    for key, value in settings.items():
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


def rows(frame: DataFrame) -> list[dict[str, object]]:
    return [row.asDict() for row in frame.collect()]


def main(card: str, visible: str | None = None) -> None:
    spark = session(visible)
    contents = [(seed, png(seed=seed)) for seed in range(NUM_IMAGES)]
    images = spark.createDataFrame(contents, "seed int, content binary").repartition(8)
    scored = score_images(images, model=card, batch_size=1).select("seed", "status", "nsfw_score")
    tasks = spark.range(0, 64, 1, 16).select(where(F.col("id")).alias("task")).select("task.*").distinct()
    said = {"scores": rows(scored), "tasks": rows(tasks)}
    spark.stop()
    sys.stdout.write(json.dumps(said) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
