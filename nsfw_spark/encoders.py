"""Encoders: uint8 pixels in, embeddings and class probabilities out.

Three libraries, one interface. `load_encoder` builds the one that a model card names and imports only
that one's library: a model that needs no torch loads none. What the numbers mean is the head's business.
"""

from __future__ import annotations

import logging
import os
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from nsfw_spark.errors import ConfigError, DeviceError, WeightsError
from nsfw_spark.model_card import EncoderCard, ModelCard, Preprocessing
from nsfw_spark.weights import WeightsFile, read_tensors

if TYPE_CHECKING:
    import torch

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Encoded:
    """What an encoder makes of N images."""

    embeddings: npt.NDArray[np.float32] | None
    """float32, shape (N, D), each of L2 norm 1; None where the model has none."""
    probabilities: npt.NDArray[np.float32] | None = None
    """float32, shape (N, C), rows sum to 1; None where the model has no classes."""


class Encoder(Protocol):
    """A loaded network."""

    device: str
    """Where it computes: `cpu` or `cuda:N`."""

    def encode(self, pixels: npt.NDArray[np.uint8]) -> Encoded:
        """Encode a batch.

        Args:
            pixels: uint8, shape (N, S, S, 3), RGB, on the CPU, as `decode` makes them.
        """


def load_encoder(card: ModelCard, weights: WeightsFile, device: str) -> Encoder:
    """Build the encoder that the card names and load its weights.

    Args:
        card: The model.
        weights: The file, or the seed, of the encoder.
        device: `cpu`; `cuda` or `cuda:N`; `auto` or `auto:N`: that GPU if there is any, else the CPU.

    Raises:
        ConfigError: The library does not know the architecture, or is not installed.
        WeightsError: The weights are not those of the architecture.
        DeviceError: `cuda` was asked for and there is none.
    """
    match card.encoder.library:
        case "open_clip":
            return OpenClipEncoder(card, weights, device)
        case "onnx":
            return OnnxEncoder(card, weights, device)
        case "sampled_pixels":
            return SampledPixelsEncoder(card, weights)


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


class OpenClipEncoder:
    """The image tower of a CLIP model, in torch.

    The text tower never gets memory: the model is laid out without storage, and only the tensors of the
    image tower are read from the file.

    Source:
        `encode_image(normalize=True)` of open_clip 3.3.
    """

    def __init__(self, card: ModelCard, weights: WeightsFile, device: str) -> None:
        torch = _import("torch", card.encoder, "clip")
        _import("open_clip", card.encoder, "clip")
        self.device = _torch_device(device)
        dtype = "float32" if self.device == "cpu" else card.encoder.precision
        self._dtype = getattr(torch, dtype)
        tower = _image_tower(card.encoder, weights)
        self._tower = tower.eval().requires_grad_(requires_grad=False).to(self.device, self._dtype)
        self._preprocessing = card.preprocessing
        self._mean, self._std = (
            torch.tensor(numbers, device=self.device).view(1, 3, 1, 1)
            for numbers in (card.preprocessing.mean, card.preprocessing.std)
        )

    def encode(self, pixels: npt.NDArray[np.uint8]) -> Encoded:
        """Encode a batch: see `Encoder.encode`."""
        import torch

        with torch.inference_mode():
            batch = torch.from_numpy(pixels).to(self.device, non_blocking=True)  # (N, S, S, 3)
            embeddings = self._tower(self._pixel_values(batch)).float()  # (N, D)
            embeddings = torch.nn.functional.normalize(embeddings, dim=-1)
            return Encoded(embeddings.cpu().numpy())

    def _pixel_values(self, batch: torch.Tensor) -> torch.Tensor:
        """Normalise on the device: uint8 (N, S, S, 3) → the encoder's dtype (N, 3, S, S)."""
        channels = batch.permute(0, 3, 1, 2)
        if self._preprocessing.channels == "bgr":
            channels = channels.flip(1)
        values = (channels.float() / self._preprocessing.scale - self._mean) / self._std
        return cast("torch.Tensor", values.to(self._dtype))


