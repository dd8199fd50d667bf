"""What all sources have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import StructField, StructType

from nsfw_spark.errors import InputError
from nsfw_spark.readers import Reader, VectorReader
from nsfw_spark.readers.chunk import MOST_BYTES
from nsfw_spark.spark.schema import IMAGE_ID, MODIFICATION_TIME, SOURCE_FILE


@dataclass(frozen=True)
class SourceOptions:
    """What the user said of the input."""

    uri: str
    """As it was given: a path, a URI, or the name of a table in a catalog."""
    format: str = "auto"
    glob: str | None = None
    """Only files whose names match; None: those that the format expects."""
    content_column: str | None = None
    """Column with the images, or with the embeddings; None: found by its type."""
    id_column: str | None = None
    """Column whose values are the image_ids; None: where the row lies."""
    carry: str = "all"
    """Columns to carry along: `all`, `none`, or names with commas between them."""
    max_bytes: int = MOST_BYTES
    """Of an encoded image; a longer file, or entry of a tar, is not read."""
    embedding_dim: int | None = None
    """D, numbers in an embedding as the model's head wants it."""
    taken: tuple[str, ...] = ()
    """Columns that this model adds to image_scores: one of the source with such a name gets another."""

    @property
    def dimension(self) -> int:
        """D; what the model has been checked to have before a source of embeddings is opened."""
        return self.embedding_dim or 0

    def carries(self, name: str) -> bool:
        """Whether a column of the source is carried along."""
        if self.carry in ("all", "none"):
            return self.carry == "all"
        return name in [each.strip() for each in self.carry.split(",")]


@dataclass(frozen=True)
class Limit:
    """How much one micro-batch takes up."""

    num_images: int
    num_files: int | None = None
    """If the user said so, in files; else as many as hold about `num_images`."""


class Source(ABC):
    """Images, checked to be there, and how they are read: what Spark lists, and what a reader makes of it.

    Attributes:
        uri: The full URI: what the table `runs` says, and what the checkpoint is named after.
        columns: Of the reader's chunks, those that go into image_scores: image_id, and what is carried along.
        reader: Reads what is listed, in the Python workers.
        has_vectors: Whether the reader finds embeddings and not images.
        file_column: Column of image_scores that tells which listed file a row is from; None where Spark
            does not list files.
    """

    uri: str
    columns: StructType
    reader: Reader | VectorReader
    has_vectors: bool = False
    file_column: str | None = None

    @abstractmethod
    def stream(self, limit: Limit) -> DataFrame:
        """List what is new, as a stream."""

    @abstractmethod
    def batch(self) -> DataFrame:
        """List all that is there now."""

    def ids(self) -> DataFrame | None:
        """Return the values of the column of ids that are there now; None where the ids are places.

        Returns:
            One column, `image_id`.
        """
        return None


def check_ids(source: Source) -> None:
    """Make sure that the values of a column of ids tell images apart: one pass over that column.

    Raises:
        InputError: Some are null, or there more than once.
    """
    ids = source.ids()
    if ids is None:
        return
    counts = ids.groupBy("image_id").agg(F.count(F.lit(1)).alias("number"))
    wrong = counts.filter(F.col("image_id").isNull() | (F.col("number") > 1)).orderBy(F.desc("number"))
    if rows := wrong.limit(_SHOWN).collect():
        shown = "; ".join(
            f"{'null' if row.image_id is None else row.image_id}, {row.number} times" for row in rows
        )
        raise InputError(
            f"input {source.uri}: ids are null or repeated: {shown}. Expected a column that tells images "
            "apart: another --id-column, or of files none, for file#row"
        )


_SHOWN: Final = 3
FILE_COLUMNS: Final = (IMAGE_ID, SOURCE_FILE, MODIFICATION_TIME)
"""Of sources whose files hold many images each."""


def chosen(columns: Iterable[StructField], options: SourceOptions) -> list[StructField]:
    """Return those columns that are carried along."""
    return [field for field in columns if options.carries(field.name)]
