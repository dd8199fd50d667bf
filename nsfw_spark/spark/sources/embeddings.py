"""Embeddings in files: a column of Parquet files, or `.npy` files as clip-retrieval writes them.

Of Delta tables: `delta.DeltaVectors`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.types import StructType

from nsfw_spark.readers.storage import Storage
from nsfw_spark.readers.vectors import NpyReader, ParquetVectorReader, metadata_paths
from nsfw_spark.spark.hadoop import exists
from nsfw_spark.spark.schema import arrow_schema
from nsfw_spark.spark.sources.columns import id_and_carried, vector_columns
from nsfw_spark.spark.sources.parquet import ListedParts, parquet_schema
from nsfw_spark.spark.sources.source import FILE_COLUMNS, SourceOptions
from nsfw_spark.uris import absolute_uri

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
