"""What an encoder is, whatever library computes it, and what all of them share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import numpy.typing as npt

from nsfw_spark.errors import ConfigError, DeviceError, WeightsError
from nsfw_spark.model_card import EncoderCard, ModelCard, Preprocessing
from nsfw_spark.weights import WeightsFile

if TYPE_CHECKING:  # torch is heavy, and absent where no model needs it
    import torch


@dataclass(frozen=True)
class Encoded:
    """What an encoder makes of N images."""

    embeddings: npt.NDArray[np.float32] | None
    """float32, shape (N, D), each of L2 norm 1; None where the model has none."""
    probabilities: npt.NDArray[np.float32] | None = None
    """float32, shape (N, C), rows sum to 1; None where the model has no classes."""
    boxes: npt.NDArray[np.float32] | None = None
    """float32, shape (N, 4 + C, A): of A boxes the centre's x and y, width and height, in pixels of the
    input, then the score of each class; None where the model is no detector."""


class OutOfMemoryError(DeviceError):
    """A batch does not fit into the device's memory; a smaller one may."""


class Encoder(ABC):
    """A loaded network."""

    device: str
    """Where it computes: `cpu` or `cuda:N`."""
    precision: Literal["float32", "float16", "bfloat16"] = "float32"
    """In which it computes there."""

    @abstractmethod
    def start(self, parts: Sequence[npt.NDArray[np.uint8]]) -> Callable[[], Encoded]:
        """Begin to encode a batch.

        On a GPU this returns before the batch is done, so that the next one can be copied there while this
        one computes. `parts` must not change until the result is there.

        Args:
            parts: One or more arrays, uint8, shape (n, S, S, 3), RGB, on the CPU, as `decode` makes them;
                together they are one batch.

        Returns:
            A function that waits for the result and returns it.

        Raises:
            OutOfMemoryError: The batch does not fit.
        """

    def encode(self, pixels: npt.NDArray[np.uint8]) -> Encoded:
        """Encode a batch, uint8, shape (N, S, S, 3), RGB, and wait for it: see `start`."""
        return self.start([pixels])()

    def buffer(self, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
        """Return memory to receive pixels in: where the device likes, pinned."""
        return np.empty(shape, np.uint8)


def load_encoder(card: ModelCard, weights: WeightsFile, device: str) -> Encoder:
    """Build the encoder that the card names and load its weights.

    Imports only the library of this card: a model that needs no torch loads none.

    Args:
        card: The model.
        weights: The encoder's file, or the seed of its random weights.
        device: `cpu`; `cuda` or `cuda:N`; `auto` or `auto:N` (that GPU if there is one, else the CPU).

    Raises:
        ConfigError: The library does not know the architecture, or is not installed.
        WeightsError: The weights do not fit the architecture.
        DeviceError: `cuda` was requested and there is none, or the model does not fit into its memory.
    """
    match card.encoder.library:
        case "open_clip":
            from nsfw_spark.encoders.open_clip import OpenClipEncoder

            return OpenClipEncoder(card, weights, device)
        case "timm":
            from nsfw_spark.encoders.timm import TimmEncoder

            return TimmEncoder(card, weights, device)
        case "onnx":
            from nsfw_spark.encoders.onnx import OnnxEncoder

            return OnnxEncoder(card, weights, device)
        case "sampled_pixels":
            from nsfw_spark.encoders.fake import SampledPixelsEncoder

            return SampledPixelsEncoder(card, weights)


def joined(parts: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.uint8]:
    """Make one array of the parts of a batch; a single part is not copied."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def normalise(pixels: npt.NDArray[np.uint8], how: Preprocessing) -> npt.NDArray[np.float32]:
    """Apply channel order, scale, mean and std on the CPU: uint8 (N, S, S, 3) → float32, same shape."""
    ordered = pixels[..., ::-1] if how.channels == "bgr" else pixels
    mean, std = np.array(how.mean, np.float32), np.array(how.std, np.float32)
    values = (ordered.astype(np.float32) / np.float32(how.scale) - mean) / std
    return np.ascontiguousarray(values, dtype=np.float32)


def unit_length(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Divide each row of (N, D) by its L2 norm; a row of zeros becomes NaN, which is no embedding."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def library(module: str, card: EncoderCard, extra: str) -> Any:  # noqa: ANN401 - a module
    """Import a model library, or say what to install."""
    try:
        return __import__(module)
    except ImportError as error:
        raise ConfigError(
            f"{card.architecture} needs the Python package {module}, which is not installed here: "
            f"pip install 'nsfw-spark[{extra}]'"
        ) from error


def device_index(device: str) -> int:
    """Return N of `cuda:N` or `auto:N`; 0 where none is named."""
    return int(device.partition(":")[2] or 0)


_FETCH: Final = "nsfw-spark models fetch MODEL --model-dir DIR"


def read_tensors(path: Path, prefix: str = "") -> dict[str, torch.Tensor]:
    """Read those tensors of a safetensors file whose names begin with `prefix`, names without it.

    Only these are read from the disk: a CLIP checkpoint's text tower stays there.

    Raises:
        WeightsError: Not a safetensors file, or it holds no such tensor.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors = {
                name.removeprefix(prefix): file.get_tensor(name)
                for name in file.keys()  # noqa: SIM118 - a safetensors file is no mapping
                if name.startswith(prefix)
            }
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path} is not a safetensors file ({error}); fetch it again: {_FETCH}") from error
    if not tensors:
        expected = "a CLIP checkpoint" if prefix else "a network's weights"
        raise WeightsError(f"{path} holds no tensor named {prefix}…; expected {expected}")
    return tensors
