"""The scorer of a task, in the Python worker that runs it.

Either its model is the model host's, which all tasks of the executor share, or it is loaded here, once for
each Python worker. This module is imported by name on the executors: a cache that lived in the job's own
script would be pickled with the UDF and begin empty in every task.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import lru_cache

from pyspark import TaskContext

from nsfw_spark.cascade import Cascade
from nsfw_spark.decode import DecodeOptions
from nsfw_spark.errors import WeightsError
from nsfw_spark.host import HostedModel, HostSpec, HostUnavailableError
from nsfw_spark.model import Model, ModelSpec, Predictor, load_model
from nsfw_spark.scorer import Scorer
from nsfw_spark.self_check import check_same
from nsfw_spark.spark.decoding import task_decoder
from nsfw_spark.spark.delivery import Delivery
from nsfw_spark.spark.executor import this_executor
from nsfw_spark.spark.gpu import task_device
from nsfw_spark.spark.scorer_spec import ScorerSpec

_log = logging.getLogger(__name__)


@contextmanager
def task_scorer(spec: ScorerSpec, expected_fingerprint: str) -> Iterator[Scorer | Cascade]:
    """Yield the scorer for the current task.

    Args:
        spec: What to score with.
        expected_fingerprint: Of the scores, as the driver computed it.

    Raises:
        WeightsError: This executor's weights are absent, or not the driver's.
        DeviceError: With the same weights, its scores are not those of the rows that are there.
    """
    options = DecodeOptions(max_pixels=spec.max_pixels, max_bytes=spec.max_bytes, strict=spec.strict)
    models = [_received(model, spec.delivery) for model in spec.models]
    with ExitStack() as stack:
        predictors = stack.enter_context(_predictors(spec, models))
        found = spec.fingerprint([predictor.fingerprint for predictor in predictors])
        check_fingerprint(found, expected_fingerprint, spec.name)
        decoder = stack.enter_context(task_decoder(spec.decode_timeout_seconds, isolated=spec.isolated))
        first, *second = (
            Scorer(model.card, predictor, decoder=decoder, **options)
            for model, predictor in zip(models, predictors, strict=True)
        )
        scorer = Cascade(first, second[0], *spec.band) if second else first
        if spec.self_check is not None:
            check_same(scorer.self_check, spec.self_check, spec.name)
        yield scorer


def check_fingerprint(found: str, expected: str, model: str) -> None:
    """Make sure that this executor has the driver's model.

    Raises:
        WeightsError: Its weights are others.
    """
    if found != expected:
        raise WeightsError(
            f"this executor's {model} has the fingerprint {found}, the driver's {expected}: other "
            "weights lie here. Give all the same --model-dir, or empty this node's Hugging Face cache."
        )


def _received(model: ModelSpec, delivery: Delivery) -> ModelSpec:
    card, model_dir = delivery.received(model.card, model.model_dir)
    return replace(model, card=card, model_dir=model_dir, device=task_device(model.device))


@contextmanager
def _predictors(spec: ScorerSpec, models: Sequence[ModelSpec]) -> Iterator[Sequence[Predictor]]:
    with ExitStack() as stack:
        hosted: list[HostedModel] = []
        if spec.host == "auto" and _can_be_hosted():
            first, *second = models
            host = HostSpec(
                first,
                this_executor(),
                spec.host_threads,
                spec.host_timeout_seconds,
                second=second[0] if second else None,
            )
            try:
                for place in range(len(models)):
                    hosted.append(stack.enter_context(HostedModel(host, _task_name(), place)))  # noqa: PERF401
            except HostUnavailableError as error:
                _give_up_hosting(error)
        yield hosted if len(hosted) == len(models) else [_own_model(model) for model in models]


@lru_cache(maxsize=2)
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
