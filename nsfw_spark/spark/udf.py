"""The scorer as a Spark column: `score_udf` for SQL, `score_images` for DataFrames.

A scalar-iterator pandas UDF that returns a struct. It closes over a `ScorerSpec`, a few kilobytes. Where the
model is, in the executor's model host or in the Python worker, `worker` decides. The job itself does not use
this module: its operator is `scoring`.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import chain, islice
from pathlib import Path
from typing import Any, Unpack

import pandas as pd
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.pandas.functions import pandas_udf
from pyspark.sql.types import BinaryType, StructField, StructType

from nsfw_spark.errors import ConfigError, InputError
from nsfw_spark.options import ScoreKeywords, ScoreOptions
from nsfw_spark.scorer import ImageScore
from nsfw_spark.spark.schema import MODEL, quoted
from nsfw_spark.spark.scorer_spec import ScorerSpec
from nsfw_spark.spark.session import check_memory, running_session
from nsfw_spark.spark.worker import task_scorer

_ROWS_RETURNED = 64  # at once to Spark: as small as an Arrow batch of images, as large as costs nothing


def score_udf(model: str | Path = "laion-vit-l-14", **options: Unpack[ScoreKeywords]) -> Any:  # noqa: ANN401 - what pandas_udf returns has no public type
    """Return a UDF: binary column of encoded images → struct of the columns of `schema.scores`.

    For SQL and for your own queries: `spark.udf.register("nsfw", score_udf())`, then
    `SELECT nsfw(content).nsfw_score …`. Inside an aggregate, use a subquery: Spark refuses a UDF there that
    is not deterministic. This one is marked so, because Spark would otherwise run the model twice.

    Args:
        model: Name of a built-in model card, or path of a card file.
        options: See `ScoreOptions`.

    Raises:
        ConfigError: An option is wrong, there is no such card, head or class, or no session to ship weights.
        WeightsError: Weights are absent on the driver, or are not the ones that the card pins.
    """
    chosen, session = ScoreOptions.parse({"model": model, **options}), running_session()
    if chosen.ship_weights and session is None:
        raise ConfigError("ship_weights needs a running SparkSession, and there is none; make it first")
    spec = ScorerSpec.of(chosen)
    if session is not None:
        spec = spec.on_executors_of(session)
    return udf_of(spec, spec.driver_fingerprint())


def score_images(
    images: DataFrame,
    *,
    model: str | Path = "laion-vit-l-14",
    content_column: str = "content",
    run_id: str | None = None,
    **options: Unpack[ScoreKeywords],
) -> DataFrame:
    """Add a score to each image.

    Args:
        images: Any DataFrame with a binary column of encoded images: batch or streaming, classic or Connect.
        model: Name of a built-in model card, or path of a card file.
        content_column: Name of that column.
        run_id: Value of the column `run_id`; default: a new id.
        options: See `ScoreOptions`: `device`, `model_dir`, …

    Returns:
        The same rows and columns, plus the columns of `image_scores`. The column `length` of Spark's
        binaryFile format stays as it is.

    Raises:
        ConfigError: An option is wrong, there is no such card, head or class, or the cluster has a setting
            under which no model can be loaded.
        InputError: There is no such binary column, or another column has the name of a new one.
        WeightsError: Weights are absent on the driver, or are not the ones that the card pins.
    """
    spark = images.sparkSession
    check_memory(spark)
    spec = ScorerSpec.of(ScoreOptions.parse({"model": model, **options}))
    fingerprint = spec.driver_fingerprint()
    added = [*_returned(spec).names, *MODEL.names]
    if _is_binary_file(images):
        added.remove("length")
    _check_columns(images, content_column, added)
    spec = spec.on_executors_of(spark)
    score = _unused_name(images)
    scored = images.withColumn(score, udf_of(spec, fingerprint)(F.col(quoted(content_column))))
    new = [F.col(f"{score}.{name}") for name in added if name not in MODEL.names]
    return scored.select(*(F.col(quoted(name)) for name in images.columns), *new).withColumns(
        model_columns(spec.name, fingerprint, run_id or new_run_id())
    )


def _is_binary_file(images: DataFrame) -> bool:
    """Whether the rows are files, so that their `length` is that of the encoded image already."""
    return {"path", "modificationTime", "length"} <= set(images.columns)


def _check_columns(images: DataFrame, content_column: str, added: Sequence[str]) -> None:
    """Refuse a DataFrame without images, or with a column that would be ambiguous; Spark ignores case."""
    if content_column not in images.columns:
        raise InputError(
            f"the images have the columns {', '.join(images.columns)}; expected a binary column "
            f"{content_column} with the encoded images, or another one as content_column"
        )
    if not isinstance(type_ := images.schema[content_column].dataType, BinaryType):
        raise InputError(
            f"the column {content_column} is {type_.simpleString()}; expected binary: the encoded images "
            "themselves, not their paths. To read files: read_images(spark, directory)"
        )
    new = {name.lower() for name in added}
    if taken := sorted(name for name in images.columns if name.lower() in new):
        raise InputError(f"the images already have a column {', '.join(taken)}: rename or drop it first")


def _unused_name(images: DataFrame) -> str:
    """Return a column name that no column has."""
    name = "_score"
    while name in {column.lower() for column in images.columns}:
        name += "_"
    return name


def model_columns(model: str, fingerprint: str, run_id: str) -> dict[str, Column]:
    """Return the columns of `schema.MODEL` for rows that executors make."""
    return {
        "model": F.lit(model),
        "model_fingerprint": F.lit(fingerprint),
        "run_id": F.lit(run_id),
        "scored_at": F.current_timestamp(),
    }


def new_run_id() -> str:
    """Return an id that sorts by time."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:6]}"


def udf_of(spec: ScorerSpec, expected_fingerprint: str) -> Any:  # noqa: ANN401 - see score_udf
    """Return the UDF for a spec; it fails on an executor whose weights differ from the driver's."""
    returned = _returned(spec)

    @pandas_udf(returned)  # type: ignore[call-overload, untyped-decorator]
    def nsfw(batches: Iterator[pd.Series]) -> Iterator[pd.DataFrame]:
        # The model's batches are formed across Arrow batches: Spark wants the same rows in the same order,
        # and does not mind where they are cut.
        with task_scorer(spec, expected_fingerprint) as scorer:
            scores = scorer.stream(chain.from_iterable(batches))
            while rows := list(islice(scores, _ROWS_RETURNED)):
                yield _frame(rows, returned.names)

    # Marked as not deterministic, so that Spark never runs the model twice for a filter on its result.
    return nsfw.asNondeterministic()


def _returned(spec: ScorerSpec) -> StructType:
    """Return the UDF's type: the columns of the scores without comments, which Spark would compare."""
    return StructType([StructField(column.name, column.dataType) for column in spec.scores])


def _frame(rows: list[ImageScore], names: Sequence[str]) -> pd.DataFrame:
    """Turn scores into the frame that Spark expects: one object column for each field, None for null."""
    columns = {}
    for name in names:
        values = [row.column(name) for row in rows]
        if name == "embedding":
            # Spark makes a list of each vector; from Python's own numbers that is three times faster.
            values = [None if vector is None else vector.tolist() for vector in values]
        columns[name] = pd.Series(values, dtype=object)
    return pd.DataFrame(columns)
