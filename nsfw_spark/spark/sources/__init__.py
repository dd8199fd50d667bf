"""Sources: where images come from.

A source says what Spark lists (`Source.stream`, `Source.batch`), and has a reader that finds the images in
it, in the Python workers: `files` one in each file, `webdataset` thousands in a tar, `parquet` and `delta`
one in each row; `embeddings` finds no images but vectors that were computed elsewhere. `scoring` puts both
together.
"""

from __future__ import annotations

from nsfw_spark.spark.sources.delta import DeltaImages
from nsfw_spark.spark.sources.files import ImageFiles, ListedFiles
from nsfw_spark.spark.sources.open import open_source
from nsfw_spark.spark.sources.source import Limit, Source, SourceOptions, check_ids

__all__ = [
    "DeltaImages",
    "ImageFiles",
    "Limit",
    "ListedFiles",
    "Source",
    "SourceOptions",
    "check_ids",
    "open_source",
]
