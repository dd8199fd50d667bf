"""The scorer of a task, in the Python worker that runs it.

Either its model is the model host's, which all tasks of the executor share, or it is loaded here, once for
each Python worker. This module is imported by name on the executors: a cache that lived in the job's own
script would be pickled with the UDF and begin empty in every task.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final, Literal

from pyspark import TaskContext

from nsfw_spark.decode import DEFAULT_MAX_PIXELS
from nsfw_spark.errors import WeightsError
from nsfw_spark.host import HostedModel, HostSpec, HostUnavailableError
from nsfw_spark.model import Model, ModelSpec, Predictor, load_model
from nsfw_spark.model_card import ModelCard
from nsfw_spark.scorer import Scorer
from nsfw_spark.spark.executor import this_executor
from nsfw_spark.spark.gpu import task_device

HOST_TIMEOUT_SECONDS: Final = 120.0

_log = logging.getLogger(__name__)


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


@contextmanager
def task_scorer(spec: ScorerSpec, expected_fingerprint: str) -> Iterator[Scorer]:
    """Yield the scorer for the current task.

    Args:
        spec: What to score with.
        expected_fingerprint: The model's, as the driver computed it.

    Raises:
        WeightsError: This executor's weights are not the driver's.
    """
    model = replace(spec.model, device=task_device(spec.model.device))
    with _predictor(spec, model) as predictor:
        check_fingerprint(predictor.fingerprint, expected_fingerprint, model.card)
        yield Scorer(model.card, predictor, max_pixels=spec.max_pixels)


def check_fingerprint(found: str, expected: str, card: ModelCard) -> None:
    """Make sure that this executor has the driver's model.

    Raises:
        WeightsError: Its weights are others.
    """
    if found != expected:
        raise WeightsError(
            f"this executor's {card.name} has the fingerprint {found}, the driver's {expected}: other "
            "weights lie here. Give all the same --model-dir, or empty this node's Hugging Face cache."
        )


@contextmanager
def _predictor(spec: ScorerSpec, model: ModelSpec) -> Iterator[Predictor]:
    if spec.host == "auto" and _can_be_hosted():
        host = HostSpec(model, this_executor(), spec.host_threads, spec.host_timeout_seconds)
        try:
            hosted = HostedModel(host, _task_name())
        except HostUnavailableError as error:
            _give_up_hosting(error)
        else:
            with hosted:
                yield hosted
            return
    yield _own_model(model)


@lru_cache(maxsize=1)
def _own_model(spec: ModelSpec) -> Model:
    return load_model(spec)


_without_host: list[str] = []  # why this Python worker does without


def _can_be_hosted() -> bool:
    return not _without_host


def _give_up_hosting(error: HostUnavailableError) -> None:
    _without_host.append(str(error))
    _log.warning(
        "no model host can be started here (%s): each Python worker loads the model, as with --host off",
        error,
    )


def _task_name() -> str:
    context = TaskContext.get()
    if context is None:
        return "a task"
    gpu = context.resources().get("gpu")
    address = f", GPU {gpu.addresses[0]}" if gpu else ""
    return f"task {context.taskAttemptId()} (partition {context.partitionId()}{address})"
