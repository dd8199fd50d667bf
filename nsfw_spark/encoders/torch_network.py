"""Base class of the encoders in torch: the device, the copies to it and back, and running out of memory.

A subclass builds the network and computes its outputs from pixel values. This class decides device and
precision.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
import numpy.typing as npt

from nsfw_spark.encoders.encoder import Encoded, Encoder, OutOfMemoryError, device_index, library
from nsfw_spark.errors import DeviceError, WeightsError
from nsfw_spark.model_card import EncoderCard, ModelCard
from nsfw_spark.weights import WeightsFile

if TYPE_CHECKING:
    import torch


class TorchEncoder(Encoder):
    """A network in torch."""

    _LIBRARY: ClassVar[str]
    """Python package that builds it."""
    _EXTRA: ClassVar[str]
    """Extra of this project that installs the package."""

    def __init__(self, card: ModelCard, weights: WeightsFile, device: str) -> None:
        torch = library("torch", card.encoder, self._EXTRA)
        library(self._LIBRARY, card.encoder, self._EXTRA)
        self.device = _torch_device(device)
        self.precision = "float32" if self.device == "cpu" else card.encoder.precision
        self._dtype = getattr(torch, self.precision)
        if self.precision == "float32":
            # By default, convolutions on a GPU round float32 to TF32's 11 bits, which changes scores.
            torch.backends.cudnn.allow_tf32 = False
        network = self._build(card, weights)
        try:
            self._network = network.eval().requires_grad_(requires_grad=False).to(self.device, self._dtype)
        except torch.cuda.OutOfMemoryError as error:
            raise DeviceError(f"{card.name} does not fit into {self.device}: {error}") from error
        self._preprocessing = card.preprocessing
        self._mean, self._std = (
            torch.tensor(numbers, device=self.device).view(1, 3, 1, 1)
            for numbers in (card.preprocessing.mean, card.preprocessing.std)
        )
        self._copying = None if self.device == "cpu" else torch.cuda.Stream(self.device)

    @abstractmethod
    def _build(self, card: ModelCard, weights: WeightsFile) -> Any:  # noqa: ANN401 - torch.nn.Module
        """Build the network with its weights, on the CPU."""

    @abstractmethod
    def _encode(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Encode pixel values, the network's dtype, (N, 3, S, S), on its device.

        Returns:
            Embeddings of unit length (N, D) and class probabilities (N, C), float32, on the device; each None
            if the network does not give it.
        """

    def start(self, parts: Sequence[npt.NDArray[np.uint8]]) -> Callable[[], Encoded]:
        """Begin to encode a batch: see `Encoder.start`."""
        import torch

        try:
            with torch.inference_mode():
                return self._on_cpu(*self._encode(self._pixel_values(self._on_device(parts))))
        except torch.cuda.OutOfMemoryError:
            num_images = sum(len(part) for part in parts)
            message = f"a batch of {num_images} images does not fit into {self.device}"
        # Raised here, after `except`: its error, and the tensors that the traceback holds, are gone.
        torch.cuda.empty_cache()
        raise OutOfMemoryError(message)

    def buffer(self, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
        """Return an array to receive pixels in, pinned for a GPU, which copies from there by itself."""
        import torch

        buffer = torch.empty(shape, dtype=torch.uint8, pin_memory=self.device != "cpu")
        return cast("npt.NDArray[np.uint8]", buffer.numpy())

    def _on_device(self, parts: Sequence[npt.NDArray[np.uint8]]) -> torch.Tensor:
        """Copy a batch to the device; on a GPU in a separate stream, while the last batch computes."""
        import torch

        tensors = [torch.from_numpy(part) for part in parts]
        if self._copying is None:
            return tensors[0] if len(tensors) == 1 else torch.cat(tensors)
        computing = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self._copying):
            batch = torch.cat([part.to(self.device, non_blocking=True) for part in tensors])
        computing.wait_stream(self._copying)
        batch.record_stream(computing)  # keeps its memory from being reused while it is read
        return batch

    def _pixel_values(self, batch: torch.Tensor) -> torch.Tensor:
        """Normalise on the device: uint8 (N, S, S, 3) → the encoder's dtype (N, 3, S, S)."""
        channels = batch.permute(0, 3, 1, 2)
        if self._preprocessing.channels == "bgr":
            channels = channels.flip(1)
        values = (channels.float() / self._preprocessing.scale - self._mean) / self._std
        return cast("torch.Tensor", values.to(self._dtype))

    def _on_cpu(self, *results: torch.Tensor | None) -> Callable[[], Encoded]:
        """Begin to copy the results back; return a function that waits for them."""
        import torch

        if self._copying is None:
            return lambda: Encoded(*(_array(result) for result in results))
        copies = [None if result is None else _copy(result) for result in results]
        done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # waits asleep, and leaves the core to decoding
        done.record(torch.cuda.current_stream(self.device))

        def finish() -> Encoded:
            done.synchronize()
            return Encoded(*(_array(copy) for copy in copies))

        return finish


def fill(network: Any, tensors: Mapping[str, torch.Tensor], card: EncoderCard, path: Path) -> None:  # noqa: ANN401 - torch.nn.Module
    """Give a torch.nn.Module, built with or without storage, its weights from a file, in float32.

    Raises:
        WeightsError: A tensor is missing, unknown or of another shape; the message names it.
    """
    try:
        network.load_state_dict({name: t.float() for name, t in tensors.items()}, strict=True, assign=True)
    except RuntimeError as error:
        raise WeightsError(
            f"{path} does not hold the weights of {card.architecture}: {' '.join(str(error).split())[:500]}"
        ) from error


def _array(result: torch.Tensor | None) -> npt.NDArray[np.float32] | None:
    return None if result is None else result.numpy()


def _copy(result: torch.Tensor) -> torch.Tensor:
    """Begin to copy a result to pinned memory."""
    import torch

    copy = torch.empty(result.shape, dtype=torch.float32, pin_memory=True)
    return copy.copy_(result, non_blocking=True)


def _torch_device(device: str) -> str:
    import torch

    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "cpu" or (device.startswith("auto") and num_gpus == 0):
        return "cpu"
    if device_index(device) >= num_gpus:
        raise DeviceError(
            f"device is {device}, and torch sees {num_gpus} GPUs. Check nvidia-smi and that "
            "torch is a CUDA build, or pass --device cpu."
        )
    return f"cuda:{device_index(device)}"
