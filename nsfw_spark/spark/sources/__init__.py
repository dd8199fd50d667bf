"""Sources: where images come from.

A source lives on the driver. It says what Spark lists (`Source.stream`, `Source.batch`), and holds the reader
that opens it in the Python workers. `files` has one image a file, `webdataset` thousands in a tar, `parquet`
and `delta` one in each row. `embeddings` has vectors that another program computed, and no images.
"""

from __future__ import annotations

from nsfw_spark.spark.sources.files import ImageFiles, ListedFiles, is_below
from nsfw_spark.spark.sources.open import check_opened, open_source
from nsfw_spark.spark.sources.source import Limit, Source, SourceOptions, check_ids

__all__ = [
    "ImageFiles",
    "Limit",
    "ListedFiles",
    "Source",
    "SourceOptions",
    "check_ids",
    "check_opened",
    "is_below",
    "open_source",
]
