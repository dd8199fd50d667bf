"""The scorer of a task, in the Python worker that runs it.

Its model is the model host's, which all tasks of the executor share, or it is loaded here, once for each
Python worker. Also here: which GPU the task uses, which executor it belongs to, and how it decodes.

Executors import this module by name. A cache in the job's own script would be pickled with the UDF and begin
empty in every task.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Final

import psutil
import pyarrow as pa
from pyspark import TaskContext
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

from nsfw_spark.cascade import Cascade
from nsfw_spark.decode import decode
from nsfw_spark.errors import DeviceError, WeightsError
from nsfw_spark.host import HostedModel, HostSpec, HostUnavailableError, Owner
from nsfw_spark.isolation import GuardedDecoder, IsolatedDecoder
from nsfw_spark.model import Model, ModelSpec, Predictor, load_model
from nsfw_spark.scorer import Decoder, Scorer
from nsfw_spark.self_check import SelfCheck, check_same
from nsfw_spark.spark.delivery import Delivery
from nsfw_spark.spark.progress import from_executor
from nsfw_spark.spark.scorer_spec import ScorerSpec

_log = logging.getLogger(__name__)
_UUIDS: Final = ("MIG-", "GPU-")


@contextmanager
def task_scorer(spec: ScorerSpec, expected_fingerprint: str) -> Iterator[Scorer | Cascade]:
    """Yield the scorer for the current task.

    Args:
        spec: Models and options of the scorer.
        expected_fingerprint: Fingerprint of the scores, as the driver computed it.

    Raises:
        WeightsError: This executor's weights are absent, or differ from the driver's.
        DeviceError: The weights are the same, but this machine computes other scores than the table's rows.
    """
    models = [_received(model, spec.delivery) for model in spec.models]
    with ExitStack() as stack:
        predictors = stack.enter_context(_predictors(spec, models))
        fingerprint = spec.fingerprint([predictor.fingerprint for predictor in predictors])
        check_fingerprint(fingerprint, expected_fingerprint, spec.name)
        decoder = stack.enter_context(task_decoder(spec.decode_timeout_seconds, isolated=spec.isolated))
        first, *second = (
            Scorer(model.card, predictor, decoder=decoder, **spec.decode)
            for model, predictor in zip(models, predictors, strict=True)
        )
        scorer = first if spec.band is None else Cascade(first, second[0], *spec.band)
        if spec.self_check is not None:
            check_same(scorer.self_check, spec.self_check, spec.name)
        yield scorer


def check_fingerprint(actual: str, expected: str, model: str) -> None:
    """Make sure that this executor has the driver's model.

    Raises:
        WeightsError: The fingerprints differ.
    """
    if actual != expected:
        raise WeightsError(
            f"this executor's {model} has the fingerprint {actual}, the driver's {expected}: other weights "
            "are here. Give all machines the same --model-dir, or empty this node's Hugging Face cache"
        )


def _received(model: ModelSpec, delivery: Delivery) -> ModelSpec:
    card, model_dir = delivery.received(model.card, model.model_dir)
    return replace(model, card=card, model_dir=model_dir, device=task_device(model.device))


@contextmanager
def _predictors(spec: ScorerSpec, models: Sequence[ModelSpec]) -> Iterator[Sequence[Predictor]]:
    with ExitStack() as stack:
        hosted: list[HostedModel] = []
        if spec.host == "auto" and _can_be_hosted():
            host = HostSpec(tuple(models), this_executor(), spec.host_threads, spec.host_timeout_seconds)
            try:
                for index in range(len(models)):
                    hosted.append(stack.enter_context(HostedModel(host, _task_name(), index)))  # noqa: PERF401
            except HostUnavailableError as error:
                _give_up_hosting(error, [model.device for model in models])
        yield hosted if len(hosted) == len(models) else [_own_model(model) for model in models]


@lru_cache(maxsize=2)
def _own_model(spec: ModelSpec) -> Model:
    return load_model(spec)


_without_host: list[str] = []  # why this Python worker loads the model itself


def _can_be_hosted() -> bool:
    return not _without_host


def _give_up_hosting(error: HostUnavailableError, devices: Sequence[str]) -> None:
    """Let each Python worker of a CPU load the model.

    Raises:
        DeviceError: There is a GPU, whose memory would not hold so many.
    """
    if any(device.startswith("cuda") or (device != "cpu" and num_visible_gpus()) for device in devices):
        raise DeviceError(
            f"no model host can be started here ({error}), and without it each Python worker would load the "
            f"model onto the GPU ({', '.join(devices)}). Repair that; or pass --host off, if one model for "
            "each task fits into the GPU's memory"
        ) from error
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


@contextmanager
def task_decoder(timeout_seconds: float, *, isolated: bool) -> Iterator[Decoder]:
    """Yield the decoder for the current task: guarded at first, isolated after a failed attempt.

    An image that ends the decoder ends the Python worker of the first attempt. Spark starts the task again,
    and there the image ends a child process and becomes a row. So only failed tasks pay for isolation, and
    none fails twice for its images. Outside of Spark, this process must not end: there it is `decode`.

    Args:
        timeout_seconds: Limit for each image.
        isolated: Decode in a child process at the first attempt too.
    """
    context = TaskContext.get()
    if context is None:
        yield decode
        return
    with ExitStack() as stack:
        if isolated or context.attemptNumber() > 0:
            try:
                decoder = stack.enter_context(IsolatedDecoder(timeout_seconds))
            except OSError as error:
                _log.warning(
                    "no child process can be started here (%s): images are decoded in the Python worker, and "
                    "an image that ends it fails its task",
                    error,
                )
            else:
                yield decoder
                return
        yield stack.enter_context(GuardedDecoder(timeout_seconds))


def task_device(requested: str) -> str:
    """Return the device for the current task.

    Spark's GPU-aware scheduling gives each task an address, from conf/discover_gpus.sh. Local mode gives
    none; there GPUs are shared out by partition.

    An address that is a UUID becomes the only device that this process and its model host can see: CUDA shows
    a process at most one MIG device, and no index names another. If CUDA runs in this process already
    (without a model host, after a task with another address), the process keeps its first device.

    Args:
        requested: `auto`, `cpu`, `cuda` or `cuda:N`.

    Returns:
        `cpu`; `cuda:N`; or `auto:N` (GPU N where the model's library can use it, else the CPU).
    """
    if requested not in {"auto", "cuda"}:
        return requested
    context = TaskContext.get()
    assigned = context.resources().get("gpu") if context else None
    if assigned is not None:
        address = assigned.addresses[0]
        if address.startswith(_UUIDS):
            os.environ["CUDA_VISIBLE_DEVICES"] = address
        return f"cuda:{device_index(address, os.environ.get('CUDA_VISIBLE_DEVICES'))}"
    partition = context.partitionId() if context else 0
    return f"{requested}:{partition % max(1, num_visible_gpus())}"


def device_index(address: str, visible: str | None) -> int:
    """Map Spark's address of a GPU to CUDA's index.

    Args:
        address: An index, or a UUID, which is then the only visible device.
        visible: `CUDA_VISIBLE_DEVICES` of this process; None if it is not set.
    """
    if not address.isdecimal():
        return 0
    if visible is None:
        return int(address)
    devices = [device.strip() for device in visible.split(",") if device.strip()]
    if address in devices:
        return devices.index(address)
    # The list is narrowed already, and the address counts within it: it must not be mapped again.
    return int(address) % max(1, len(devices))


def num_visible_gpus() -> int:
    """Count the NVIDIA GPUs that this process may use, without loading CUDA."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        devices = [device.strip() for device in visible.split(",") if device.strip() not in {"", "-1"}]
        # Of several MIG devices CUDA shows the first.
        return 1 if any(device.startswith("MIG-") for device in devices) else len(devices)
    driver = Path("/proc/driver/nvidia/gpus")
    return len(list(driver.iterdir())) if driver.is_dir() else 0


def this_executor() -> Owner:
    """Return the executor of this Python worker; in local mode the driver.

    Spark gives each worker the directories of its executor's block manager. They have a random name, exist as
    long as the executor (in local mode the SparkContext), and are removed when it ends normally. A killed
    executor removes nothing; its process id tells that it is gone.
    """
    directories = os.environ.get("SPARK_LOCAL_DIRS", "")
    directory = next((each for each in directories.split(",") if os.path.isdir(each)), None)  # noqa: PTH112
    jvm = _jvm()
    name = directories or (f"process {jvm.pid} of {jvm.create_time()}" if jvm else "unknown")
    if jvm is None:
        return Owner(name, directory=directory)
    return Owner(name, jvm.pid, jvm.create_time(), directory)


def _jvm() -> psutil.Process | None:
    """Return the Java process above this one, or None in a sandbox that hides it."""
    try:
        return next((each for each in psutil.Process().parents() if "java" in each.name()), None)
    except psutil.Error:
        return None


def ask_executor(spark: SparkSession, spec: ScorerSpec, fingerprint: str) -> SelfCheck:
    """Load the model on an executor and return its answer to the built-in test image.

    The driver cannot answer: it may have neither a GPU nor a model library. The model stays loaded there.

    Args:
        spark: The session.
        spec: Models and options of the scorer.
        fingerprint: Fingerprint of the scores, as the driver computed it.

    Raises:
        NsfwSparkError: The model could not be loaded there.
    """
    column = "self_check"

    def ask(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            with task_scorer(spec, fingerprint) as scorer:
                answers = [scorer.self_check and scorer.self_check.as_json()] * batch.num_rows
            yield pa.RecordBatch.from_arrays([pa.array(answers, pa.string())], [column])

    try:
        (row,) = spark.range(0, 1, 1, 1).mapInArrow(ask, f"{column} string").collect()
    except PySparkException as error:
        raise from_executor(error) from error
    return SelfCheck.from_json(row[column])
