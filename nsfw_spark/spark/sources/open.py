"""Opens a source: looks at an input to find its format (`--format auto`), and checks that it can be read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Final

import pyarrow as pa
from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

from nsfw_spark.errors import InputError
from nsfw_spark.formats import FILES, NAMES_SEEN, find_format
from nsfw_spark.spark.hadoop import exists, files_below
from nsfw_spark.spark.progress import from_executor
from nsfw_spark.spark.sources.auto_loader import AutoLoaderFiles
from nsfw_spark.spark.sources.delta import DeltaRows, is_table_name
from nsfw_spark.spark.sources.files import ImageFiles, ListedFiles
from nsfw_spark.spark.sources.parquet import NpyFiles, ParquetFiles
from nsfw_spark.spark.sources.source import Source, SourceOptions
from nsfw_spark.spark.sources.webdataset import Tars
from nsfw_spark.uris import absolute_uri

_SOURCES: Final[Mapping[str, Callable[[SparkSession, SourceOptions], Source]]] = {
    "files": ImageFiles,
    "cloudfiles": AutoLoaderFiles,
    "webdataset": Tars,
    "parquet": ParquetFiles,
    "delta": DeltaRows,
    "npy": NpyFiles,
}
_WITH_VECTORS: Final = ("npy", "parquet", "delta")

_FILES_TRIED: Final = 10


def open_source(spark: SparkSession, options: SourceOptions) -> Source:
    """Find the format of an input and open it, without listing all of it.

    Raises:
        InputError: The input is missing, empty, or has another shape than expected.
        ConfigError: The format does not exist on this cluster.
    """
    looks = options.has_vectors or options.format == "auto"
    format_ = _detect_format(spark, options) if looks else options.format
    if options.has_vectors and format_ not in _WITH_VECTORS:
        raise InputError(
            f"input {options.uri} holds no embeddings; expected .npy or Parquet files, or a Delta table"
        )
    if format_ == "npy" and not options.has_vectors:
        raise InputError(f"input {options.uri} holds embeddings (.npy). To score them: --format embeddings")
    if format_ in ("files", "parquet") and _is_delta(spark, options.uri):
        raise InputError(f"input {options.uri} is a Delta table, not a directory of files: --format delta")
    return _SOURCES[format_](spark, options)


def check_opened(source: Source) -> None:
    """Make sure that an executor can open a file of a source, as the readers open it.

    The driver lists files with Hadoop's client. The readers have pyarrow's, on other machines, perhaps with
    another identity: if they can open nothing, all files would be marked as seen without a score.

    Raises:
        ConfigError: The credentials in Spark's settings cannot be used.
        InputError: None of ten files can be opened.
    """
    if not isinstance(source, ListedFiles) or source.is_read_by_spark or source.lack:
        return
    found = list(islice(files_below(source.spark, source.uri, source.glob), NAMES_SEEN))
    files, storage = found[:: max(1, len(found) // _FILES_TRIED)], source.storage()

    def open_one(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for _ in batches:
            problems: list[str | None] = []
            while len(problems) < len(files) and None not in problems:
                problems.append(storage.problem(files[len(problems)]))
            yield pa.RecordBatch.from_arrays([pa.array(problems, pa.string())], ["problem"])

    try:
        rows = source.spark.range(0, 1, 1, 1).mapInArrow(open_one, "problem string").collect()
    except PySparkException as error:
        raise from_executor(error) from error
    if files and rows[-1].problem is not None:
        raise InputError(
            f"input {source.uri}: Spark lists files, but an executor can open none of {len(rows)} that it "
            f"tried. The first, {files[0]}: {rows[0].problem}. Expected the same paths and rights on all "
            "executors as on the driver (docs/stores.md). No file is marked as seen"
        )


def _detect_format(spark: SparkSession, options: SourceOptions) -> str:
    """Return the format of an input: `files`, `webdataset`, `parquet`, `npy` or `delta`."""
    if is_table_name(spark, options.uri) or _is_delta(spark, options.uri):
        return "delta"
    names = files_below(spark, absolute_uri(options.uri), options.glob)
    try:
        return find_format(options.uri, names, has_vectors=options.has_vectors)
    except Py4JJavaError:
        return FILES  # ImageFiles reports the error


def _is_delta(spark: SparkSession, uri: str) -> bool:
    """Whether a directory is a Delta table."""
    try:
        return exists(spark, f"{absolute_uri(uri).rstrip('/')}/_delta_log")
    except Py4JJavaError:
        return False
