"""`Source`, the base class of all sources, and the options that describe one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, cast

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StructField, StructType

from nsfw_spark.errors import ImageError, InputError
from nsfw_spark.options import Format
from nsfw_spark.readers import Chunk, Reader, VectorReader
from nsfw_spark.readers.chunk import MOST_BYTES
from nsfw_spark.readers.storage import HADOOP_PREFIXES, Storage
from nsfw_spark.spark.hadoop import settings
from nsfw_spark.spark.schema import CONTENT, IMAGE_ID, MODIFICATION_TIME, SOURCE_FILE, arrow_schema

FILE_COLUMNS: Final = (IMAGE_ID, SOURCE_FILE, MODIFICATION_TIME)
"""First columns of a source whose files hold many images each."""
IMAGE_BYTES: Final = 50_000
"""Estimated length of an image, for the size of a micro-batch."""
VECTOR_BYTES: Final = 4_000
"""The same of an embedding."""
_SHOWN_IDS: Final = 3


@dataclass(frozen=True)
class SourceOptions:
    """The user's description of an input."""

    uri: str
    """A path, a URI, or the name of a table in a catalog, as the user wrote it."""
    format: Format = "auto"
    glob: str | None = None
    """Only files whose names match; None means the names that the format expects."""
    content_column: str | None = None
    """Column with the images or embeddings; None finds it by its type."""
    id_column: str | None = None
    """Column with the image_ids; None means `image_id` if it exists, else a row's place, `file#row`."""
    carry: str = "all"
    """Columns to carry: `all`, `none`, or names with commas between them."""
    max_bytes: int = MOST_BYTES
    """Longer images are not read."""
    embedding_dim: int | None = None
    """D, the numbers in an embedding of the model."""
    may_be_empty: bool = False
    """Whether a directory without files is no error, but `Source.lack`."""
    reader_options: Mapping[str, str] = field(default_factory=dict)
    """Options of Auto Loader."""
    taken: tuple[str, ...] = ()
    """Columns that this model adds to image_scores; a carried column of such a name is renamed."""

    @property
    def has_vectors(self) -> bool:
        """Whether the input holds embeddings instead of images."""
        return self.format == "embeddings"

    @property
    def dimension(self) -> int:
        """D; the job has checked that the model has one before it opens a source of embeddings."""
        return self.embedding_dim or 0

    @property
    def named(self) -> list[str]:
        """The columns that `carry` names."""
        return [] if self.carry in ("all", "none") else [name.strip() for name in self.carry.split(",")]

    def carried(self, columns: Sequence[StructField]) -> list[StructField]:
        """Return the columns to carry."""
        return [column for column in columns if self.carry == "all" or column.name in self.named]

    def check_named(self, columns: Sequence[str], *others: str | None) -> None:
        """Check that the columns exist which the user named.

        Args:
            columns: Names of all columns of the source.
            others: Names from other options than `carry`.

        Raises:
            InputError: A column does not exist.
        """
        if wrong := [name for name in (*others, *self.named) if name is not None and name not in columns]:
            raise InputError(
                f"input {self.uri} has no column {', '.join(wrong)}. Its columns: {', '.join(columns)}"
            )


@dataclass(frozen=True)
class Limit:
    """The size of one micro-batch."""

    num_images: int
    num_files: int | None = None
    """Exact number of files; None means as many files as hold about `num_images`."""


class Source(ABC):
    """A place with images, checked to exist: what Spark lists there, and how the workers read it.

    Attributes:
        spark: The session.
        uri: The full URI, for the table `runs` and the name of the checkpoint.
        columns: Columns of the reader's chunks that go into image_scores: image_id and the carried columns.
        reader: Reads the listed rows in the Python workers.
        has_vectors: Whether the reader yields embeddings instead of images.
        has_image_files: Whether each listed file is one image, and its URI the image_id.
        file_column: Column of image_scores with the listed file of a row; None if Spark lists no files.
        max_bytes: Longest file that Spark itself reads.
        lack: Why there is nothing to list now, as a message; None if there are files or rows.
    """

    spark: SparkSession
    uri: str
    columns: StructType
    reader: Reader | VectorReader
    has_vectors: bool = False
    has_image_files: bool = False
    file_column: str | None = None
    max_bytes: int = MOST_BYTES
    lack: str | None = None

    @abstractmethod
    def stream(self, limit: Limit) -> DataFrame:
        """List new rows, as a stream."""

    @abstractmethod
    def batch(self) -> DataFrame:
        """List all rows that exist now."""

    def ids(self) -> DataFrame | None:
        """Return all ids as one column `image_id`; None if an image_id is the place of its image."""
        return None

    def is_cut_off(self, error: str) -> bool:  # noqa: ARG002 - most streams never are
        """Whether an error says that the stream can never go on: what it has not seen is in no log."""
        return False

    def left_over(self, scores: DataFrame, *, is_cut_off: bool) -> DataFrame | None:  # noqa: ARG002 - see above
        """List the rows that the stream skipped and that are not in `scores`; None if it skips none."""
        return None

    def storage(self) -> Storage:
        """Return the storage from which Python workers open files, with Spark's credentials."""
        return Storage(settings(self.spark, HADOOP_PREFIXES))

    def images(self, limit: Limit | None = None) -> DataFrame:
        """Return the images, `image_id` and the carried columns: new ones as a stream if there is a limit."""
        return self.read(self.batch() if limit is None else self.stream(limit))

    def read(self, listed: DataFrame) -> DataFrame:
        """Return `columns` and `content` of the images in listed rows; null content for unreadable images."""
        result, reader = StructType([*self.columns.fields, CONTENT]), cast("Reader", self.reader)

        def read(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            schema = arrow_schema(result)
            for chunk in reader.read(batches):
                yield _batch(chunk, schema)

        return listed.mapInArrow(read, result)


def _batch(chunk: Chunk, schema: pa.Schema) -> pa.RecordBatch:
    contents = [None if isinstance(content, ImageError) else content for content in chunk.contents]
    columns = [chunk.columns.column(name) for name in schema.names[:-1]]
    arrays = [*columns, pa.array(contents, schema.types[-1])]
    return pa.RecordBatch.from_arrays(
        [array.cast(type_) for array, type_ in zip(arrays, schema.types, strict=True)], schema=schema
    )


def check_ids(source: Source) -> None:
    """Check in one pass over the id column that each image has an id of its own.

    Raises:
        InputError: Ids are null or repeated.
    """
    ids = source.ids()
    if ids is None:
        return
    counts = ids.groupBy("image_id").agg(F.count(F.lit(1)).alias("number"))
    wrong = counts.filter(F.col("image_id").isNull() | (F.col("number") > 1)).orderBy(F.desc("number"))
    if rows := wrong.limit(_SHOWN_IDS).collect():
        shown = "; ".join(
            f"{'null' if row.image_id is None else row.image_id}, {row.number} times" for row in rows
        )
        raise InputError(
            f"input {source.uri}: ids are null or repeated: {shown}. Expected a different id in each row: "
            "name another --id-column. For files without one, leave the option out"
        )


def quoted(name: str) -> str:
    """Return a column's name for SQL expressions, dots and backticks included."""
    return f"`{name.replace('`', '``')}`"
