"""What the tasks score with, as data: made on the driver, sent with the job.

In: model cards and options. Out: a `ScorerSpec`, from which `nsfw_spark.spark.worker` makes the same scorer
in every task.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal, TypedDict

from pyspark.sql.types import StructType

from nsfw_spark.cards import choose_card
from nsfw_spark.cascade import Band, cascade_fingerprint
from nsfw_spark.decode import DEFAULT_MAX_BYTES, DEFAULT_MAX_PIXELS
from nsfw_spark.errors import ConfigError
from nsfw_spark.isolation import DECODE_TIMEOUT_SECONDS
from nsfw_spark.model import ModelSpec
from nsfw_spark.scorer import scores_fingerprint
from nsfw_spark.self_check import SelfCheck
from nsfw_spark.spark import schema
from nsfw_spark.spark.delivery import AS_ON_DRIVER, Delivery
from nsfw_spark.weights import with_lock

HOST_TIMEOUT_SECONDS: Final = 120.0
_EVERY_SCORE: Final = Band(0.0, 1.0)


@dataclass(frozen=True)
class ScorerSpec:
    """All that it takes to have the same scorer in every task: small, picklable, comparable."""

    model: ModelSpec
    max_pixels: int = DEFAULT_MAX_PIXELS
    """Width x height above which an image is `too_large`."""
    host: Literal["auto", "off"] = "auto"
    """`auto`: the model host, where child processes can start; `off`: a model in each Python worker."""
    host_timeout_seconds: float = HOST_TIMEOUT_SECONDS
    """Without a sign of life for so long, the model host counts as dead."""
    host_threads: int | None = None
    """Of the model host, where it computes on the CPU; None: all cores."""
    max_bytes: int = DEFAULT_MAX_BYTES
    """Of an encoded image, above which it is `too_large`."""
    decode_timeout_seconds: float = DECODE_TIMEOUT_SECONDS
    """An image that takes longer to decode is `crashed`."""
    isolated: bool = False
    """Decode in a child process from the first attempt on: where Spark tries a task only once."""
    strict: bool = False
    """Score several views of an image."""
    second: ModelSpec | None = None
    """The second model of a cascade."""
    band: Band = _EVERY_SCORE
    """With `second`: the scores of which the first is not sure."""

    self_check: SelfCheck | None = None
    """Of the model that scored the rows which are there; None where there are none."""
    delivery: Delivery = AS_ON_DRIVER
    """How an executor comes to the weights."""

    @property
    def models(self) -> list[ModelSpec]:
        """The model, and the second if there is one."""
        return [self.model] if self.second is None else [self.model, self.second]

    @property
    def name(self) -> str:
        """What the column `model` says: the names of the cards."""
        return "+".join(model.card.name for model in self.models)

    @property
    def scores(self) -> StructType:
        """The columns that scoring one image gives."""
        return schema.scores(self.model.card.other_heads, is_cascade=self.second is not None)

    def fingerprint(self, fingerprints: Sequence[str]) -> str:
        """Return the fingerprint of the scores, of those of the models."""
        first, *second = (scores_fingerprint(each, strict=self.strict) for each in fingerprints)
        return cascade_fingerprint(first, second[0], self.band) if second else first


class SecondModel(TypedDict, total=False):
    """The fields of a `ScorerSpec` that make it a cascade; none of them where there is none."""

    second: ModelSpec
    band: Band


def second_model(
    first: ModelSpec,
    second: str | Path | None,
    uncertain: tuple[float, float],
    lock: Path | None = None,
) -> SecondModel:
    """Read the card of a cascade's second model, which has no heads but the one that decides.

    Args:
        first: The first model; the second is loaded as it is.
        second: Name of a model card, or path of a card file; None: no cascade.
        uncertain: Scores of which the first is not sure: the lowest and the highest.
        lock: File that pins the weights; default: the one in the first's directory, if there is one.

    Raises:
        ConfigError: The card or the scores are wrong, or the first has a head whose column is the cascade's.
    """
    if second is None:
        return {}
    if taken := {"first", "second"} & set(first.card.other_heads):
        raise ConfigError(
            f"the model {first.card.name} has a head {taken.pop()}, and a cascade has a column of that name "
            "itself: choose heads without it"
        )
    card = with_lock(choose_card(second, heads=["nsfw"]), first.model_dir, lock)
    return {"second": replace(first, card=card), "band": Band.of(*uncertain)}
