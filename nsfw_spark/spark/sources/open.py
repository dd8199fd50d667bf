"""What an input is, where the user did not say: `--format auto`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Final

from py4j.protocol import Py4JJavaError
from pyspark.sql import SparkSession

from nsfw_spark.errors import InputError
from nsfw_spark.readers.webdataset import IMAGE_EXTENSIONS
from nsfw_spark.spark.hadoop import exists
from nsfw_spark.spark.sources.delta import DeltaImages, DeltaVectors, is_table_name
from nsfw_spark.spark.sources.files import AutoLoaderFiles, ImageFiles, files_below
from nsfw_spark.spark.sources.parquet import NpyFiles, ParquetImages, ParquetVectors
from nsfw_spark.spark.sources.source import Source, SourceOptions
from nsfw_spark.spark.sources.webdataset import Tars
from nsfw_spark.uris import absolute_uri

_FILES_SEEN: Final = 1_000
_SUFFIXES: Final = {
    "webdataset": Tars.suffixes,
    "npy": NpyFiles.suffixes,
    "parquet": ParquetImages.suffixes,
}
_IMAGE: Final = "files"
_OTHER: Final = "other"
_BESIDE: Final = {"webdataset": {"parquet", _OTHER}, "npy": {"parquet", _OTHER}}
"""What usually lies beside: img2dataset writes a Parquet file and a JSON a tar, clip-retrieval one a .npy."""


def detect_format(spark: SparkSession, options: SourceOptions) -> str:
    """Look at an input and return what it is: `files`, `webdataset`, `parquet`, `npy` or `delta`.

    Raises:
        InputError: It holds several of them.
    """
    if is_table_name(spark, options.uri) or is_delta(spark, options.uri):
        return "delta"
    try:
        names = list(islice(files_below(spark, absolute_uri(options.uri), options.glob), _FILES_SEEN))
    except Py4JJavaError:
        return "files"  # whose own check says what is wrong
    found = Counter(_format_of(name) for name in names)
    for main, beside in _BESIDE.items():
        if main in found:
            # Images are not passed over in silence; where embeddings are asked for, they are not meant.
            ignored = beside | {_IMAGE} if options.format == "embeddings" else beside
            found = Counter({name: n for name, n in found.items() if name not in ignored})
    if others := found.pop(_OTHER, 0):
        found[_IMAGE] += others  # of any name: what they hold will be seen
    if len(found) > 1:
        seen = " and ".join(f"{number} of {name}" for name, number in found.most_common())
        raise InputError(
            f"input {options.uri} holds files of several formats ({seen}); expected one. Say which: --format"
        )
    return next(iter(found), _IMAGE)


def is_delta(spark: SparkSession, uri: str) -> bool:
    """Whether there is a Delta table in this directory."""
    try:
        return exists(spark, f"{absolute_uri(uri).rstrip('/')}/_delta_log")
    except Py4JJavaError:
        return False


def _format_of(name: str) -> str:
    name = name.lower()
    for format_, suffixes in _SUFFIXES.items():
        if name.endswith(tuple(f".{suffix}" for suffix in suffixes)):
            return format_
    return _IMAGE if name.rpartition(".")[2] in IMAGE_EXTENSIONS else _OTHER


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
