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
    # Nullable, all: Spark demands it of a UDF's struct, and a bad image has few of them.
    return StructField(name, type_, nullable=True, metadata={"comment": comment})


IMAGE_ID: Final = _column("image_id", StringType(), "URI of the file; the key of this table")

SCORE: Final = StructType(
    [
        _column("length", LongType(), "bytes of the encoded image"),
        _column("content_sha256", StringType(), "of the encoded image, hexadecimal"),
        _column("width", IntegerType(), "pixels as stored, before EXIF orientation; null when unreadable"),
        _column("height", IntegerType(), "pixels as stored, before EXIF orientation; null when unreadable"),
        _column("format", StringType(), "JPEG, PNG, WEBP, GIF, BMP, TIFF, AVIF, MPO; null when unreadable"),
        _column("status", StringType(), "ok, or why there is no score"),
        _column("error", StringType(), "what is wrong with the image, for people; null when ok"),
        _column("nsfw_score", FloatType(), "0 (safe) to 1 (not safe for work); null unless ok"),
        _column("class_scores", MapType(StringType(), FloatType()), "for models with classes; else null"),
        _column("embedding", ArrayType(FloatType()), "of length 1; null unless ok or the model has none"),
        _column("frames_scored", IntegerType(), "frames or pages whose views count; null unless --strict"),
        _column("scored_view", StringType(), "the view that the scores are of; null unless --strict"),
    ]
)
"""What the UDF returns for one image, besides `other_scores`."""

MODEL: Final = StructType(
    [
        _column("model", StringType(), "name of the model card"),
        _column("model_fingerprint", StringType(), "hash of weights, preprocessing and precision"),
        _column("run_id", StringType(), "the run that scored it; see the table runs"),
        _column("scored_at", TimestampType(), "when its micro-batch began"),
    ]
)
"""What a run adds to each image."""

MODIFICATION_TIME: Final = _column("modification_time", TimestampType(), "of the file, when it was scored")
"""What sources know whose images lie in files."""

SOURCE_FILE: Final = _column(
    "source_file", StringType(), "URI of the file that holds this image among others"
)
"""What sources know besides whose files hold many images."""

TIMINGS: Final = _column("_timings", ArrayType(DoubleType()), "fields of scorer.Timings, of a few rows")
"""Travels with the rows to where they are counted, and is dropped before they are written."""

CONTENT: Final = _column("content", BinaryType(), "the encoded image")

RUNS: Final = StructType(
    [
        _column("run_id", StringType(), "as in image_scores"),
        _column("command", StringType(), "run, score or filter"),
        _column("started_at", TimestampType(), "when the job began, Spark's start not included"),
        _column("seconds", DoubleType(), "of the whole job, Spark's start not included"),
        _column("score_seconds", DoubleType(), "of these, scoring and writing image_scores"),
        _column("filter_seconds", DoubleType(), "of these, writing the filtered tables"),
        _column("decode_seconds", DoubleType(), "of all tasks together, decoding and resizing"),
        _column("wait_seconds", DoubleType(), "of all tasks together, waiting for the model"),
        _column("encode_seconds", DoubleType(), "of all models together, encoding"),
        _column("batch_fill", DoubleType(), "0 to 1: how full the forward passes were; null without any"),
        _column("normalized", LongType(), "embeddings of the input that were not of unit length"),
        _column("input", StringType(), "where the images came from"),
        _column("checkpoint", StringType(), "name and id of what Spark remembers of this input"),
        _column("outcome", StringType(), "done, or interrupted: then a later run wrote this row"),
        _column("last_batch", LongType(), "last micro-batch of this input, all of whose files have rows"),
        _column("images", LongType(), "rows that this run added to image_scores"),
        _column("ok", LongType(), "of these, with a score"),
        _column("safe", LongType(), "of these, in safe_images"),
        _column("flagged", LongType(), "of these, in flagged_images"),
        _column("quarantined", LongType(), "of these, in quarantined_images"),
        _column("second", LongType(), "of these, seen by the second model; null without a cascade"),
        _column("image_scores_version", LongType(), "of image_scores, when this row was written"),
        _column("threshold", DoubleType(), "safe if nsfw_score is below; null under a policy file"),
        _column("policy", StringType(), "SQL, true for safe images; null where nothing was filtered"),
        _column("model", StringType(), "name of the model card; null where nothing was scored"),
        _column("model_fingerprint", StringType(), "as in image_scores"),
        _column("versions", MapType(StringType(), StringType()), "of the libraries that decide a score"),
    ]
)
"""One row a run."""


CASCADE: Final = StructType(
    [
        _column("first_score", FloatType(), "of a cascade's first model; null unless ok"),
        _column("second_score", FloatType(), "of its second model, where that was asked; null unless ok"),
        _column("decided_by", StringType(), "name of the model whose score nsfw_score is; null unless ok"),
    ]
)
"""What is known of an image besides, where two models score."""


def scores(heads: Iterable[str] = (), *, is_cascade: bool = False) -> StructType:
    """Return the columns that scoring one image gives.

    Args:
        heads: The model's other heads.
        is_cascade: Whether a second model looks at some images.
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
        source: What the source gives: `image_id`, and what it carries along.
        scores: What scoring gives: `scores`.
        keep_content: Whether the encoded images are kept.
    """
    image_id, *carried = source.fields
    content = [CONTENT] if keep_content else []
    return StructType([image_id, *scores.fields, *MODEL.fields, *carried, *content])


def is_ours(name: str) -> bool:
    """Whether a column of image_scores has this name, upper and lower case alike, whatever the source."""
    ours = [IMAGE_ID, *SCORE, *MODEL, MODIFICATION_TIME, SOURCE_FILE, CONTENT, TIMINGS]
    return name.lower() in {field.name for field in ours}


def quoted(name: str) -> str:
    """Return a column's name as SQL takes it literally, dots and back-quotes included."""
    return f"`{name.replace('`', '``')}`"


def arrow_schema(columns: StructType) -> pa.Schema:
    """Return Spark's columns as Arrow's."""
    # Spark 4.2 wants to be told the time zone of timestamps, which earlier versions took for UTC.
    zone = {"timezone": "UTC"} if "timezone" in inspect.signature(to_arrow_schema).parameters else {}
    return to_arrow_schema(columns, **zone)  # type: ignore[arg-type]
