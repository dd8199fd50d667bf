"""`read_images`: the images of any source as a DataFrame, for a user's own queries."""

from __future__ import annotations

from pyspark.sql import DataFrame, SparkSession

from nsfw_spark.errors import ConfigError
from nsfw_spark.options import Format
from nsfw_spark.spark.sources import Limit, SourceOptions, open_source

_MICRO_BATCH_IMAGES = 10_000


def read_images(  # noqa: PLR0913 - all but the first two are keywords with defaults
    spark: SparkSession,
    uri: str,
    *,
    format: Format = "auto",  # noqa: A002 - Spark's name
    glob: str | None = None,
    content_column: str | None = None,
    id_column: str | None = None,
    stream: bool = False,
) -> DataFrame:
    """Read images, for `score_images` or anything else.

    Spark skips empty files, and names that begin with `_` or `.`. An unreadable image, such as the rest of a
    damaged tar, is a row with null `content`.

    Args:
        spark: The session.
        uri: Any directory that Spark reads: a local path, `s3a://…`, `abfss://…`, `/Volumes/…`; for `delta`
            also the name of a table.
        format: Format of the input, as in `run`, except `embeddings`; `auto` looks at the file names.
        glob: Only files whose names match; default: the names that the format expects.
        content_column: A table's column with the images; default: found by its type.
        id_column: A table's column with the ids; default: `image_id`, else the place of a row, `file#row`.
        stream: Whether to read new images as a stream; default: all images that exist now.

    Returns:
        `image_id`, `content` and the carried columns. For files: `image_id` and the columns of Spark's
        binaryFile (`path`, `modificationTime`, `length`, `content`).

    Raises:
        InputError: The input is missing, empty, or has another shape than expected.
        ConfigError: The format has no images, or does not exist on this cluster.
    """
    if format == "embeddings":
        raise ConfigError(
            "format embeddings holds vectors and no images; expected another format. To score embeddings: "
            "`nsfw-spark run --format embeddings`, or `nsfw_spark.embeddings` for arrays"
        )
    source = open_source(spark, SourceOptions(uri, format, glob, content_column, id_column))
    return source.images(Limit(_MICRO_BATCH_IMAGES) if stream else None)
