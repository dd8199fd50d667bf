"""`read_images`: the images of any source as a DataFrame, for queries of your own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, cast

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from nsfw_spark.errors import ImageError
from nsfw_spark.readers import Chunk, Reader
from nsfw_spark.spark.schema import CONTENT, arrow_schema
from nsfw_spark.spark.sources import ImageFiles, Limit, Source, SourceOptions, open_source

_MICRO_BATCH_IMAGES = 10_000


def read_images(  # noqa: PLR0913 - all but the first two are keywords with defaults
    spark: SparkSession,
    uri: str,
    *,
    format: Literal["auto", "files", "webdataset", "parquet", "delta"] = "auto",  # noqa: A002 - as Spark's
    glob: str | None = None,
    content_column: str | None = None,
    id_column: str | None = None,
    stream: bool = False,
) -> DataFrame:
    """Read images, for `score_images` or anything else.

    Spark itself leaves out empty files, and those whose names begin with `_` or `.`. What cannot be read,
    such as the rest of a damaged tar, is a row whose `content` is null.

    Args:
        spark: The session.
        uri: Any directory that Spark reads: a local path, `s3a://…`, `abfss://…`, `/Volumes/…`; for `delta`
            also the name of a table.
        format: What lies there; `auto` looks.
        glob: Only files whose names match; default: all that the format expects.
        content_column: Of tables, the column with the images; default: found by its type.
        id_column: Of tables, the column with the ids; default: `file#row`.
        stream: Whether to read as a stream what is new, in place of all that is there.

    Returns:
        `image_id`, `content`, and what the source carries along; of files Spark's binaryFile columns (`path`,
        `modificationTime`, `length`, `content`) and `image_id`.

    Raises:
        InputError: The input is missing, empty, or not of the expected shape.
    """
    options = SourceOptions(uri, format, glob, content_column, id_column)
    source = open_source(spark, options)
    return images_of(source, stream=stream)


def images_of(source: Source, *, stream: bool = False) -> DataFrame:
    """Return a source's images: see `read_images`."""
    if isinstance(source, ImageFiles):
        files = source.files(Limit(_MICRO_BATCH_IMAGES) if stream else None)
        return files.withColumn("image_id", F.col("path"))
    return read_listed(source, source.stream(Limit(_MICRO_BATCH_IMAGES)) if stream else source.batch())


def read_listed(source: Source, listed: DataFrame) -> DataFrame:
    """Return the images in what a source has listed: its columns, and `content`."""
    result = StructType([*source.columns.fields, CONTENT])
    reader = cast("Reader", source.reader)

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
