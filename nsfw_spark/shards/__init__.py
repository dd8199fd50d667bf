"""Shards: images on their way into training, as tars or as Parquet files.

In: images in the order in which they are to lie, each with the number of its shard. Out: one file a shard,
written under a temporary name and then renamed, and what is in it. The same images give the same bytes, so a
task that is tried again replaces its file by the same one. Knows nothing of Spark, nor of what is safe.

    writer.py        the images of a task, shard by shard
      tar_file.py      WebDataset's samples        json_text.py    what is known of an image, as text
      parquet_file.py  Hugging Face's rows
      sink.py          counts and hashes what is written
      names.py         columns, and the images' file names
"""

from __future__ import annotations

from nsfw_spark.shards.names import KEY, SHARD
from nsfw_spark.shards.writer import TEMPORARY, Shard, ShardFormat, ShardWriter

__all__ = ["KEY", "SHARD", "TEMPORARY", "Shard", "ShardFormat", "ShardWriter"]
