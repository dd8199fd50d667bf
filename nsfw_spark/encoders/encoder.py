"""The interface of all encoders, the function that loads one, and helpers that they share.

In: a model card and its weights. Out: an `Encoder`, which turns uint8 pixels into `Encoded`. This module
imports only the library that the card names, so a model without torch never loads torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from nsfw_spark.errors import ConfigError, DeviceError, WeightsError
from nsfw_spark.model_card import EncoderCard, ModelCard, Preprocessing
from nsfw_spark.weights import WeightsFile

if TYPE_CHECKING:  # torch is heavy, and not installed if no model needs it
    import torch


@dataclass(frozen=True)
class Encoded:
    """An encoder's output for N images."""

    embeddings: npt.NDArray[np.float32] | None
    """float32, shape (N, D), each of L2 norm 1; None if the model has none."""
    probabilities: npt.NDArray[np.float32] | None = None
    """float32, shape (N, C), rows sum to 1; None if the model has no classes."""
    boxes: npt.NDArray[np.float32] | None = None
    """float32, shape (N, 4 + C, A), for A boxes: x and y of the centre, width and height, in pixels of the
    input, then the score of each class; None if the model is no detector."""


class OutOfMemoryError(DeviceError):
    """A batch does not fit into the device's memory; a smaller one may."""


class Encoder(ABC):
    """A loaded network."""

    device: str
    """`cpu` or `cuda:N`."""
    precision: Literal["float32", "float16", "bfloat16"] = "float32"
    """Precision of the arithmetic on that device."""

    @abstractmethod
    def start(self, parts: Sequence[npt.NDArray[np.uint8]]) -> Callable[[], Encoded]:
        """Begin to encode a batch; return a function that waits for the result.

        On a GPU this returns before the batch is done: the next batch is copied while this one computes.

        Args:
            parts: One or more arrays, uint8, shape (n, S, S, 3), RGB, on the CPU; together one batch.
                They must not change until the result arrives.

        Raises:
            OutOfMemoryError: The batch does not fit.
        """

    def encode(self, pixels: npt.NDArray[np.uint8]) -> Encoded:
        """Encode a batch, uint8, shape (N, S, S, 3), RGB, and wait for it: see `start`."""
        return self.start([pixels])()

    def buffer(self, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
        """Return an array to receive pixels in; a GPU's encoder returns pinned memory."""
        return np.empty(shape, np.uint8)


def load_encoder(card: ModelCard, weights: WeightsFile, device: str) -> Encoder:
    """Build the encoder that the card names and load its weights.

    Args:
        card: The model.
        weights: The encoder's file, or the seed of its random weights.
        device: `cpu`; `cuda` or `cuda:N`; `auto` or `auto:N` (that GPU if there is one, otherwise the CPU).
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
    """Concatenate the parts of a batch; a single part is not copied."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def normalise(pixels: npt.NDArray[np.uint8], how: Preprocessing) -> npt.NDArray[np.float32]:
    """Apply channel order, scale, mean and std on the CPU: uint8 (N, S, S, 3) → float32, same shape."""
    ordered = pixels[..., ::-1] if how.channels == "bgr" else pixels
    mean, std = np.array(how.mean, np.float32), np.array(how.std, np.float32)
    values = (ordered.astype(np.float32) / np.float32(how.scale) - mean) / std
    return np.ascontiguousarray(values, dtype=np.float32)


def unit_length(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Divide each row of (N, D) by its L2 norm; a row of zeros becomes NaN: it has no direction."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def library(module: str, card: EncoderCard, extra: str) -> Any:  # noqa: ANN401 - a module
    """Import a model library; the error for a missing one names the extra to install."""
    try:
        return __import__(module)
    except ImportError as error:
        raise ConfigError(
            f"{card.architecture} needs the Python package {module}, which is not installed here: "
            f"pip install 'nsfw-spark[{extra}]'"
        ) from error


def device_index(device: str) -> int:
    """Return N of `cuda:N` or `auto:N`; 0 for `cuda` and `auto`."""
    return int(device.partition(":")[2] or 0)


def read_tensors(path: Path, prefix: str = "") -> dict[str, torch.Tensor]:
    """Read the tensors with a prefix from a safetensors file; the returned names lack the prefix.

    The other tensors are never read, for example a CLIP checkpoint's text tower.

    Raises:
        WeightsError: The file is no safetensors file, or holds no such tensor.
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
        raise WeightsError(
            f"{path} is not a safetensors file ({error}); fetch it again: "
            "nsfw-spark models fetch MODEL --model-dir DIR"
        ) from error
    if not tensors:
        expected = "a CLIP checkpoint" if prefix else "a network's weights"
        raise WeightsError(f"{path} holds no tensor named {prefix}…; expected {expected}")
    return tensors
