"""Delta tables with a column of images or embeddings.

The table's log says which rows are new. Spark reads the rows, because only it knows which files of a table
are current; `readers.files` and `readers.vectors` take the images or embeddings from them.
"""

from __future__ import annotations

from itertools import chain
from typing import Final

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, FloatType, StructField, StructType

from nsfw_spark.errors import InputError
from nsfw_spark.readers.files import ContentReader
from nsfw_spark.readers.vectors import VectorColumnReader
from nsfw_spark.spark.hadoop import file_system, in_lists
from nsfw_spark.spark.schema import IMAGE_ID
from nsfw_spark.spark.sources.columns import content_columns
from nsfw_spark.spark.sources.source import (
    IMAGE_BYTES,
    VECTOR_BYTES,
    Limit,
    Source,
    SourceOptions,
    quoted,
)
from nsfw_spark.spark.tables import only_adds
from nsfw_spark.uris import absolute_uri, in_sql, may_be_table

_COMMITS_AT_ONCE: Final = 1_000
_OF_COLUMNS: Final = ("DROP COLUMNS", "RENAME COLUMN")


class DeltaRows(Source):
    """A Delta table, by its directory or its name in a catalog; the image_id is a column's value."""

    def __init__(self, spark: SparkSession, options: SourceOptions) -> None:
        self.spark = spark
        self.has_vectors = options.has_vectors
        self._bytes_per_row = VECTOR_BYTES if self.has_vectors else IMAGE_BYTES
        self._is_named = is_table_name(spark, options.uri)
        self.uri = options.uri if self._is_named else _full_uri(spark, options.uri)
        schema = self._table().schema
        found = content_columns(schema, options)
        if found.id is None:
            raise InputError(
                f"input {options.uri} is a Delta table, whose rows have no fixed place; expected a column "
                f"with a different id in each row: --id-column NAME. Its columns: {', '.join(schema.names)}"
            )
        self.columns = StructType([IMAGE_ID, *found.carried.values()])
        self._image_id = F.col(quoted(found.id)).cast("string").alias("image_id")
        carried = [F.col(quoted(name)).alias(field.name) for name, field in found.carried.items()]
        content = self._content(schema[str(found.content)])
        self._columns = [self._image_id, *carried, content.alias("content")]
        self.reader = VectorColumnReader(options.dimension) if self.has_vectors else ContentReader()

    def _content(self, field: StructField) -> Column:
        column = F.col(quoted(field.name))
        if self.has_vectors:
            return column.cast(ArrayType(FloatType()))
        return column["bytes"] if isinstance(field.dataType, StructType) else column

    def stream(self, limit: Limit) -> DataFrame:
        """Read new rows: see `Source.stream`."""
        reader = self.spark.readStream.format("delta")
        if limit.num_files is None:
            reader = reader.option(
                "maxBytesPerTrigger",
                str(limit.num_images * self._bytes_per_row),
            )
        else:
            reader = reader.option("maxFilesPerTrigger", str(limit.num_files))
        # The stream skips commits that changed or deleted rows, even rows that they added: see `left_over`.
        reader = reader.option("skipChangeCommits", "true")
        rows = reader.table(in_sql(self.uri)) if self._is_named else reader.load(self.uri)
        return rows.select(self._columns)

    def batch(self) -> DataFrame:
        """Read all rows: see `Source.batch`."""
        return self._table().select(self._columns)

    def ids(self) -> DataFrame:
        """Return all ids: see `Source.ids`."""
        return self._table().select(self._image_id)

    def is_cut_off(self, error: str) -> bool:
        """Whether Delta has deleted commits from the log before the stream saw them: see `Source`."""
        return "LOG_FILE_NOT_FOUND_FOR_STREAMING_SOURCE" in error or "failOnDataLoss" in error

    def left_over(self, scores: DataFrame, *, is_cut_off: bool) -> DataFrame | None:
        """List the rows whose image_id is not in `scores`, if a commit changed or deleted rows."""
        name = in_sql(self.uri) if self._is_named else f"delta.{quoted(self.uri)}"
        log = self.spark.sql(f"DESCRIBE HISTORY {name}").select("version", "operation", "operationParameters")
        commits = chain.from_iterable(in_lists(log, _COMMITS_AT_ONCE))
        if not is_cut_off and all(only_adds(commit) or commit.operation in _OF_COLUMNS for commit in commits):
            return None
        return self.batch().join(scores.select("image_id"), "image_id", "left_anti")

    def _table(self) -> DataFrame:
        if self._is_named:
            return self.spark.table(in_sql(self.uri))
        return self.spark.read.format("delta").load(self.uri)


def is_table_name(spark: SparkSession, uri: str) -> bool:
    """Whether the input is a table of a catalog: `schema.table` or `catalog.schema.table`."""
    return may_be_table(uri) and bool(spark.catalog.tableExists(in_sql(uri)))


def _full_uri(spark: SparkSession, uri: str) -> str:
    _, path = file_system(spark, absolute_uri(uri))
    return str(path.toString())
