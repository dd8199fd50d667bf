"""The scorer of the tasks, as data: made on the driver, sent with the job.

In: options. Out: a `ScorerSpec`, from which `nsfw_spark.spark.worker` makes the same scorer in every task.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from pyspark.sql import SparkSession
from pyspark.sql.types import StructType

from nsfw_spark.cascade import cascade_fingerprint, model_specs
from nsfw_spark.decode import DecodeOptions
from nsfw_spark.isolation import DECODE_TIMEOUT_SECONDS
from nsfw_spark.model import ModelSpec
from nsfw_spark.options import Band, ScoreOptions
from nsfw_spark.scorer import scores_fingerprint
from nsfw_spark.self_check import SelfCheck
from nsfw_spark.spark import schema
from nsfw_spark.spark.delivery import AS_ON_DRIVER, Delivery, deliver
from nsfw_spark.spark.session import executor_cores, tries_once
from nsfw_spark.weights import fingerprint, locate_weights


@dataclass(frozen=True)
class ScorerSpec:
    """All that a task needs to make its scorer: small, picklable, comparable."""

    models: tuple[ModelSpec, ...]
    """The model, and the second model of a cascade if there is one."""
    decode: DecodeOptions = field(default_factory=DecodeOptions)
    """Limits of images, and whether several views of an image are scored."""
    decode_timeout_seconds: float = DECODE_TIMEOUT_SECONDS
    """Seconds after which an image that is still being decoded is `crashed`."""
    isolated: bool = False
    """Decode in a child process from the first attempt on: for a Spark that tries each task only once."""
    host: Literal["auto", "off"] = "auto"
    """`auto` uses the model host where child processes can start; `off` loads the model in every worker."""
    host_timeout_seconds: float = 120.0
    """Seconds of silence after which the model host counts as dead."""
    host_threads: int | None = None
    """Threads of a model host on a CPU; None means all cores."""
    band: Band | None = None
    """The uncertain scores of a cascade's first model; None without a cascade."""
    self_check: SelfCheck | None = None
    """The answer to the test image of the model whose rows the table holds; None for an empty table."""
    delivery: Delivery = AS_ON_DRIVER
    """How an executor gets the weights."""

    @classmethod
    def of(cls, options: ScoreOptions, models: Sequence[ModelSpec] | None = None) -> ScorerSpec:
        """Read the model cards, unless they are given, and make sure that the driver has the weights.

        Raises:
            ConfigError: A card, a head, a class or a lock file is wrong.
            WeightsError: Weights are absent on the driver, or are not the ones that the card pins.
        """
        models = tuple(model_specs(options) if models is None else models)
        return cls(
            models,
            options.decode,
            options.decode_timeout_seconds,
            host=options.host,
            host_timeout_seconds=options.host_timeout_seconds,
            band=options.band if len(models) > 1 else None,
            delivery=deliver(models, model_source=options.model_source, ship=options.ship_weights),
        )

    def on_executors_of(self, spark: SparkSession) -> ScorerSpec:
        """Return the spec for the executors of a session; send weights there if the driver ships them."""
        self.delivery.send(spark)
        return replace(self, host_threads=executor_cores(spark), isolated=tries_once(spark))

    @property
    def name(self) -> str:
        """The value of the column `model`: the names of the cards."""
        return "+".join(model.card.name for model in self.models)

    @property
    def scores(self) -> StructType:
        """The columns that scoring one image gives."""
        return schema.scores(self.models[0].card.other_heads, is_cascade=self.band is not None)

    def driver_fingerprint(self) -> str:
        """Find the weights on the driver, download missing ones, and return the fingerprint of the scores.

        Raises:
            WeightsError: Weights are absent, or are not the ones that the card pins.
        """
        return self.fingerprint(
            [
                fingerprint(model.card, locate_weights(model.card, model.model_dir, download=True))
                for model in self.models
            ]
        )

    def fingerprint(self, of_models: Sequence[str]) -> str:
        """Return the fingerprint of the scores, from the fingerprints of the models."""
        first, *second = (
            scores_fingerprint(each, strict=self.decode.get("strict", False)) for each in of_models
        )
        return first if self.band is None else cascade_fingerprint(first, second[0], self.band)
