"""Which columns of a table are what: the images or embeddings, the ids, and what is carried along."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

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
from nsfw_spark.spark.schema import IMAGE_ID, is_ours
from nsfw_spark.spark.sources.source import SourceOptions

_IMAGE_NAMES: Final = ("image", "content", "bytes", "img", "jpg", "picture", "photo")
_VECTOR_NAMES: Final = ("embedding", "embeddings", "image_embedding", "img_emb", "vector", "emb")


@dataclass(frozen=True)
class TableColumns:
    """The columns of a source that is a table."""

    content: str
    """With the images, binary or a struct that has `bytes`; or with the embeddings."""
    id: str | None
    """With the image_ids, if the user named it or it is called image_id."""
    carried: dict[str, StructField]
    """Name in the source → column of image_scores."""


def is_image(type_: DataType) -> bool:
    """Whether a column holds encoded images: binary, or Hugging Face's struct of `bytes` and `path`."""
    if isinstance(type_, StructType):
        return "bytes" in type_.names and isinstance(type_["bytes"].dataType, BinaryType)
    return isinstance(type_, BinaryType)


def is_vector(type_: DataType) -> bool:
    """Whether a column holds embeddings: an array of float or double."""
    return isinstance(type_, ArrayType) and isinstance(type_.elementType, FloatType | DoubleType)


def image_columns(schema: StructType, options: SourceOptions) -> TableColumns:
    """Say which columns of a table of images are what.

    Raises:
        InputError: No column holds images, or several do; or one that was named is not there.
    """
    what = "images: binary, or a struct {bytes, path}"
    return _columns(schema, options, is_image, what, _IMAGE_NAMES)


def vector_columns(schema: StructType, options: SourceOptions) -> TableColumns:
    """Say which columns of a table of embeddings are what.

    Raises:
        InputError: No column holds embeddings, or several do; or one that was named is not there.
    """
    return _columns(schema, options, is_vector, "embeddings: an array of float or double", _VECTOR_NAMES)


def id_and_carried(
    schema: StructType, options: SourceOptions, *, without: Sequence[str] = ()
) -> tuple[str | None, dict[str, StructField]]:
    """Say which columns hold the ids and what is carried along, of those that are not `without`.

    Raises:
        InputError: A column that was named is not there.
    """
    id_column = options.id_column
    if id_column is None and IMAGE_ID.name in schema.names:
        id_column = IMAGE_ID.name
    _check_there(schema, options, id_column)
    left = [field for field in schema if field.name not in (*without, id_column)]
    return id_column, {field.name: _carried(field, options) for field in left if options.carries(field.name)}


def _columns(
    schema: StructType,
    options: SourceOptions,
    fits: Callable[[DataType], bool],
    what: str,
    names: Sequence[str],
) -> TableColumns:
    _check_there(schema, options, options.content_column)
    content = options.content_column or _found(schema, options, fits, what, names)
    if not fits(schema[content].dataType):
        raise InputError(
            f"input {options.uri}: column {content} is {schema[content].dataType.simpleString()}; expected "
            f"{what}. Name another with --content-column"
        )
    # Further columns of images or embeddings would be copied into each of the tables: not unless named.
    others = [f.name for f in schema if fits(f.dataType) and options.carry == "all"]
    id_column, carried = id_and_carried(schema, options, without=[content, *others])
    return TableColumns(content, id_column, carried)


def _found(
    schema: StructType,
    options: SourceOptions,
    fits: Callable[[DataType], bool],
    what: str,
    names: Sequence[str],
) -> str:
    fitting = [field.name for field in schema if fits(field.dataType)]
    if len(fitting) == 1:
        return fitting[0]
    if known := [name for name in names if name in fitting]:
        return known[0]
    has = ", ".join(f"{field.name} {field.dataType.simpleString()}" for field in schema)
    if not fitting:
        is_other = fits is is_image and any(is_vector(field.dataType) for field in schema)
        hint = ". To score embeddings: --format embeddings" if is_other else ""
        raise InputError(f"input {options.uri} has no column with {what}. Its columns: {has}{hint}")
    raise InputError(
        f"input {options.uri} has {len(fitting)} columns with {what}: {', '.join(fitting)}. Name one with "
        "--content-column"
    )


def _check_there(schema: StructType, options: SourceOptions, name: str | None) -> None:
    named = [] if options.carry in ("all", "none") else [each.strip() for each in options.carry.split(",")]
    wrong = [each for each in (name, *named) if each is not None and each not in schema.names]
    if wrong:
        raise InputError(
            f"input {options.uri} has no column {', '.join(wrong)}. Its columns: {', '.join(schema.names)}"
        )


def _carried(field: StructField, options: SourceOptions) -> StructField:
    """Return the column of image_scores: under a name of its own where it would hide one of ours."""
    is_taken = is_ours(field.name) or field.name.lower() in options.taken
    name = f"source_{field.name}" if is_taken else field.name
    comment = field.metadata.get("comment", "of the source")
    return StructField(name, field.dataType, nullable=True, metadata={"comment": comment})
