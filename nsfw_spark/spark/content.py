"""Joins the bytes of images to rows without them: for `--content-from` and for `export`.

In: rows of image_scores, or of a table like it, and the sources with their images. Out: the same rows, no
more and no less, with the column `content`. It is null if no source has the image, or if the source now has
other bytes than were scored: a score says nothing about other bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import reduce
from typing import Final

import pyarrow as pa
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from nsfw_spark.errors import ImageError, InputError
from nsfw_spark.readers.chunk import CHUNK_ROWS
from nsfw_spark.readers.storage import Storage
from nsfw_spark.spark.schema import CONTENT
from nsfw_spark.spark.sources import ListedFiles, Source, SourceOptions, open_source
from nsfw_spark.spark.tables import RUNS, Output

_READS_AT_ONCE: Final = 8  # in a task; a bucket answers each read in tens of milliseconds
_TASK_BYTES: Final = 128 << 20
_FOUND: Final = "_found"


@dataclass(frozen=True)
class Contents:
    """The images of some sources, found by their image_id."""

    sources: tuple[Source, ...]

    @property
    def uri(self) -> str:
        """The sources' URIs; they identify the images in commits."""
        return " ".join(source.uri for source in self.sources)

    def add_to(self, rows: DataFrame) -> DataFrame:
        """Return the rows with their images, in partitions of a good size to write."""
        return self.read_files(self._spread(self.join(rows)))

    def join(self, rows: DataFrame) -> DataFrame:
        """Return the rows in any order, with the images of tables and of files that hold many images each.

        The rows have `image_id` and `content_sha256`. A `content` that they have stays; it comes last.
        """
        rows = _with_column(rows)
        sources = [source for source in self.sources if not source.has_image_files]
        if not sources:
            return rows
        lacking = rows.filter(F.col("content").isNull())
        found = reduce(DataFrame.unionByName, (_images(source, lacking) for source in sources))
        joined = rows.join(_wanted(found, lacking), "image_id", "left")
        content = F.coalesce("content", _FOUND).alias("content")
        return joined.select(*rows.columns[:-1], content)

    def read_files(self, rows: DataFrame) -> DataFrame:
        """Return the rows in the same order and partitions, with the images of directories of files.

        An image_id there is a file's name: each task reads the images of its rows, and nothing is joined.
        """
        rows = _with_column(rows)
        files = [source for source in self.sources if source.has_image_files]
        if not files:
            return rows
        reader = _FileContents(files[0].storage(), tuple(source.uri for source in files))
        read = rows.mapInArrow(reader.fill, rows.schema)
        return read.withColumn(
            "content", F.when(_is_as_scored("content", "content_sha256"), F.col("content"))
        )

    def _spread(self, rows: DataFrame) -> DataFrame:
        """Repartition rows so that no task reads many files: rows without bytes are cheap to move."""
        if not all(source.has_image_files for source in self.sources):
            return rows  # the join has repartitioned them
        found = rows.agg(F.sum("length").alias("length")).collect()[0]
        return rows.repartition(1 + (found.length or 0) // _TASK_BYTES)


def open_contents(
    spark: SparkSession, uri: str | None, content_column: str | None = None, id_column: str | None = None
) -> Contents | None:
    """Open the source of the images to join in, by its URI or a table's name; None without a URI.

    Raises:
        InputError: The source is missing, empty, or holds no images.
    """
    if uri is None:
        return None
    options = SourceOptions(uri, content_column=content_column, id_column=id_column, carry="none")
    return Contents((open_source(spark, options),))


def recorded_contents(
    output: Output, content_column: str | None = None, id_column: str | None = None
) -> tuple[Contents, list[str]]:
    """Open the inputs that the table `runs` names; return their images and the problems of other inputs."""
    sources: list[Source] = []
    problems: list[str] = []
    for uri in _recorded_inputs(output):
        try:
            sources.append(
                open_source(output.spark, SourceOptions(uri, "auto", None, content_column, id_column, "none"))
            )
        except InputError as error:
            problems.append(str(error))
    return Contents(tuple(sources)), problems


def _recorded_inputs(output: Output) -> list[str]:
    """Return the inputs of all runs so far, sorted by name."""
    if not output.exists(RUNS):
        return []
    inputs = output.table(RUNS).select("input").filter(F.col("input").isNotNull())
    return sorted(row.input for row in inputs.distinct().collect())


def _with_column(rows: DataFrame) -> DataFrame:
    """Return the rows with `content` as their last column; null if there was no such column."""
    if "content" not in rows.columns:
        rows = rows.withColumn("content", F.lit(None).cast(CONTENT.dataType))
    return rows.select(*(name for name in rows.columns if name != "content"), "content")


def _images(source: Source, rows: DataFrame) -> DataFrame:
    """Return `image_id` and `content` of a source, from the files that may hold the images of the rows."""
    if isinstance(source, ListedFiles) and source.ids() is None:
        # An image_id with a position in a file begins with the file's name, in which `!/` may be too.
        file = F.regexp_replace("image_id", r"(?s)(!/.*|#\d+)$", "")
        if "source_file" in rows.columns:
            file = F.coalesce("source_file", file)
        files = rows.select(file.alias("path")).distinct()
        # Without the broadcast, Spark takes the listing for small and reads all its files in one task.
        images = source.read(source.batch().join(F.broadcast(files), "path", "left_semi"))
    else:
        images = source.images()
    return images.select("image_id", "content")


def _wanted(images: DataFrame, rows: DataFrame) -> DataFrame:
    """Return the images that the rows lack, each once, as `image_id` and `_found`."""
    lacking = rows.select(F.col("image_id").alias("_image_id"), F.col("content_sha256").alias("_sha256"))
    is_lacking = (F.col("image_id") == F.col("_image_id")) & _is_as_scored("content", "_sha256")
    wanted = images.filter(F.col("content").isNotNull()).join(lacking, is_lacking, "left_semi")
    return wanted.groupBy("image_id").agg(F.first("content").alias(_FOUND))


def _is_as_scored(content: str, sha256: str) -> Column:
    """Whether the bytes are the scored ones; true if only an embedding was scored: nothing can tell."""
    return F.col(sha256).isNull() | (F.sha2(F.col(content), 256) == F.col(sha256))


@dataclass(frozen=True)
class _FileContents:
    """Reads files in Python workers; small and picklable, because it travels to the executors."""

    storage: Storage
    directories: Sequence[str]
    """URIs; no file outside them is read, whatever an image_id says."""

    def fill(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield the batches in smaller ones, with their last column `content` filled."""
        with ThreadPoolExecutor(_READS_AT_ONCE) as threads:
            for batch in batches:
                for start in range(0, batch.num_rows, CHUNK_ROWS):
                    part = batch.slice(start, CHUNK_ROWS)
                    image_ids, known = part.column("image_id").to_pylist(), part.column("content")
                    contents = pa.array(threads.map(self._read, image_ids, known), known.type)
                    yield pa.RecordBatch.from_arrays([*part.columns[:-1], contents], schema=part.schema)

    def _read(self, image_id: str, content: pa.Scalar) -> bytes | None:
        if content.is_valid:
            return bytes(content.as_py())
        if not self._is_below(image_id):
            return None
        try:
            with self.storage.open_stream(image_id) as file:
                return bytes(file.read())
        except (FileNotFoundError, ImageError):
            return None

    def _is_below(self, uri: str) -> bool:
        names = uri.split("/")
        return ".." not in names and any(
            uri == directory or uri.startswith(f"{directory.rstrip('/')}/") for directory in self.directories
        )
