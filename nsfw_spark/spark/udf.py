"""The scorer as a Spark column.

A scalar-iterator pandas UDF that returns a struct. It closes over a `ScorerSpec`, a few kilobytes; where the
model is, in the executor's model host or in the Python worker itself, is `worker`'s business.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, TypedDict

import pandas as pd
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.pandas.functions import pandas_udf
from pyspark.sql.types import StructField, StructType

from nsfw_spark.cards import choose_card
from nsfw_spark.decode import DEFAULT_MAX_BYTES, DEFAULT_MAX_PIXELS
from nsfw_spark.errors import ConfigError, InputError
from nsfw_spark.isolation import DECODE_TIMEOUT_SECONDS
from nsfw_spark.model import ModelSpec
from nsfw_spark.scorer import ImageScore
from nsfw_spark.spark.delivery import deliver
from nsfw_spark.spark.schema import MODEL
from nsfw_spark.spark.scorer_spec import ScorerSpec, second_model
from nsfw_spark.spark.session import check_memory, executor_cores, tries_once
from nsfw_spark.spark.worker import task_scorer
from nsfw_spark.weights import fingerprint, locate_weights

_ROWS_RETURNED = 64  # at once to Spark: as small as an Arrow batch of images, as large as costs nothing


def score_udf(  # noqa: PLR0913 - all but the first are keywords with defaults
    model: str | Path = "laion-vit-l-14",
    *,
    heads: Sequence[str] | None = None,
    device: str = "auto",
    model_dir: str | Path | None = None,
    batch_size: int | Literal["auto"] = "auto",
    max_pixels: int = DEFAULT_MAX_PIXELS,
    max_bytes: int = DEFAULT_MAX_BYTES,
    strict: bool = False,
    decode_timeout_seconds: float = DECODE_TIMEOUT_SECONDS,
    host: Literal["auto", "off"] = "auto",
    score_class: str | None = None,
    second: str | Path | None = None,
    uncertain: tuple[float, float] = (0.1, 0.9),
    model_source: str | None = None,
    ship_weights: bool = False,
) -> Any:  # noqa: ANN401 - what pandas_udf returns has no public type
    """Return a UDF: binary column of encoded images → struct of `schema.scores`.

    For DataFrames `score_images` is handier; this is for SQL and for your own queries:
    `spark.udf.register("nsfw", score_udf())`, then `SELECT nsfw(content).nsfw_score …`.

    Args:
        model: Name of a built-in model card, or path of a card file.
        heads: Of the card, `nsfw` among them; None: all that it has.
        device: `auto` (the GPU that Spark assigned, else any, else the CPU), `cpu`, `cuda` or `cuda:N`.
        model_dir: Directory with weights, the same on all executors; else the Hugging Face cache.
        batch_size: Images in one forward pass; `auto` is 16 on a CPU, and on a GPU what is found to be fast.
        max_pixels: Width x height above which an image is `too_large`.
        max_bytes: Bytes of an encoded image above which it is.
        strict: Score what else an image may show, not its centre alone; the highest score counts.
        decode_timeout_seconds: An image that takes longer to decode is `crashed`.
        host: `auto`: one model for each GPU of an executor; `off`: one in each Python worker.
        score_class: Class whose score becomes nsfw_score, of a model that has classes; default: the card's.
        second: Another model card, for images whose score by `model` is uncertain.
        uncertain: The lowest and the highest such score.
        model_source: URI of a mirror for weights that are not there.
        ship_weights: Send the weights from here to the executors, which then need no directory.

    Raises:
        ConfigError: No such model card, it has no such head or class, or no session to ship weights with.
        WeightsError: Weights absent on the driver, or not the ones that the card pins.
    """
    session = SparkSession.getActiveSession()
    if ship_weights and session is None:
        raise ConfigError("ship_weights needs a running SparkSession, and there is none; make it first")
    card = choose_card(model, heads=heads, score_class=score_class)
    first = ModelSpec(card, _absolute(model_dir), device, batch_size)
    spec = ScorerSpec(
        first,
        max_pixels=max_pixels,
        max_bytes=max_bytes,
        strict=strict,
        decode_timeout_seconds=decode_timeout_seconds,
        host=host,
        **second_model(first, second, uncertain),
        **_cluster(session),
    )
    spec = replace(spec, delivery=deliver(spec.models, model_source=model_source, ship=ship_weights))
    if session is not None:
        spec.delivery.send(session)
    return udf_of(spec, driver_fingerprint(spec))


def score_images(  # noqa: PLR0913 - all but the first are keywords with defaults
    images: DataFrame,
    *,
    model: str | Path = "laion-vit-l-14",
    heads: Sequence[str] | None = None,
    model_dir: str | Path | None = None,
    device: str = "auto",
    batch_size: int | Literal["auto"] = "auto",
    max_pixels: int = DEFAULT_MAX_PIXELS,
    max_bytes: int = DEFAULT_MAX_BYTES,
    strict: bool = False,
    decode_timeout_seconds: float = DECODE_TIMEOUT_SECONDS,
    host: Literal["auto", "off"] = "auto",
    score_class: str | None = None,
    second: str | Path | None = None,
    uncertain: tuple[float, float] = (0.1, 0.9),
    run_id: str | None = None,
    model_source: str | None = None,
    ship_weights: bool = False,
) -> DataFrame:
    """Add a score to each image.

    Args:
        images: Any DataFrame with a binary column `content`: batch or streaming, classic or Connect.
        model: Name of a built-in model card, or path of a card file.
        heads: Of the card, `nsfw` among them; None: all that it has.
        model_dir: Directory with weights, the same on all executors; else the Hugging Face cache.
        device: `auto` (the GPU that Spark assigned, else any, else the CPU), `cpu` or `cuda`.
        batch_size: Images in one forward pass; `auto` is 16 on a CPU, and on a GPU what is found to be fast.
        max_pixels: Width x height above which an image is `too_large`.
        max_bytes: Bytes of an encoded image above which it is.
        strict: Score what else an image may show, not its centre alone; the highest score counts.
        decode_timeout_seconds: An image that takes longer to decode is `crashed`.
        host: `auto`: one model for each GPU of an executor; `off`: one in each Python worker.
        score_class: Class whose score becomes nsfw_score, of a model that has classes; default: the card's.
        second: Another model card, for images whose score by `model` is uncertain.
        uncertain: The lowest and the highest such score.
        run_id: Written into each row; default a new one.
        model_source: URI of a mirror for weights that are not there.
        ship_weights: Send the weights from here to the executors, which then need no directory.

    Returns:
        The same rows, plus the columns of `image_scores`.

    Raises:
        ConfigError: No such model card, no such head, or a setting of the cluster that no model survives.
        InputError: No binary column `content`, or another column has the name of one of ours.
        WeightsError: Weights absent on the driver, or not the ones that the card pins.
    """
    spark = images.sparkSession
    check_memory(spark)
    card = choose_card(model, heads=heads, score_class=score_class)
    first = ModelSpec(card, _absolute(model_dir), device, batch_size)
    spec = ScorerSpec(
        first,
        max_pixels=max_pixels,
        max_bytes=max_bytes,
        strict=strict,
        decode_timeout_seconds=decode_timeout_seconds,
        host=host,
        **second_model(first, second, uncertain),
        **_cluster(spark),
    )
    spec = replace(spec, delivery=deliver(spec.models, model_source=model_source, ship=ship_weights))
    fingerprint = driver_fingerprint(spec)
    if dict(images.dtypes).get("content") != "binary":
        raise InputError(
            f"the images have the columns {', '.join(images.columns)}; expected a binary column `content` "
            "with the encoded images"
        )
    ours = [name for name in (*_returned(spec).names, *MODEL.names) if name != "length"]
    if taken := sorted(set(ours) & set(images.columns)):
        raise InputError(f"the images already have a column {', '.join(taken)}: rename or drop it first")
    spec.delivery.send(spark)
    carried = [name for name in images.columns if name != "length"]
    return (
        images.withColumn("_score", udf_of(spec, fingerprint)("content"))
        .select(*carried, "_score.*")
        .withColumns(model_columns(spec.name, fingerprint, run_id or new_run_id()))
    )


def model_columns(model: str, fingerprint: str, run_id: str) -> dict[str, Column]:
    """Return the columns of `schema.MODEL` for rows that executors make."""
    return {
        "model": F.lit(model),
        "model_fingerprint": F.lit(fingerprint),
        "run_id": F.lit(run_id),
        "scored_at": F.current_timestamp(),
    }


class _Cluster(TypedDict, total=False):
    """The fields of a `ScorerSpec` that follow from the session."""

    host_threads: int | None
    isolated: bool


def _cluster(session: SparkSession | None) -> _Cluster:
    """Return what the session says; nothing where there is none yet."""
    if session is None:
        return {}
    return {"host_threads": executor_cores(session), "isolated": tries_once(session)}


def _absolute(model_dir: str | Path | None) -> Path | None:
    """Make a directory absolute: Python workers have another current directory than the driver."""
    return None if model_dir is None else Path(model_dir).absolute()


def new_run_id() -> str:
    """Return an id that sorts by time."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:6]}"


