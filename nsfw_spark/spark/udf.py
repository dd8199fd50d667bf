"""The scorer as a Spark column.

A scalar-iterator pandas UDF that returns a struct. It closes over a `ScorerSpec`, a few kilobytes; the
model is loaded once in each Python worker and kept while the worker lives, which needs
`spark.python.worker.reuse` (Spark's default). This module is imported by name on the executors: a cache
that lived in the job's own script would be pickled with the UDF and begin empty in every task.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.pandas.functions import pandas_udf
from pyspark.sql.types import StructField, StructType

from nsfw_spark.decode import DEFAULT_MAX_PIXELS
from nsfw_spark.errors import InputError, WeightsError
from nsfw_spark.model_card import load_card
from nsfw_spark.scorer import ImageScore, Scorer, ScorerSpec, open_scorer
from nsfw_spark.spark.gpu import task_device
from nsfw_spark.spark.schema import MODEL, SCORE
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
) -> Any:  # noqa: ANN401 - what pandas_udf returns has no public type
    """Return a UDF: binary column of encoded images → struct of `schema.SCORE`.

    For DataFrames `score_images` is handier; this is for SQL and for your own queries:
    `spark.udf.register("nsfw", score_udf())`, then `SELECT nsfw(content).nsfw_score …`.

    Args:
        model: Name of a built-in model card, or path of a card file.
        device: `auto` (the GPU that Spark assigned, else any, else the CPU), `cpu`, `cuda` or `cuda:N`.
        model_dir: Directory with weights, the same on all executors; else the Hugging Face cache.
        batch_size: Images in one forward pass; `auto` is 16 on a CPU, 256 on a GPU.
        max_pixels: Width x height above which an image is `too_large`.

    Raises:
        ConfigError: No such model card.
        WeightsError: Weights absent on the driver, or not the ones that the card pins.
    """
    spec = ScorerSpec(load_card(model), _absolute(model_dir), device, batch_size, max_pixels)
    return udf_of(spec, driver_fingerprint(spec))


def score_images(
    images: DataFrame,
    *,
    model: str | Path = "laion-vit-l-14",
    model_dir: str | Path | None = None,
    device: str = "auto",
    batch_size: int | Literal["auto"] = "auto",
    run_id: str | None = None,
) -> DataFrame:
    """Add a score to each image.

    Args:
        images: Any DataFrame with a binary column `content`: batch or streaming, classic or Connect.
        model: Name of a built-in model card, or path of a card file.
        model_dir: Directory with weights, the same on all executors; else the Hugging Face cache.
        device: `auto` (the GPU that Spark assigned, else any, else the CPU), `cpu` or `cuda`.
        batch_size: Images in one forward pass; `auto` is 16 on a CPU, 256 on a GPU.
        run_id: Written into each row; default a new one.

    Returns:
        The same rows, plus the columns of `image_scores`.

    Raises:
        ConfigError: No such model card.
        InputError: No binary column `content`, or another column has the name of one of ours.
        WeightsError: Weights absent on the driver, or not the ones that the card pins.
    """
    spec = ScorerSpec(load_card(model), _absolute(model_dir), device, batch_size)
    return add_scores(images, spec, driver_fingerprint(spec), run_id or new_run_id())


def add_scores(
    images: DataFrame, spec: ScorerSpec, fingerprint: str, run_id: str, *, from_path: bool = False
) -> DataFrame:
    """Add a score to each image: see `score_images`.

    Args:
        images: With a binary column `content`.
        spec: What to score with.
        fingerprint: The model's, as the driver computed it.
        run_id: Written into each row.
        from_path: Read the files of the column `path` in the Python worker. Spark then does not read
            `content`, unless another part of the query asks for it.
    """
    if dict(images.dtypes).get("content") != "binary":
        raise InputError(
            f"the images have the columns {', '.join(images.columns)}; expected a binary column `content` "
            "with the encoded images"
        )
    ours = [name for name in (*SCORE.names, *MODEL.names) if name != "length"]
    if taken := sorted(set(ours) & set(images.columns)):
        raise InputError(f"the images already have a column {', '.join(taken)}: rename or drop it first")
    carried = [name for name in images.columns if name != "length"]
    score = udf_of(spec, fingerprint, from_path=from_path)
    return (
        images.withColumn("_score", score(F.col("path" if from_path else "content")))
        .select(*carried, "_score.*")
        .withColumns(
            {
                "model": F.lit(spec.card.name),
                "model_fingerprint": F.lit(fingerprint),
                "run_id": F.lit(run_id),
                "scored_at": F.current_timestamp(),
            }
        )
    )


def _absolute(model_dir: str | Path | None) -> Path | None:
    """Make a directory absolute: Python workers have another current directory than the driver."""
    return None if model_dir is None else Path(model_dir).absolute()


def new_run_id() -> str:
    """Return an id that sorts by time."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:6]}"


def driver_fingerprint(spec: ScorerSpec) -> str:
    """Find the weights on the driver, download them if need be, and return the model's fingerprint.

    Raises:
        WeightsError: Weights absent, or not the ones that the card pins.
    """
    return fingerprint(spec.card, locate_weights(spec.card, spec.model_dir, download=True))


def udf_of(spec: ScorerSpec, expected_fingerprint: str, *, from_path: bool = False) -> Any:  # noqa: ANN401 - see score_udf
    """Return the UDF for a spec, which fails where an executor's weights are not the driver's."""

    @pandas_udf(_RETURNED)  # type: ignore[call-overload, untyped-decorator]
    def nsfw(batches: Iterator[pd.Series]) -> Iterator[pd.DataFrame]:
        scorer = _scorer(replace(spec, device=task_device(spec.device)), expected_fingerprint)
        # Batches of the model are formed across Arrow batches: Spark wants the same rows in the same
        # order, and does not mind where they are cut.
        values = chain.from_iterable(batches)
        rows = scorer.stream(map(_read_file, values) if from_path else values)
        while some := list(islice(rows, _ROWS_RETURNED)):
            yield _frame(some)

    # Not deterministic, says this, so that Spark never runs the model twice for a filter on its result.
    return nsfw.asNondeterministic()


def _read_file(path: str) -> bytes | None:
    """Read a file of this machine, named as Hadoop does (`file:/a b.jpg`); None where it cannot be read."""
    try:
        return Path(path.removeprefix("file:")).read_bytes()
    except OSError:
        return None


@lru_cache(maxsize=1)
def _scorer(spec: ScorerSpec, expected_fingerprint: str) -> Scorer:
    scorer = open_scorer(spec)
    if scorer.fingerprint != expected_fingerprint:
        raise WeightsError(
            f"this executor's {spec.card.name} has the fingerprint {scorer.fingerprint}, the driver's "
            f"{expected_fingerprint}: other weights lie here. Give all the same --model-dir, or empty "
            "this node's Hugging Face cache."
        )
    return scorer


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