class OnnxEncoder:
    """A network in ONNX that ends in class probabilities, on onnxruntime.

    The embedding is a tensor inside the graph, which the graph is made to give out as well.
    """

    def __init__(self, card: ModelCard, weights: WeightsFile, device: str) -> None:
        runtime = _import("onnxruntime", card.encoder, "quickstart")
        self._preprocessing = card.preprocessing
        graph = _graph_with_output(card.encoder, weights)
        providers = _onnx_providers(runtime, device)
        self.device = "cpu" if providers[0] == "CPUExecutionProvider" else f"cuda:{_index(device)}"
        options = runtime.SessionOptions()
        # Spark says through this variable how many cores a task has; elsewhere: all of them.
        options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS") or 0)
        self._session = runtime.InferenceSession(graph, options, providers=providers)
        self._input = self._session.get_inputs()[0].name
        self._probabilities = self._session.get_outputs()[0].name
        self._embedding = card.encoder.embedding_output

    def encode(self, pixels: npt.NDArray[np.uint8]) -> Encoded:
        """Encode a batch: see `Encoder.encode`."""
        wanted = [self._probabilities] + ([self._embedding] if self._embedding else [])
        batch = normalise(pixels, self._preprocessing)
        probabilities, *features = self._session.run(wanted, {self._input: batch})
        return Encoded(unit_length(features[0]) if features else None, probabilities)


class SampledPixelsEncoder:
    """Every 14th pixel times a seeded matrix: costs nothing and knows nothing.

    Its embeddings depend on the image, reproducibly, which is what tests need; and all time spent is
    that of the pipeline around it, which is what benchmarks need.
    """

    _STEP = 14

    def __init__(self, card: ModelCard, weights: WeightsFile) -> None:
        if card.encoder.weights.random is None or card.encoder.embedding_dim is None:
            raise ConfigError(
                f"model card {card.name}: sampled_pixels needs encoder.weights.random, got {weights.path}, "
                f"and encoder.embedding_dim, got {card.encoder.embedding_dim}"
            )
        self.device = "cpu"
        rng = np.random.default_rng(card.encoder.weights.random)
        side = -(-card.preprocessing.size // self._STEP)  # pixels sampled along each side
        shape = (side * side * 3, card.encoder.embedding_dim)
        self._matrix = rng.standard_normal(shape, dtype=np.float32)

    def encode(self, pixels: npt.NDArray[np.uint8]) -> Encoded:
        """Encode a batch: see `Encoder.encode`."""
        sample = pixels[:, :: self._STEP, :: self._STEP].reshape(len(pixels), -1)
        # Not centred on zero: so even a black image has a length to divide by.
        return Encoded(unit_length((sample.astype(np.float32) + 1) @ self._matrix))


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


def _graph_with_output(card: EncoderCard, weights: WeightsFile) -> bytes | str:
    """Return the ONNX model with the card's embedding among its outputs."""
    if card.embedding_output is None:
        return str(weights.path)
    onnx = _import("onnx", card, "quickstart")
    model = onnx.load(str(weights.path))
    if not any(card.embedding_output in node.output for node in model.graph.node):
        raise ConfigError(
            f"encoder.embedding_output is {card.embedding_output!r}, and no node of "
            f"{weights.path} has that output"
        )
    model.graph.output.append(onnx.ValueInfoProto(name=card.embedding_output))
    return bytes(model.SerializeToString())


def _import(module: str, card: EncoderCard, extra: str) -> Any:  # noqa: ANN401 - a module
    try:
        return __import__(module)
    except ImportError as error:
        raise ConfigError(
            f"{card.architecture} needs the Python package {module}, which is not installed here: "
            f"pip install 'nsfw-spark[{extra}]'"
        ) from error


def _torch_device(device: str) -> str:
    import torch

    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "cpu" or (device.startswith("auto") and num_gpus == 0):
        return "cpu"
    if _index(device) >= num_gpus:
        raise DeviceError(
            f"device {device} was asked for and torch sees {num_gpus} GPUs. Check nvidia-smi and that "
            "torch is a CUDA build, or pass --device cpu."
        )
    return f"cuda:{_index(device)}"


def _onnx_providers(runtime: Any, device: str) -> list[Any]:  # noqa: ANN401 - a module
    has_cuda = "CUDAExecutionProvider" in runtime.get_available_providers()
    if device == "cpu" or (device.startswith("auto") and not has_cuda):
        return ["CPUExecutionProvider"]
    if not has_cuda:
        raise DeviceError(
            f"device {device} was asked for and this onnxruntime computes on the CPU only. "
            "Install onnxruntime-gpu in its place, or pass --device cpu."
        )
    return [("CUDAExecutionProvider", {"device_id": _index(device)}), "CPUExecutionProvider"]


def _index(device: str) -> int:
    _, _, index = device.partition(":")
    return int(index or 0)
