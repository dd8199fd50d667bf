"""The scorer as a Spark column, and the job around it.

The only place that imports pyspark or delta. In the order of the flow: `sources` (files → image_id,
content), `udf` (content → score), `tables` (image_scores), `reconcile` (files that Spark passed over),
`filtered` (safe, flagged, quarantined), and `pipeline`, which puts them in a row; below them `schema`,
`session`, `gpu` and `hadoop`; `progress` shows how far the job is.
"""

from __future__ import annotations

from nsfw_spark.spark.filtered import keep_safe
from nsfw_spark.spark.images import read_images
from nsfw_spark.spark.udf import score_images, score_udf

__all__ = ["keep_safe", "read_images", "score_images", "score_udf"]
