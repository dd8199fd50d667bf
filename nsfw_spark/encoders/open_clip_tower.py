"""The image tower of a CLIP model, in torch, as open_clip builds it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from nsfw_spark.encoders.encoder import Encoded, Encoder, OutOfMemoryError, device_index, library
from nsfw_spark.errors import ConfigError, DeviceError, WeightsError
from nsfw_spark.model_card import EncoderCard, ModelCard
from nsfw_spark.weights import WeightsFile, read_tensors

if TYPE_CHECKING:
    import torch


class OpenClipEncoder(Encoder):
    """An image tower.

    The text tower never gets memory: the model is laid out without storage, and only the tensors of the
    image tower are read from the file.

    Source:
        `encode_image(normalize=True)` of open_clip 3.3.
    """

    def __init__(self, card: ModelCard, weights: WeightsFile, device: str) -> None:
        torch = library("torch", card.encoder, "clip")
        library("open_clip", card.encoder, "clip")
        self.device = _torch_device(device)
        dtype = "float32" if self.device == "cpu" else card.encoder.precision
        self._dtype = getattr(torch, dtype)
        tower = _image_tower(card.encoder, weights)
        try:
            self._tower = tower.eval().requires_grad_(requires_grad=False).to(self.device, self._dtype)
        except torch.cuda.OutOfMemoryError as error:
            raise DeviceError(f"{card.name} does not fit into {self.device}: {error}") from error
        self._preprocessing = card.preprocessing
        self._mean, self._std = (
            torch.tensor(numbers, device=self.device).view(1, 3, 1, 1)
            for numbers in (card.preprocessing.mean, card.preprocessing.std)
        )
        self._copying = None if self.device == "cpu" else torch.cuda.Stream(self.device)

    def start(self, parts: Sequence[npt.NDArray[np.uint8]]) -> Callable[[], Encoded]:
        """Begin to encode a batch: see `Encoder.start`."""
        import torch

        try:
            with torch.inference_mode():
                embeddings = self._tower(self._pixel_values(self._on_device(parts))).float()  # (N, D)
                return self._on_cpu(torch.nn.functional.normalize(embeddings, dim=-1))
        except torch.cuda.OutOfMemoryError:
            num_images = sum(len(part) for part in parts)
            message = f"a batch of {num_images} images does not fit into {self.device}"
        # Raised out here, where the error and the tensors that its traceback holds are gone.
        torch.cuda.empty_cache()
        raise OutOfMemoryError(message)

    def buffer(self, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
        """Return memory to receive pixels in, pinned for a GPU: from there it copies by itself."""
        import torch

        buffer = torch.empty(shape, dtype=torch.uint8, pin_memory=self.device != "cpu")
        return cast("npt.NDArray[np.uint8]", buffer.numpy())

    def _on_device(self, parts: Sequence[npt.NDArray[np.uint8]]) -> torch.Tensor:
        """Copy a batch to the device: on a GPU in a stream of its own, while the batch before computes."""
        import torch

        tensors = [torch.from_numpy(part) for part in parts]
        if self._copying is None:
            return tensors[0] if len(tensors) == 1 else torch.cat(tensors)
        computing = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self._copying):
            batch = torch.cat([part.to(self.device, non_blocking=True) for part in tensors])
        computing.wait_stream(self._copying)
        batch.record_stream(computing)  # so that its memory is not given to a copy while it is read
        return batch

    def _pixel_values(self, batch: torch.Tensor) -> torch.Tensor:
        """Normalise on the device: uint8 (N, S, S, 3) → the encoder's dtype (N, 3, S, S)."""
        channels = batch.permute(0, 3, 1, 2)
        if self._preprocessing.channels == "bgr":
            channels = channels.flip(1)
        values = (channels.float() / self._preprocessing.scale - self._mean) / self._std
        return cast("torch.Tensor", values.to(self._dtype))

    def _on_cpu(self, embeddings: torch.Tensor) -> Callable[[], Encoded]:
        """Begin to copy the result back, and return what waits for it."""
        import torch

        if self._copying is None:
            return lambda: Encoded(embeddings.numpy())
        result = torch.empty(embeddings.shape, dtype=torch.float32, pin_memory=True)
        result.copy_(embeddings, non_blocking=True)
        done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # waits asleep, and leaves the core to those who decode
        done.record(torch.cuda.current_stream(self.device))

        def finish() -> Encoded:
            done.synchronize()
            return Encoded(result.numpy())

        return finish


def _image_tower(card: EncoderCard, weights: WeightsFile) -> Any:  # noqa: ANN401 - torch.nn.Module
    import open_clip
    import torch

    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*QuickGELU")  # the wrong activation: other scores
        quiet = logging.getLogger()
        level = quiet.level
        quiet.setLevel(logging.ERROR)  # "No pretrained weights loaded": they are loaded below
        try:
            if weights.path is None:
                torch.manual_seed(int(card.weights.random or 0))
                return open_clip.create_model(card.architecture, load_weights=False).visual
            model = open_clip.create_model(card.architecture, load_weights=False, device="meta")
        except RuntimeError as error:
            raise ConfigError(
                f"encoder.architecture is {card.architecture!r}, which open_clip cannot build: {error}"
            ) from error
        finally:
            quiet.setLevel(level)
    tensors = {name: t.float() for name, t in read_tensors(weights.path, "visual.").items()}
    try:
        model.visual.load_state_dict(tensors, strict=True, assign=True)
    except RuntimeError as error:
        raise WeightsError(
            f"{weights.path} does not hold the weights of {card.architecture}: "
            f"{' '.join(str(error).split())[:500]}"
        ) from error
    return model.visual


def _torch_device(device: str) -> str:
    import torch

    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "cpu" or (device.startswith("auto") and num_gpus == 0):
        return "cpu"
    if device_index(device) >= num_gpus:
        raise DeviceError(
            f"device {device} was asked for and torch sees {num_gpus} GPUs. Check nvidia-smi and that "
            "torch is a CUDA build, or pass --device cpu."
        )
    return f"cuda:{device_index(device)}"
