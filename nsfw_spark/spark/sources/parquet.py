"""Parquet files with a column of images.

The Python workers read them, and not Spark: so a damaged file costs its own rows and not the job, each row
knows its place (`file#row`), and the bytes are not copied through Java.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import from_arrow_type
from pyspark.sql.types import StructField, StructType

from nsfw_spark.errors import ImageError
from nsfw_spark.readers.parquet import PART_BYTES, ParquetReader
from nsfw_spark.readers.storage import Storage
from nsfw_spark.readers.vectors import NpyReader, ParquetVectorReader, metadata_paths
from nsfw_spark.spark.hadoop import exists, literally
from nsfw_spark.spark.schema import arrow_schema
from nsfw_spark.spark.session import num_slots
from nsfw_spark.spark.sources.columns import id_and_carried, image_columns, vector_columns
from nsfw_spark.spark.sources.files import LISTED, ListedFiles
from nsfw_spark.spark.sources.source import FILE_COLUMNS, SourceOptions
from nsfw_spark.uris import absolute_uri

_TASKS_PER_SLOT: Final = 3


class ListedParts(ListedFiles):
    """Files that several tasks may share: each takes the rows of its part."""

    file_column = "source_file"
    id_column: str | None = None

    def ids(self) -> DataFrame | None:
        """Return the values of the column of ids: see `Source.ids`."""
        return None if self.id_column is None else self.ids_of(self.uri, self.id_column)

    def ids_of(self, uri: str, id_column: str) -> DataFrame:
        """Return the values of a column of the Parquet files in a directory, or of one."""
        files = self.spark.read.options(recursiveFileLookup="true", pathGlobFilter="*.parquet")
        # A damaged file is for the reader to tell of.
        rows = files.options(ignoreCorruptFiles="true", mergeSchema="true").parquet(literally(uri))
        return rows.select(F.col(f"`{id_column}`").cast("string").alias("image_id"))

    def prepared(self, files: DataFrame) -> DataFrame:
        """List the parts of each file, dealt out evenly."""
        last_part = F.floor((F.greatest(F.col("length"), F.lit(1)) - 1) / PART_BYTES)
        parts = files.select(
            *LISTED, F.explode(F.sequence(F.lit(0), last_part)).alias("part"), (last_part + 1).alias("parts")
        )
        num_tasks = (num_slots(self.spark) or 1) * _TASKS_PER_SLOT
        return parts.repartitionByRange(num_tasks, "path", "part")


class ParquetImages(ListedParts):
    """Parquet files; the image_id is a column's value, or `file#row`."""

    holds = "Parquet files"
    suffixes = ("parquet",)
    bytes_per_image = 50_000

    def __init__(self, spark: SparkSession, options: SourceOptions) -> None:
        super().__init__(spark, options)
        storage = self.storage()
        found = image_columns(self.learn(lambda uri: parquet_schema(storage, uri)), options)
        carried = list(found.carried.values())
        self.id_column = found.id
        self.reader = ParquetReader(
            storage, found.content, found.id, tuple(found.carried), arrow_schema(StructType(carried))
        )
        self.columns = StructType([*FILE_COLUMNS, *carried])


def parquet_schema(storage: Storage, uri: str) -> StructType:
    """Return a file's columns, but for those that Spark has no type for, which it names.

    Raises:
        ImageError: The file cannot be read.
    """
    try:
        with storage.open_file(uri) as file:
            found = pq.read_schema(file)
    except (OSError, pa.ArrowException) as error:
        raise ImageError("undecodable", str(error)) from error
    columns, unknown = StructType(), []
    for field in found:
        try:
            columns.add(StructField(field.name, from_arrow_type(_known(field.type))))
        except Exception:  # noqa: BLE001 - which of pyspark's errors it is differs by version
            unknown.append(field.name)
    if unknown:
        sys.stderr.write(f"nsfw-spark: {uri}: Spark has no type for {', '.join(unknown)}: left out\n")
    return columns


def _known(type_: pa.DataType) -> pa.DataType:
    """Return a type that Spark knows, if there is one that holds the same values."""
    if pa.types.is_dictionary(type_):
        return _known(type_.value_type)
    if pa.types.is_float16(type_):
        return pa.float32()
    if pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_):
        return pa.list_(_known(type_.value_type))
    if pa.types.is_unsigned_integer(type_):
        return {8: pa.int16(), 16: pa.int32(), 32: pa.int64(), 64: pa.int64()}[type_.bit_width]
    return type_


_CLIP_RETRIEVAL: Final = "img_emb"  # the folder with the images' embeddings; beside it may be the texts'


class ParquetVectors(ListedParts):
    """Parquet files with a column of embeddings."""

    holds = "Parquet files"
    suffixes = ("parquet",)
    bytes_per_image = 4_000
    has_vectors = True

    def __init__(self, spark: SparkSession, options: SourceOptions) -> None:
        super().__init__(spark, options)
        storage = self.storage()
        found = vector_columns(self.learn(lambda uri: parquet_schema(storage, uri)), options)
        carried = list(found.carried.values())
        self.id_column = found.id
        self.columns = StructType([*FILE_COLUMNS, *carried])
        self.reader = ParquetVectorReader(
            storage,
            found.content,
            options.dimension,
            found.id,
            tuple(found.carried),
            arrow_schema(StructType(carried)),
        )


class NpyFiles(ListedParts):
    """`.npy` files; what is known of their rows is in a Parquet file beside each."""

    holds = ".npy files"
    suffixes = ("npy",)
    bytes_per_image = 4_000
    has_vectors = True

    def __init__(self, spark: SparkSession, options: SourceOptions) -> None:
        super().__init__(spark, _images_of_clip_retrieval(spark, options))
        beside = f"{self.uri.rpartition('/')[0]}/metadata"
        self._metadata = beside if self.uri.endswith(f"/{_CLIP_RETRIEVAL}") else self.uri
        storage = self.storage()
        found = self.learn(lambda uri: _columns_beside(storage, uri))
        self.id_column, carried = id_and_carried(found, options)
        self.columns = StructType([*FILE_COLUMNS, *carried.values()])
        self.reader = NpyReader(
            storage,
            options.dimension,
            self.id_column,
            tuple(carried),
            arrow_schema(StructType(list(carried.values()))),
        )

    def ids(self) -> DataFrame | None:
        """Return the values of the column of ids: see `Source.ids`."""
        return None if self.id_column is None else self.ids_of(self._metadata, self.id_column)


def _images_of_clip_retrieval(spark: SparkSession, options: SourceOptions) -> SourceOptions:
    """Choose the images' embeddings where clip-retrieval wrote those of texts beside them."""
    images = f"{absolute_uri(options.uri).rstrip('/')}/{_CLIP_RETRIEVAL}"
    return replace(options, uri=images) if exists(spark, images) else options


def _columns_beside(storage: Storage, npy: str) -> StructType:
    """Return the columns of the Parquet file beside a `.npy` file; none where there is no such file.

    Raises:
        ImageError: It is there and cannot be read.
    """
    for uri in metadata_paths(npy):
        try:
            storage.open_file(uri).close()
        except OSError:
            continue
        return parquet_schema(storage, uri)
    return StructType()
