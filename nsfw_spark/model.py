"""The model: encoder and heads of one card on one device. Pixels in, predictions out.

Two classes implement `Predictor`: `Model`, in this process, and `nsfw_spark.host.HostedModel`, which asks the
process that holds the model of a GPU. The scorer that feeds them does not know which one it has.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal, Protocol

import numpy as np
import numpy.typing as npt

from nsfw_spark.encoders import Encoder, OutOfMemoryError, load_encoder
from nsfw_spark.heads import Head, Predictions, load_heads
from nsfw_spark.model_card import ModelCard
from nsfw_spark.self_check import SelfCheck, self_check
from nsfw_spark.weights import fingerprint, locate_weights

_CPU_BATCH_SIZE: Final = 16  # more images at once no longer fit a CPU's caches
_GPU_BATCH_SIZES: Final = (32, 64, 128, 256, 512)
_LEAST_GAIN: Final = 1.03  # a larger batch costs memory and latency, so it must be this much faster

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelSpec:
    """Everything that another process needs to load the same model: small, picklable, comparable."""

    card: ModelCard
    model_dir: Path | None = None
    device: str = "auto"
    """`cpu`; `cuda` or `cuda:N`; `auto` or `auto:N`: that GPU if there is one, otherwise the CPU."""
    batch_size: int | Literal["auto"] = "auto"
    """Images in one forward pass."""


class Predictor(Protocol):
    """Gives predictions for pixels."""

    fingerprint: str
    """Hash of the model's weights, preprocessing and precision."""
    device: str
    """`cpu` or `cuda:N`."""
    batch_size: int
    """Most images in one forward pass."""
    self_check: SelfCheck | None
    """The model's result for the built-in test image; None if it was not computed."""

    def predict_each(self, batches: Iterable[npt.NDArray[np.uint8]]) -> Iterator[Predictions]:
        """Predict batch after batch.

        Args:
            batches: Each has at most `batch_size` images, uint8, shape (N, S, S, 3), RGB; N may be 0. The
                predictor takes a few in advance; none may change until its predictions arrive.

        Yields:
            For each batch, in order, as many predictions as it has images.
        """


class Model:
    """Encoder and heads of one card, loaded on one device: a `Predictor`.

    A batch that does not fit into the device's memory halves `batch_size` for good.
    """

    def __init__(
        self,
        encoder: Encoder,
        head: Head,
        fingerprint: str,
        batch_size: int,
        self_check: SelfCheck | None = None,
    ) -> None:
        self.device, self.fingerprint, self.batch_size = encoder.device, fingerprint, batch_size
        self.self_check, self.buffer = self_check, encoder.buffer
        self._encoder, self._head = encoder, head

    def predict(self, pixels: npt.NDArray[np.uint8]) -> Predictions:
        """Return the predictions for uint8 pixels of shape (N, S, S, 3), RGB."""
        started = time.perf_counter()
        predictions = self.start([pixels])()
        return replace(predictions, encode_seconds=time.perf_counter() - started)

    def predict_each(self, batches: Iterable[npt.NDArray[np.uint8]]) -> Iterator[Predictions]:
        """Predict batch after batch: see `Predictor.predict_each`."""
        for batch in batches:
            if not len(batch):
                yield Predictions(np.empty(0, np.float32))
                continue
            predictions = self.predict(batch)
            yield replace(predictions, wait_seconds=predictions.encode_seconds)

    def start(self, parts: Sequence[npt.NDArray[np.uint8]]) -> Callable[[], Predictions]:
        """Begin to predict; return a function that waits for the predictions.

        Args:
            parts: As in `Encoder.start`; together they are one batch, which may be larger than `batch_size`.

        Raises:
            OutOfMemoryError: Not even one image fits.
        """
        num_images = sum(len(part) for part in parts)
        if num_images > self.batch_size:
            return self._in_smaller_batches(parts)
        try:
            finish = self._encoder.start(parts)
        except OutOfMemoryError as error:
            if num_images == 1:
                raise
            self.batch_size = num_images // 2
            _log.warning("%s; from now on %d at once", error, self.batch_size)
            return self._in_smaller_batches(parts)
        slots = float(self.batch_size)

        def predictions() -> Predictions:
            encoded = finish()
            return replace(self._head.score(encoded), embeddings=encoded.embeddings, batch_slots=slots)

        return predictions

    def _in_smaller_batches(self, parts: Sequence[npt.NDArray[np.uint8]]) -> Callable[[], Predictions]:
        pixels, done, at = np.concatenate(parts), [], 0
        while at < len(pixels):  # `batch_size` may shrink on the way
            done.append(self.start([pixels[at : at + self.batch_size]])())
            at += len(done[-1])
        whole = _concatenated(done)
        return lambda: whole


def load_model(spec: ModelSpec) -> Model:
    """Load a model into this process and check it with the built-in test image.

    Raises:
        ConfigError: Its library is not installed, or does not know the architecture, or the network differs
            from the card.
        WeightsError: The weights are absent, differ from the card's sha256, or give no finite numbers.
        DeviceError: There is no usable GPU, or the model does not fit into it.
    """
    files = locate_weights(spec.card, spec.model_dir, download=True)
    encoder = load_encoder(spec.card, files["encoder"], spec.device)
    head = load_heads(spec.card, files)
    checked = self_check(spec.card, encoder, head)
    model = Model(encoder, head, fingerprint(spec.card, files), _CPU_BATCH_SIZE, checked)
    if spec.batch_size != "auto":
        model.batch_size = spec.batch_size
    elif model.device != "cpu":
        model.batch_size = fastest_batch_size(model, spec.card.preprocessing.size)
    return model


def fastest_batch_size(
    model: Model,
    size: int,
    sizes: Sequence[int] = _GPU_BATCH_SIZES,
    clock: Callable[[], float] = time.perf_counter,
) -> int:
    """Measure batch sizes, small to large; return the last one that raised the throughput by 3 %.

    This changes the model's `batch_size`. `size` is S, in pixels; `clock` returns seconds.
    """
    best, best_rate = sizes[0], 0.0
    for num_images in sizes:
        pixels = model.buffer((num_images, size, size, 3))
        pixels[:] = 128
        model.batch_size = num_images
        model.predict(pixels)  # the first batch of a size also pays for the choice of kernels
        started = clock()
        model.predict(pixels)
        rate = num_images / (clock() - started)
        if model.batch_size < num_images:  # it did not fit
            return min(best, model.batch_size)
        if rate < best_rate * _LEAST_GAIN:
            break
        best, best_rate = num_images, rate
    return best


def _concatenated(batches: Sequence[Predictions]) -> Predictions:
    """Return the predictions of several batches as one; the caller measures the seconds."""

    def column(name: str) -> npt.NDArray[np.float32] | None:
        arrays = [getattr(batch, name) for batch in batches]
        return None if arrays[0] is None else np.concatenate(arrays)

    return Predictions(
        np.concatenate([batch.nsfw_scores for batch in batches]),
        column("class_scores"),
        column("embeddings"),
        batch_slots=sum(batch.batch_slots for batch in batches),
        other_scores=column("other_scores"),
    )
