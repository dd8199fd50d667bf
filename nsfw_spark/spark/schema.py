"""The tables' columns: names, types and meaning, in one place.

The README's table, the UDF's result and the Delta tables all follow these; a test compares them.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Final

import pyarrow as pa
from pyspark.sql.pandas.types import to_arrow_schema
from pyspark.sql.types import (
    ArrayType,
    BinaryType,
    DataType,
    DoubleType,
    FloatType,
    IntegerType,
    LongType,
    MapType,
    StringType,
    StructField,
    StructType,
    TimestampType,
)


def _column(name: str, type_: DataType, comment: str) -> StructField:
    # All are nullable: Spark requires it of a UDF's struct, and a bad image has few values.
    return StructField(name, type_, nullable=True, metadata={"comment": comment})


IMAGE_ID: Final = _column("image_id", StringType(), "URI of the file; the key of this table")

SCORE: Final = StructType(
    [
        _column("length", LongType(), "bytes of the encoded image"),
        _column("content_sha256", StringType(), "SHA-256 of the encoded image, hexadecimal"),
        _column("width", IntegerType(), "pixels as stored, before EXIF orientation; null when unreadable"),
        _column("height", IntegerType(), "pixels as stored, before EXIF orientation; null when unreadable"),
        _column("format", StringType(), "JPEG, PNG, WEBP, GIF, BMP, TIFF, AVIF, MPO; null when unreadable"),
        _column("status", StringType(), "ok, or why there is no score"),
        _column("error", StringType(), "why there is no score, for people; null when ok"),
        _column("nsfw_score", FloatType(), "0 (safe) to 1 (not safe for work); null unless ok"),
        _column(
            "class_scores",
            MapType(StringType(), FloatType()),
            "score of each class; null unless ok, and for models without classes",
        ),
        _column(
            "embedding",
            ArrayType(FloatType()),
            "L2-normalised vector; null unless ok, and for models without one",
        ),
        _column("frames_scored", IntegerType(), "number of frames or pages; null without --strict"),
        _column("scored_view", StringType(), "the view with the highest score; null without --strict"),
    ]
)
"""The columns of one image's scores; `scores` adds those of further heads and of a cascade."""

MODEL: Final = StructType(
    [
        _column("model", StringType(), "name of the model card"),
        _column("model_fingerprint", StringType(), "hash of weights, preprocessing and precision"),
        _column("run_id", StringType(), "the run that scored it; see the table runs"),
        _column("scored_at", TimestampType(), "when its micro-batch began"),
    ]
)
"""The columns that a run adds to each image."""

MODIFICATION_TIME: Final = _column(
    "modification_time", TimestampType(), "of the file, at the time of scoring"
)
"""Extra column of sources of files."""

SOURCE_FILE: Final = _column(
    "source_file", StringType(), "URI of the file that holds this image among others"
)
"""Extra column of sources whose files hold many images (tars, Parquet)."""

TIMINGS: Final = _column("_timings", ArrayType(DoubleType()), "fields of scorer.Timings, for several rows")
"""Travels with the rows to the place where they are counted; dropped before they are written."""

CONTENT: Final = _column("content", BinaryType(), "the encoded image")

