"""Parquet and `.npy` files on the driver: lists their parts. The worker's half is `readers.parquet`.

`readers.vectors` is the half for embeddings. Workers read the files instead of Spark. So a damaged file costs
its own rows and not the job, each row knows its place (`file#row`), and no bytes are copied through Java.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import from_arrow_type
from pyspark.sql.types import StructField, StructType

from nsfw_spark.errors import ImageError
from nsfw_spark.formats import SUFFIXES
from nsfw_spark.readers.parquet import PART_BYTES, ParquetReader, RowColumns
from nsfw_spark.readers.storage import Storage
from nsfw_spark.readers.vectors import (
    IMAGE_FOLDER,
    METADATA_FOLDER,
    NpyReader,
    ParquetVectorReader,
    metadata_paths,
)
from nsfw_spark.spark.hadoop import exists, literally
from nsfw_spark.spark.session import num_slots
from nsfw_spark.spark.sources.columns import TableColumns, content_columns, metadata_columns
from nsfw_spark.spark.sources.files import LISTED, ListedFiles
from nsfw_spark.spark.sources.source import FILE_COLUMNS, IMAGE_BYTES, VECTOR_BYTES, SourceOptions, quoted
from nsfw_spark.uris import absolute_uri

_TASKS_PER_SLOT: Final = 3
_NONE: Final = TableColumns(None, None, {})  # of a directory without files


class ListedParts(ListedFiles):
    """Files that several tasks may share: each task reads the rows of its part."""

    file_column = "source_file"

    def take(self, found: TableColumns) -> RowColumns:
        """Set `columns` and the id column; return the same columns for the reader."""
        self._id_column = found.id
        self.columns = StructType([*FILE_COLUMNS, *found.carried.values()])
        return found.for_reader

    def ids(self) -> DataFrame | None:
        """Return the values of the id column: see `Source.ids`."""
        if self._id_column is None:
            return None
        files = self.spark.read.options(recursiveFileLookup="true", pathGlobFilter="*.parquet")
        # The reader reports damaged files.
        files = files.options(ignoreCorruptFiles="true", mergeSchema="true")
        rows = files.parquet(literally(self.ids_uri()))
        return rows.select(F.col(quoted(self._id_column)).cast("string").alias("image_id"))

    def ids_uri(self) -> str:
        """Return the Parquet file with the id column, or the directory of such files."""
        return self.uri

    def prepared(self, files: DataFrame) -> DataFrame:
        """List the parts of each file, spread evenly over the tasks."""
        last_part = F.floor((F.greatest(F.col("length"), F.lit(1)) - 1) / PART_BYTES)
        parts = files.select(
            *LISTED, F.explode(F.sequence(F.lit(0), last_part)).alias("part"), (last_part + 1).alias("parts")
        )
        num_tasks = (num_slots(self.spark) or 1) * _TASKS_PER_SLOT
        return parts.repartitionByRange(num_tasks, "path", "part")


class ParquetFiles(ListedParts):
    """Parquet files of images or embeddings; the image_id is a column's value, or `file#row`."""

    holds = "Parquet files"
    suffixes = SUFFIXES["parquet"]

    def __init__(self, spark: SparkSession, options: SourceOptions) -> None:
        self.has_vectors = options.has_vectors
        self.bytes_per_image = VECTOR_BYTES if self.has_vectors else IMAGE_BYTES
        super().__init__(spark, options)
        storage = self.storage()
        found = _NONE if self.lack else content_columns(self.learn(partial(parquet_schema, storage)), options)
        columns = self.take(found)
        if self.has_vectors:
            self.reader = ParquetVectorReader(storage, options.dimension, columns)
        else:
            self.reader = ParquetReader(storage, columns)


class NpyFiles(ListedParts):
    """`.npy` files of embeddings; a Parquet file beside each holds the ids and the carried columns."""

    holds = ".npy files"
    suffixes = SUFFIXES["npy"]
    bytes_per_image = VECTOR_BYTES
    has_vectors = True

    def __init__(self, spark: SparkSession, options: SourceOptions) -> None:
        # clip-retrieval writes the embeddings of texts beside those of images: only images are scored.
        images = f"{absolute_uri(options.uri).rstrip('/')}/{IMAGE_FOLDER}"
        super().__init__(spark, replace(options, uri=images) if exists(spark, images) else options)
        storage = self.storage()
        found = (
            _NONE if self.lack else metadata_columns(self.learn(partial(_schema_beside, storage)), options)
        )
        columns = self.take(found)
        self.reader = NpyReader(storage, options.dimension, columns)

    def ids_uri(self) -> str:
        """Return the directory of the Parquet files: see `ListedParts.ids_uri`."""
        parent, _, name = self.uri.rpartition("/")
        return f"{parent}/{METADATA_FOLDER}" if name == IMAGE_FOLDER else self.uri


def _schema_beside(storage: Storage, npy: str) -> StructType:
    """Return the columns of the Parquet file beside a `.npy` file; none if there is no such file."""
    for uri in metadata_paths(npy):
        try:
            storage.open_file(uri).close()
        except FileNotFoundError:
            continue
        return parquet_schema(storage, uri)
    return StructType()


def parquet_schema(storage: Storage, uri: str) -> StructType:
    """Return a file's columns as Spark types; warn about unsupported columns and leave them out.

    Raises:
        ImageError: The file cannot be read.
    """
    try:
        with storage.open_file(uri) as file:
            schema = pq.read_schema(file)
    except (OSError, pa.ArrowException) as error:
        raise ImageError("undecodable", str(error)) from error
    columns, unsupported = StructType(), []
    for field in schema:
        try:
            columns.add(StructField(field.name, from_arrow_type(_supported(field.type))))
        except Exception:  # noqa: BLE001 - the error's class depends on pyspark's version
            unsupported.append(field.name)
    if unsupported:
        sys.stderr.write(
            f"nsfw-spark: {uri}: Spark has no type for {', '.join(unsupported)}; these columns are left out\n"
        )
    return columns


def _supported(type_: pa.DataType) -> pa.DataType:
    """Return a type of Spark's that holds the same values, or the type itself."""
    if pa.types.is_dictionary(type_):
        return _supported(type_.value_type)
    if pa.types.is_float16(type_):
        return pa.float32()
    if pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_):
        return pa.list_(_supported(type_.value_type))
    if pa.types.is_unsigned_integer(type_):
        return {8: pa.int16(), 16: pa.int32(), 32: pa.int64(), 64: pa.int64()}[type_.bit_width]
    return type_
