"""The scorer as a Spark column.

A scalar-iterator pandas UDF that returns a struct. It closes over a `ScorerSpec`, a few kilobytes; where the
model is, in the executor's model host or in the Python worker itself, is `worker`'s business.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.pandas.functions import pandas_udf
from pyspark.sql.types import StructField, StructType

from nsfw_spark.decode import DEFAULT_MAX_PIXELS
from nsfw_spark.errors import InputError
from nsfw_spark.model import ModelSpec
from nsfw_spark.model_card import ModelCard, load_card
from nsfw_spark.scorer import ImageScore
from nsfw_spark.spark.schema import MODEL, SCORE
from nsfw_spark.spark.session import check_memory, executor_cores
from nsfw_spark.spark.worker import ScorerSpec, task_scorer
from nsfw_spark.weights import fingerprint, locate_weights

# Column comments are no part of what a UDF returns: Spark would find that its schema differs.
_RETURNED = StructType([StructField(field.name, field.dataType) for field in SCORE.fields])
_ROWS_RETURNED = 64  # at once to Spark: as small as an Arrow batch of images, as large as costs nothing


def score_udf(
    model: str | Path = "laion-vit-l-14",
    *,
    device: str = "auto",
    model_dir: str | Path | None = None,
    batch_size: int | Literal["auto"] = "auto",
    max_pixels: int = DEFAULT_MAX_PIXELS,
    host: Literal["auto", "off"] = "auto",
) -> Any:  # noqa: ANN401 - what pandas_udf returns has no public type
    """Return a UDF: binary column of encoded images → struct of `schema.SCORE`.

    For DataFrames `score_images` is handier; this is for SQL and for your own queries:
    `spark.udf.register("nsfw", score_udf())`, then `SELECT nsfw(content).nsfw_score …`.

    Args:
        model: Name of a built-in model card, or path of a card file.
        device: `auto` (the GPU that Spark assigned, else any, else the CPU), `cpu`, `cuda` or `cuda:N`.
        model_dir: Directory with weights, the same on all executors; else the Hugging Face cache.
        batch_size: Images in one forward pass; `auto` is 16 on a CPU, and on a GPU what is found to be fast.
        max_pixels: Width x height above which an image is `too_large`.
        host: `auto`: one model for each GPU of an executor; `off`: one in each Python worker.

    Raises:
        ConfigError: No such model card.
        WeightsError: Weights absent on the driver, or not the ones that the card pins.
    """
    model_spec = ModelSpec(load_card(model), _absolute(model_dir), device, batch_size)
    spec = ScorerSpec(model_spec, max_pixels, host)
    return udf_of(spec, driver_fingerprint(model_spec))


def score_images(  # noqa: PLR0913 - all but the first are keywords with defaults
    images: DataFrame,
    *,
    model: str | Path = "laion-vit-l-14",
    model_dir: str | Path | None = None,
    device: str = "auto",
    batch_size: int | Literal["auto"] = "auto",
    host: Literal["auto", "off"] = "auto",
    run_id: str | None = None,
) -> DataFrame:
    """Add a score to each image.

    Args:
        images: Any DataFrame with a binary column `content`: batch or streaming, classic or Connect.
        model: Name of a built-in model card, or path of a card file.
        model_dir: Directory with weights, the same on all executors; else the Hugging Face cache.
        device: `auto` (the GPU that Spark assigned, else any, else the CPU), `cpu` or `cuda`.
        batch_size: Images in one forward pass; `auto` is 16 on a CPU, and on a GPU what is found to be fast.
        host: `auto`: one model for each GPU of an executor; `off`: one in each Python worker.
        run_id: Written into each row; default a new one.

    Returns:
        The same rows, plus the columns of `image_scores`.

    Raises:
        ConfigError: No such model card, or a setting of the cluster that no model survives.
        InputError: No binary column `content`, or another column has the name of one of ours.
        WeightsError: Weights absent on the driver, or not the ones that the card pins.
    """
    check_memory(images.sparkSession)
    model_spec = ModelSpec(load_card(model), _absolute(model_dir), device, batch_size)
    spec = ScorerSpec(model_spec, host=host, host_threads=executor_cores(images.sparkSession))
    fingerprint = driver_fingerprint(model_spec)
    if dict(images.dtypes).get("content") != "binary":
        raise InputError(
            f"the images have the columns {', '.join(images.columns)}; expected a binary column `content` "
            "with the encoded images"
        )
    ours = [name for name in (*SCORE.names, *MODEL.names) if name != "length"]
    if taken := sorted(set(ours) & set(images.columns)):
        raise InputError(f"the images already have a column {', '.join(taken)}: rename or drop it first")
    carried = [name for name in images.columns if name != "length"]
    return (
        images.withColumn("_score", udf_of(spec, fingerprint)("content"))
        .select(*carried, "_score.*")
        .withColumns(model_columns(model_spec.card, fingerprint, run_id or new_run_id()))
    )


def model_columns(card: ModelCard, fingerprint: str, run_id: str) -> dict[str, Column]:
    """Return the columns of `schema.MODEL` for rows that executors make."""
    return {
        "model": F.lit(card.name),
        "model_fingerprint": F.lit(fingerprint),
        "run_id": F.lit(run_id),
        "scored_at": F.current_timestamp(),
    }


def _absolute(model_dir: str | Path | None) -> Path | None:
    """Make a directory absolute: Python workers have another current directory than the driver."""
    return None if model_dir is None else Path(model_dir).absolute()


def new_run_id() -> str:
    """Return an id that sorts by time."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:6]}"


def driver_fingerprint(model: ModelSpec) -> str:
    """Find the weights on the driver, download them if need be, and return the model's fingerprint.

    Raises:
        WeightsError: Weights absent, or not the ones that the card pins.
    """
    return fingerprint(model.card, locate_weights(model.card, model.model_dir, download=True))


def udf_of(spec: ScorerSpec, expected_fingerprint: str) -> Any:  # noqa: ANN401 - see score_udf
    """Return the UDF for a spec, which fails where an executor's weights are not the driver's."""

    @pandas_udf(_RETURNED)  # type: ignore[call-overload, untyped-decorator]
    def nsfw(batches: Iterator[pd.Series]) -> Iterator[pd.DataFrame]:
        # Batches of the model are formed across Arrow batches: Spark wants the same rows in the same
        # order, and does not mind where they are cut.
        with task_scorer(spec, expected_fingerprint) as scorer:
            rows = scorer.stream(chain.from_iterable(batches))
            while some := list(islice(rows, _ROWS_RETURNED)):
                yield _frame(some)

    # Not deterministic, says this, so that Spark never runs the model twice for a filter on its result.
    return nsfw.asNondeterministic()


def _frame(rows: list[ImageScore]) -> pd.DataFrame:
    """Turn scores into the frame that Spark wants: one object column a field, None for null."""
    columns = {}
    for name in SCORE.names:
        values = [getattr(row, name) for row in rows]
        if name == "embedding":
            # Spark makes a list of each vector; from numbers of Python's own that is three times faster.
            values = [None if vector is None else vector.tolist() for vector in values]
        columns[name] = pd.Series(values, dtype=object)
    return pd.DataFrame(columns)
