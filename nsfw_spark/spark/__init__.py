"""The scorer as a Spark column, and the job around it.

The only place that imports pyspark or delta. In the order of the flow: `sources` lists files and rows,
`scoring` is the job's operator (listed rows → scores), `tables` has image_scores, `filtered` the three
filtered tables. `job` is what a run does to image_scores; `pipeline` puts the steps in a row. `udf` is the
scorer for queries of your own.
"""

from __future__ import annotations

from nsfw_spark.options import JobOptions
from nsfw_spark.spark.filtered import keep_safe
from nsfw_spark.spark.images import read_images
from nsfw_spark.spark.notebook import show_report
from nsfw_spark.spark.pipeline import filter_job, run, run_job
from nsfw_spark.spark.session import get_session
from nsfw_spark.spark.summary import RunSummary
from nsfw_spark.spark.udf import score_images, score_udf

__all__ = [
    "JobOptions",
    "RunSummary",
    "filter_job",
    "get_session",
    "keep_safe",
    "read_images",
    "run",
    "run_job",
    "score_images",
    "score_udf",
    "show_report",
]
