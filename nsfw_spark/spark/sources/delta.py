"""Delta tables with a column of images, or of embeddings; what is new the table's own log says.

Spark reads the rows, since only it knows which of a Delta table's files are alive.
"""

from __future__ import annotations

from typing import ClassVar, Final

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, FloatType, StructType

from nsfw_spark.errors import InputError
from nsfw_spark.readers import Reader, VectorReader
from nsfw_spark.readers.files import ContentReader
from nsfw_spark.readers.vectors import VectorColumnReader
from nsfw_spark.spark.hadoop import file_system, in_chunks
from nsfw_spark.spark.schema import IMAGE_ID
from nsfw_spark.spark.sources.columns import TableColumns, image_columns, vector_columns
from nsfw_spark.spark.sources.source import Limit, Source, SourceOptions
from nsfw_spark.spark.tables import only_adds
from nsfw_spark.uris import absolute_uri

_COMMITS_AT_ONCE: Final = 1_000


class DeltaImages(Source):
    """A Delta table, by its directory or its name in a catalog; the image_id is a column's value."""

    bytes_per_image: ClassVar[int] = 50_000

    def __init__(self, spark: SparkSession, options: SourceOptions) -> None:
        self.spark = spark
        self._is_named = is_table_name(spark, options.uri)
        self.uri = options.uri if self._is_named else _full_uri(spark, options.uri)
        schema = self._table().schema
        self._found = self.choose(schema, options)
        self._dimension = options.dimension
        if self._found.id is None:
            raise InputError(
                f"input {options.uri} is a Delta table, whose rows have no fixed place; expected a column "
                f"that tells them apart: --id-column NAME. Its columns: {', '.join(schema.names)}"
            )
        self.id_column = self._found.id
        self.columns = StructType([IMAGE_ID, *self._found.carried.values()])
        self.reader = self.make_reader()

    def choose(self, schema: StructType, options: SourceOptions) -> TableColumns:
        """Say which columns are what."""
        return image_columns(schema, options)

    def make_reader(self) -> Reader | VectorReader:
        """Return what takes images from rows."""
        return ContentReader()

    def content(self) -> Column:
        """Return the column that the reader wants."""
        column = F.col(_quoted(self._found.content))
        type_ = self._table().schema[self._found.content].dataType
        return (column["bytes"] if isinstance(type_, StructType) else column).alias("content")

    def stream(self, limit: Limit) -> DataFrame:
        """Read what is new: see `Source.stream`."""
        size = limit.num_images * self.bytes_per_image
        reader = self.spark.readStream.format("delta").option("maxBytesPerTrigger", str(size))
        if limit.num_files is not None:
            reader = self.spark.readStream.format("delta").option("maxFilesPerTrigger", str(limit.num_files))
        # What a commit added that also changed or deleted rows, the stream passes over: see `has_changed`.
        reader = reader.option("skipChangeCommits", "true")
        return self._prepared(reader.table(self.uri) if self._is_named else reader.load(self.uri))

    def batch(self) -> DataFrame:
        """Read all that is there now: see `Source.batch`."""
        return self._prepared(self._table())

    def ids(self) -> DataFrame:
        """Return the column `image_id` of all that is there now: see `Source.ids`."""
        return self._table().select(F.col(_quoted(self.id_column)).cast("string").alias("image_id"))

    def has_changed(self) -> bool:
        """Whether, as far back as its log goes, a commit did more to the table than add rows."""
        name = self.uri if self._is_named else f"delta.`{self.uri.replace('`', '``')}`"
        history = self.spark.sql(f"DESCRIBE HISTORY {name}").select("operation", "operationParameters")
        return not all(all(map(only_adds, commits)) for commits in in_chunks(history, _COMMITS_AT_ONCE))

    def left_over(self, scores: DataFrame) -> DataFrame:
        """Read those rows whose image_id is not in `scores`: what the stream passed over."""
        return self.batch().join(scores.select("image_id"), "image_id", "left_anti")

    def _table(self) -> DataFrame:
        if self._is_named:
            return self.spark.table(self.uri)
        return self.spark.read.format("delta").load(self.uri)

    def _prepared(self, rows: DataFrame) -> DataFrame:
        image_id = F.col(_quoted(self.id_column)).cast("string").alias("image_id")
        carried = [F.col(_quoted(name)).alias(field.name) for name, field in self._found.carried.items()]
        return rows.select(image_id, *carried, self.content())


class DeltaVectors(DeltaImages):
    """A Delta table of embeddings."""

    bytes_per_image = 4_000
    has_vectors = True

    def choose(self, schema: StructType, options: SourceOptions) -> TableColumns:
        """Say which columns are what."""
        return vector_columns(schema, options)

    def make_reader(self) -> VectorReader:
        """Return what takes embeddings from rows."""
        return VectorColumnReader(self._dimension)

    def content(self) -> Column:
        """Return the column that the reader wants, as float."""
        return F.col(_quoted(self._found.content)).cast(ArrayType(FloatType())).alias("content")


def is_table_name(spark: SparkSession, uri: str) -> bool:
    """Whether this is a table of a catalog: `schema.table`, `catalog.schema.table`."""
    parts = uri.split(".")
    is_name = len(parts) in (2, 3) and all(part.isidentifier() for part in parts)
    return is_name and bool(spark.catalog.tableExists(uri))


def _full_uri(spark: SparkSession, uri: str) -> str:
    _, path = file_system(spark, absolute_uri(uri))
    return str(path.toString())


def _quoted(name: str) -> str:
    return f"`{name.replace('`', '``')}`"
