"""Sources: where images come from.

A source says what Spark lists (`Source.stream`, `Source.batch`), and has a reader that finds the images in
it, in the Python workers: `files` one in each file, `webdataset` thousands in a tar, `parquet` and `delta`
one in each row; `embeddings` finds no images but vectors that were computed elsewhere. `scoring` puts both
together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from pyspark.sql import SparkSession

from nsfw_spark.errors import InputError
from nsfw_spark.spark.sources.delta import DeltaImages, DeltaVectors
from nsfw_spark.spark.sources.detect import detect_format, is_delta
from nsfw_spark.spark.sources.files import AutoLoaderFiles, ImageFiles, ListedFiles
from nsfw_spark.spark.sources.parquet import NpyFiles, ParquetImages, ParquetVectors
from nsfw_spark.spark.sources.source import Limit, Source, SourceOptions, check_ids
from nsfw_spark.spark.sources.webdataset import Tars

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

_IMAGES: Final[Mapping[str, Callable[[SparkSession, SourceOptions], Source]]] = {
    "files": ImageFiles,
    "cloudfiles": AutoLoaderFiles,
    "webdataset": Tars,
    "parquet": ParquetImages,
    "delta": DeltaImages,
}
_VECTORS: Final[Mapping[str, Callable[[SparkSession, SourceOptions], Source]]] = {
    "npy": NpyFiles,
    "parquet": ParquetVectors,
    "delta": DeltaVectors,
}


def open_source(spark: SparkSession, options: SourceOptions) -> Source:
    """Find out what an input is, and make sure that there is something to read, without listing it all.

    Raises:
        InputError: It is missing, empty, or not of the expected shape.
        ConfigError: The format is not to be had here.
    """
    if options.format == "embeddings":
        found = detect_format(spark, options)
        if found not in _VECTORS:
            raise InputError(
                f"input {options.uri} holds no embeddings; expected .npy or Parquet files, or a Delta table"
            )
        return _VECTORS[found](spark, options)
    format_ = options.format if options.format != "auto" else detect_format(spark, options)
    if format_ == "npy":
        raise InputError(f"input {options.uri} holds embeddings (.npy). To score them: --format embeddings")
    if format_ in ("files", "parquet") and is_delta(spark, options.uri):
        raise InputError(f"input {options.uri} is a Delta table, not a directory of files: --format delta")
    return _IMAGES[format_](spark, options)
