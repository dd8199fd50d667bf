"""Perceptrons on an embedding: linear layers, some with ReLU, from a torch checkpoint or a safetensors file.

In: the file, and the widths that the model card names. Out: a network that maps embeddings to scores. Source
of the formats: LAION's H/14 head and the aesthetic predictor. Knows nothing of model cards.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from nsfw_spark.encoders import read_tensors
from nsfw_spark.errors import ConfigError, WeightsError
from nsfw_spark.laion import Vectors, sigmoid
from nsfw_spark.weights import WeightsFile

if TYPE_CHECKING:  # torch is heavy, and only files in its own format need it
    import torch

Widths = Sequence[int | Literal["relu"]]
"""As `HeadCard.layers`: widths of linear layers; `relu` after a width means that the layer ends in a ReLU."""


@dataclass(frozen=True)
class LinearLayer:
    """One layer of a perceptron."""

    kernel: npt.NDArray[np.float32]
    """float32, shape (inputs, outputs)."""
    bias: npt.NDArray[np.float32]
    """float32, shape (outputs,)."""
    has_relu: bool
    """Whether negative outputs become 0."""


class MlpNetwork:
    """Linear layers, some with ReLU.

    Source:
        h14_nsfw_model.py of LAION-AI/CLIP-based-NSFW-Detector, commit d6bb8fe; simple_inference.py of
        christophschuhmann/improved-aesthetic-predictor, commit 6934dd8. Their dropout acts in training only.
    """

    def __init__(self, layers: Sequence[LinearLayer], output: Literal["sigmoid", "clamp", "linear"]) -> None:
        self._layers, self._output = layers, output

    def scores(self, embeddings: Vectors) -> Vectors:
        """Score embeddings: see `DenseNetwork.scores`."""
        hidden = embeddings
        for layer in self._layers:
            hidden = hidden @ layer.kernel
            hidden += layer.bias
            if layer.has_relu:
                np.maximum(hidden, 0, out=hidden)
        outputs = hidden[:, 0]  # (N,)
        match self._output:
            case "sigmoid":
                return sigmoid(outputs)
            case "clamp":
                return outputs.clip(0, 1)
            case "linear":
                return outputs


def read_mlp(weights: WeightsFile, num_inputs: int, widths: Widths) -> tuple[LinearLayer, ...]:
    """Read the layers of a perceptron, or draw them if the weights are random.

    Args:
        weights: A torch checkpoint or a safetensors file. For each layer it holds a `weight`, shape (outputs,
            inputs), and a `bias`, shape (outputs,), numbered in the layers' order; and nothing else.
        num_inputs: D, numbers in an embedding.
        widths: The layers' widths.
    """
    outputs = [width for width in widths if width != "relu"]
    has_relu = [after == "relu" for width, after in pairwise([*widths, None]) if width != "relu"]
    shapes = list(pairwise([num_inputs, *outputs]))
    if weights.path is None:
        layers = _random(int(weights.sha256.removeprefix("random:")), shapes)
    else:
        layers = _from_tensors(weights.path, _read(weights.path), shapes)
    return tuple(LinearLayer(*layer, relu) for layer, relu in zip(layers, has_relu, strict=True))


_Layer = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]
"""Kernel (inputs, outputs) and bias (outputs,)."""


def _random(seed: int, shapes: Sequence[tuple[int, int]]) -> list[_Layer]:
    """Draw weights such that a layer's outputs vary as much as its inputs."""
    rng, layers = np.random.default_rng(seed), []
    for inputs, outputs in shapes:
        kernel = rng.standard_normal((inputs, outputs), np.float32) * np.float32(inputs**-0.5)
        layers.append((kernel, rng.standard_normal(outputs, np.float32) * np.float32(0.1)))
    return layers


def _from_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], shapes: Sequence[tuple[int, int]]
) -> list[_Layer]:
    """Return the tensors by layer; each must have its shape, and none may be left over."""
    prefixes = sorted({name.rpartition(".")[0] for name in tensors}, key=_natural)
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    expected: dict[str, tuple[int, ...]] = {}
    for prefix, (inputs, outputs) in zip(prefixes, shapes, strict=False):
        dot = "." if prefix else ""  # the tensors of a single layer are called `weight` and `bias`
        expected |= {f"{prefix}{dot}weight": (outputs, inputs), f"{prefix}{dot}bias": (outputs,)}
    if found != expected or len(prefixes) != len(shapes):
        got = ", ".join(f"{name} {list(shape)}" for name, shape in found.items())
        wanted = ", ".join(f"[{outputs}, {inputs}]" for inputs, outputs in shapes)
        raise WeightsError(
            f"{path} does not hold the layers that the model card names: it has {got or 'no tensors'}; "
            f"expected a weight and a bias for each of {wanted} (outputs, inputs), and nothing else. Correct "
            "the card's encoder.embedding_dim or the head's layers, or name another file"
        )
    numbers = [tensors[name].float().numpy() for name in expected]
    return [(np.ascontiguousarray(numbers[i].T), numbers[i + 1]) for i in range(0, len(numbers), 2)]


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a sort key that puts `layers.9` before `layers.10`."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _read(path: Path) -> Mapping[str, torch.Tensor]:
    if path.suffix == ".safetensors":
        return read_tensors(path)
    try:
        import torch
    except ImportError as error:
        raise ConfigError(
            f"{path.name} is a torch checkpoint, and the Python package torch is not installed here: "
            "pip install 'nsfw-spark[clip]'"
        ) from error
    try:
        # `weights_only` refuses everything but tensors, so reading a pickle runs no code.
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle raises anything
        raise _no_checkpoint(path, " ".join(str(error).split())[:200]) from error
    if not isinstance(tensors, dict) or not all(isinstance(each, torch.Tensor) for each in tensors.values()):
        raise _no_checkpoint(path, f"it holds a {type(tensors).__name__} of other things")
    return tensors


def _no_checkpoint(path: Path, reason: str) -> WeightsError:
    return WeightsError(
        f"{path} is not a torch checkpoint of tensors ({reason}); expected a state_dict, saved with "
        "torch.save. Fetch it again, or correct the card's weights"
    )