def driver_fingerprint(spec: ScorerSpec) -> str:
    """Find the weights on the driver, download them if need be, and return the fingerprint of the scores.

    Raises:
        WeightsError: Weights absent, or not the ones that the card pins.
    """
    return spec.fingerprint(
        [
            fingerprint(model.card, locate_weights(model.card, model.model_dir, download=True))
            for model in spec.models
        ]
    )


def udf_of(spec: ScorerSpec, expected_fingerprint: str) -> Any:  # noqa: ANN401 - see score_udf
    """Return the UDF for a spec, which fails where an executor's weights are not the driver's."""
    returned = _returned(spec)

    @pandas_udf(returned)  # type: ignore[call-overload, untyped-decorator]
    def nsfw(batches: Iterator[pd.Series]) -> Iterator[pd.DataFrame]:
        # Batches of the model are formed across Arrow batches: Spark wants the same rows in the same
        # order, and does not mind where they are cut.
        with task_scorer(spec, expected_fingerprint) as scorer:
            rows = scorer.stream(chain.from_iterable(batches))
            while some := list(islice(rows, _ROWS_RETURNED)):
                yield _frame(some, returned.names)

    # Not deterministic, says this, so that Spark never runs the model twice for a filter on its result.
    return nsfw.asNondeterministic()


def _returned(spec: ScorerSpec) -> StructType:
    """Return what the UDF returns: the scores' columns."""
    # Comments are no part of it: Spark would find that its schema differs.
    return StructType([StructField(column.name, column.dataType) for column in spec.scores])


def _frame(rows: list[ImageScore], names: Sequence[str]) -> pd.DataFrame:
    """Turn scores into the frame that Spark wants: one object column a field, None for null."""
    columns = {}
    for name in names:
        values = [row.column(name) for row in rows]
        if name == "embedding":
            # Spark makes a list of each vector; from numbers of Python's own that is three times faster.
            values = [None if vector is None else vector.tolist() for vector in values]
        columns[name] = pd.Series(values, dtype=object)
    return pd.DataFrame(columns)
