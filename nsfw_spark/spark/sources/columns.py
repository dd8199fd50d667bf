"""Chooses the columns of a table: the images or embeddings, the ids, and the carried columns.

In: a table's schema and the user's options. Out: `TableColumns`. Reads no data.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from pyspark.sql.types import (
    ArrayType,
    BinaryType,
    DataType,
    DoubleType,
    FloatType,
    StructField,
    StructType,
)

from nsfw_spark.errors import InputError
from nsfw_spark.readers.parquet import IMAGE_NAMES, RowColumns
from nsfw_spark.spark.schema import IMAGE_ID, arrow_schema, is_ours
from nsfw_spark.spark.sources.source import SourceOptions


@dataclass(frozen=True)
class TableColumns:
    """The columns of a source that is a table."""

    content: str | None
    """Column with the images or embeddings; None if they are not in the table."""
    id: str | None
    """Column with the image_ids: the user's choice, or a column called image_id."""
    carried: dict[str, StructField]
    """Name in the source → column of image_scores."""

    @property
    def for_reader(self) -> RowColumns:
        """The same columns, for a reader of Parquet files."""
        fields = arrow_schema(StructType(list(self.carried.values())))
        return RowColumns(self.content, self.id, dict(zip(self.carried, fields, strict=True)))


class _Kind(NamedTuple):
    """A kind of content."""

    plural: str
    types: str
    fits: Callable[[DataType], bool]
    names: tuple[str, ...]
    """Usual names of the column; the first that a table has wins over other columns of the type."""


def _is_image(type_: DataType) -> bool:
    if isinstance(type_, StructType):  # as Hugging Face stores images
        return "bytes" in type_.names and isinstance(type_["bytes"].dataType, BinaryType)
    return isinstance(type_, BinaryType)


def _is_vector(type_: DataType) -> bool:
    return isinstance(type_, ArrayType) and isinstance(type_.elementType, FloatType | DoubleType)


_IMAGES: Final = _Kind(
    "images",
    "binary, or a struct {bytes, path}",
    _is_image,
    IMAGE_NAMES,
)
_VECTORS: Final = _Kind(
    "embeddings",
    "an array of float or double",
    _is_vector,
    ("embedding", "embeddings", "image_embedding", "img_emb", "vector", "emb"),
)


def content_columns(schema: StructType, options: SourceOptions) -> TableColumns:
    """Choose the columns of a table of images, or of embeddings.

    Raises:
        InputError: No column holds them, it is unclear which one does, or a named column does not exist.
    """
    kind = _VECTORS if options.has_vectors else _IMAGES
    options.check_named(schema.names, options.content_column)
    content = options.content_column or _found(schema, options, kind)
    if not kind.fits(schema[content].dataType):
        raise InputError(
            f"input {options.uri}: column {content} is {schema[content].dataType.simpleString()}; expected "
            f"{kind.plural}: {kind.types}. Name another with --content-column"
        )
    # More columns of images would be copied into each of the tables, so they are carried only by name.
    known = (content, options.id_column, *options.named)
    left_out = [field.name for field in schema if kind.fits(field.dataType) and field.name not in known]
    if left_out and (options.carry == "all" or options.content_column is None):
        sys.stderr.write(
            f"nsfw-spark: input {options.uri}: takes {kind.plural} from column {content} and leaves out "
            f"{', '.join(left_out)}, which could hold {kind.plural} too. Choose with --content-column; to "
            "carry a column: --carry NAME\n"
        )
    return metadata_columns(schema, options, content=content, left_out=left_out)


def metadata_columns(
    schema: StructType, options: SourceOptions, *, content: str | None = None, left_out: Sequence[str] = ()
) -> TableColumns:
    """Choose the columns of ids and the carried columns.

    Raises:
        InputError: A named column does not exist.
    """
    id_column = options.id_column
    if id_column is None and IMAGE_ID.name in schema.names:
        id_column = IMAGE_ID.name
    options.check_named(schema.names, id_column)
    others = [field for field in schema if field.name not in (content, id_column, *left_out)]
    carried = {field.name: _renamed(field, options) for field in options.carried(others)}
    return TableColumns(content, id_column, carried)


def _found(schema: StructType, options: SourceOptions, kind: _Kind) -> str:
    fitting = [field.name for field in schema if kind.fits(field.dataType)]
    if len(fitting) == 1:
        return fitting[0]
    if known := [name for name in kind.names if name in fitting]:
        return known[0]
    if fitting:
        raise InputError(
            f"input {options.uri} has {len(fitting)} columns with {kind.plural}: {', '.join(fitting)}. Name "
            "one with --content-column"
        )
    columns = ", ".join(f"{field.name} {field.dataType.simpleString()}" for field in schema)
    has_vectors = kind is _IMAGES and any(_is_vector(field.dataType) for field in schema)
    raise InputError(
        f"input {options.uri} has no column with {kind.plural}: {kind.types}. Its columns: {columns}"
        + (". To score embeddings: --format embeddings" if has_vectors else "")
    )


def _renamed(field: StructField, options: SourceOptions) -> StructField:
    """Return the column of image_scores: `source_NAME` if image_scores has a column NAME already."""
    is_taken = is_ours(field.name) or field.name.lower() in options.taken
    name = f"source_{field.name}" if is_taken else field.name
    comment = field.metadata.get("comment", "of the source")
    return StructField(name, field.dataType, nullable=True, metadata={"comment": comment})