RUNS: Final = StructType(
    [
        _column("run_id", StringType(), "as in image_scores"),
        _column("command", StringType(), "run, score or filter"),
        _column("started_at", TimestampType(), "start of the job; Spark's own start is not included"),
        _column("seconds", DoubleType(), "of the whole job; Spark's start is not included"),
        _column("score_seconds", DoubleType(), "spent on scoring and writing image_scores"),
        _column("filter_seconds", DoubleType(), "spent on writing the filtered tables"),
        _column("decode_seconds", DoubleType(), "spent by all tasks together on decoding and resizing"),
        _column("wait_seconds", DoubleType(), "spent by all tasks together on waiting for the model"),
        _column("encode_seconds", DoubleType(), "spent by all models together on encoding"),
        _column("batch_fill", DoubleType(), "0 to 1: how full the forward passes were; null without any"),
        _column("normalized", LongType(), "embeddings of the input that were not of unit length"),
        _column("input", StringType(), "URI or name of the input"),
        _column("checkpoint", StringType(), "name and id of the input's checkpoint"),
        _column("outcome", StringType(), "running; done; or interrupted, as a later run found out"),
        _column("last_batch", LongType(), "last micro-batch; all its files have rows"),
        _column("images", LongType(), "rows that this run added to image_scores"),
        _column("ok", LongType(), "of these images: with a score"),
        _column("safe", LongType(), "of these images: in safe_images; null for score"),
        _column("flagged", LongType(), "of these images: in flagged_images; null for score"),
        _column("quarantined", LongType(), "of these images: without a score"),
        _column("files_lost", LongType(), "of these: files or parts that storage failed to give"),
        _column("second", LongType(), "of these images: seen by the second model; null without a cascade"),
        _column("image_scores_version", LongType(), "version of image_scores when this row was written"),
        _column("threshold", DoubleType(), "an image is safe if nsfw_score is below; null for a policy"),
        _column("policy", StringType(), "SQL, true for safe images; null if nothing was filtered"),
        _column("model", StringType(), "name of the model card; null if nothing was scored"),
        _column("model_fingerprint", StringType(), "as in image_scores"),
        _column("versions", MapType(StringType(), StringType()), "of the libraries that decide a score"),
    ]
)
"""The columns of the table runs."""


CASCADE: Final = StructType(
    [
        _column("first_score", FloatType(), "score of a cascade's first model; null unless ok"),
        _column(
            "second_score",
            FloatType(),
            "score of its second model; null unless ok, and for images that it did not see",
        ),
        _column("decided_by", StringType(), "name of the model whose score counts; null unless ok"),
    ]
)
"""Extra columns of a cascade."""


def scores(heads: Iterable[str] = (), *, is_cascade: bool = False) -> StructType:
    """Return the columns that scoring one image gives.

    Args:
        heads: The model's other heads.
        is_cascade: Whether a second model scores some images again.
    """
    return StructType([*SCORE.fields, *other_scores(heads), *(CASCADE.fields if is_cascade else [])])


def other_scores(heads: Iterable[str]) -> list[StructField]:
    """Return the columns of a model's other heads: aesthetic_score for `aesthetic`."""
    return [
        _column(f"{head}_score", FloatType(), f"of the model's head {head}; null unless ok") for head in heads
    ]


def image_scores(source: StructType, scores: StructType = SCORE, *, keep_content: bool) -> StructType:
    """Return the columns of `image_scores` and of the three filtered tables.

    Args:
        source: The source's columns: `image_id`, and the columns that it carries along.
        scores: The columns of `scores`.
        keep_content: Whether the tables keep the encoded images.
    """
    image_id, *carried = source.fields
    content = [CONTENT] if keep_content else []
    return StructType([image_id, *scores.fields, *MODEL.fields, *carried, *content])


def is_ours(name: str) -> bool:
    """Whether every image_scores has a column of this name; case is ignored, as in SQL."""
    ours = [IMAGE_ID, *SCORE, *MODEL, MODIFICATION_TIME, SOURCE_FILE, CONTENT, TIMINGS]
    return name.lower() in {field.name for field in ours}


def quoted(name: str) -> str:
    """Quote a column's name, so that SQL takes dots and back-quotes literally."""
    return f"`{name.replace('`', '``')}`"


def arrow_schema(columns: StructType) -> pa.Schema:
    """Return Spark's columns as Arrow's."""
    # Spark 4.2 needs the time zone of timestamps; earlier versions assume UTC.
    zone = {"timezone": "UTC"} if "timezone" in inspect.signature(to_arrow_schema).parameters else {}
    return to_arrow_schema(columns, **zone)  # type: ignore[arg-type]
