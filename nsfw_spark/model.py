"""The model: encoder and heads of one card on one device. Pixels in, predictions out.

Two things implement `Predictor`: `Model`, in this process, and `nsfw_spark.host.HostedModel`, which asks the
process that holds the model of a GPU. The scorer that feeds them does not know which it has.
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
_WORTH: Final = 1.03  # a larger batch costs memory and waiting: it must be this much faster

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelSpec:
    """All that it takes to load the same model elsewhere: small, picklable, comparable."""

    card: ModelCard
    model_dir: Path | None = None
    device: str = "auto"
    """`cpu`; `cuda` or `cuda:N`; `auto` or `auto:N`: that GPU if there is any, else the CPU."""
    batch_size: int | Literal["auto"] = "auto"
    """Images in one forward pass."""


class Predictor(Protocol):
    """Gives predictions for pixels."""

    fingerprint: str
    """Hash of the model's weights, preprocessing and precision."""
    device: str
    """`cpu` or `cuda:N`."""
    batch_size: int
    """Images that it wants at once."""
    self_check: SelfCheck | None
    """What it made of the built-in test image when it was loaded; None where nobody asked it."""

    def predict_each(self, batches: Iterable[npt.NDArray[np.uint8]]) -> Iterator[Predictions]:
        """Predict batch after batch.

        Args:
            batches: Each at most `batch_size` images, uint8, shape (N, S, S, 3), RGB; N may be 0. A few are
                taken in advance; each must not change until its predictions are there.

        Yields:
            For each batch, in order, as many predictions as it has images.
        """


class Model:
    """Encoder and heads of one card, loaded on one device.

    Attributes:
        device: `cpu` or `cuda:N`.
        fingerprint: Hash of weights, preprocessing and precision.
        batch_size: Images in one forward pass, at most. A batch that does not fit into the device's memory
            halves it, for good.
        self_check: What it makes of the built-in test image; None where nobody asked it.
    """

    def __init__(
        self,
        encoder: Encoder,
        head: Head,
        fingerprint: str,
        batch_size: int,
        self_check: SelfCheck | None = None,
    ) -> None:
        self.self_check = self_check
        self.device, self.fingerprint, self.batch_size = encoder.device, fingerprint, batch_size
        self._encoder, self._head = encoder, head
        self.buffer = encoder.buffer

    def predict(self, pixels: npt.NDArray[np.uint8]) -> Predictions:
        """Predict for uint8 pixels of shape (N, S, S, 3), RGB, and wait for it."""
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
        """Begin to predict; on a GPU this returns before the batch is done.

        Args:
            parts: As in `Encoder.start`; together they are one batch, which may be larger than `batch_size`.

        Returns:
            A function that waits for the predictions and returns them.

        Raises:
            OutOfMemoryError: Not even one image fits.
        """
        num_images = sum(len(part) for part in parts)
        if num_images > self.batch_size:
            return self._in_pieces(parts)
        try:
            finish = self._encoder.start(parts)
        except OutOfMemoryError as error:
            if num_images == 1:
                raise
            self.batch_size = num_images // 2
            _log.warning("%s; from now on %d at once", error, self.batch_size)
            return self._in_pieces(parts)
        slots = float(self.batch_size)

        def predictions() -> Predictions:
            encoded = finish()
            return replace(self._head.score(encoded), embeddings=encoded.embeddings, batch_slots=slots)

        return predictions

    def _in_pieces(self, parts: Sequence[npt.NDArray[np.uint8]]) -> Callable[[], Predictions]:
        """Predict a batch that is too large, piece by piece."""
        pixels, done, at = np.concatenate(parts), [], 0
        while at < len(pixels):
            done.append(self.start([pixels[at : at + self.batch_size]])())
            at += len(done[-1])
        whole = _concatenated(done)
        return lambda: whole


def load_model(spec: ModelSpec) -> Model:
    """Load a model into this process, and have it score the built-in test image.

    Raises:
        ConfigError: Its library is not installed, or does not know the architecture; or the network is not
            what the card says.
        WeightsError: Weights absent, not the ones that the card pins, or such that they give no numbers.
        DeviceError: No usable GPU, or the model does not fit into it.
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
    """Try batch sizes, small to large, and return the last that was worth it.

    Args:
        model: Its own `batch_size` is left at a size that fits.
        size: S, pixels.
        sizes: To try.
        clock: Seconds.
    """
    best, best_rate = sizes[0], 0.0
    for num_images in sizes:
        pixels = model.buffer((num_images, size, size, 3))
        pixels[:] = 128
        model.batch_size = num_images
        model.predict(pixels)  # the first of a size pays for choosing kernels
        started = clock()
        model.predict(pixels)
        rate = num_images / (clock() - started)
        if model.batch_size < num_images:  # it did not fit
            return min(best, model.batch_size)
        if rate < best_rate * _WORTH:
            break
        best, best_rate = num_images, rate
    return best


def _concatenated(pieces: Sequence[Predictions]) -> Predictions:
    def column(name: str) -> npt.NDArray[np.float32] | None:
        values = [getattr(piece, name) for piece in pieces]
        return None if values[0] is None else np.concatenate(values)

    scores = np.concatenate([piece.nsfw_scores for piece in pieces])
    slots = sum(piece.batch_slots for piece in pieces)
    return Predictions(
        scores,
        column("class_scores"),
        column("embeddings"),
        batch_slots=slots,
        other_scores=column("other_scores"),
    )
