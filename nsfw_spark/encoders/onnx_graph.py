"""Networks in ONNX that end in class probabilities, on onnxruntime."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from nsfw_spark.encoders.encoder import (
    Encoded,
    Encoder,
    OutOfMemoryError,
    device_index,
    joined,
    library,
    normalise,
    unit_length,
)
from nsfw_spark.errors import ConfigError, DeviceError
from nsfw_spark.model_card import EncoderCard, ModelCard
from nsfw_spark.weights import WeightsFile

# onnxruntime has no class of its own for it: what its arena says, what CUDA says.
_OUT_OF_MEMORY: Final = ("Failed to allocate memory", "out of memory", "bad_alloc")


class OnnxEncoder(Encoder):
    """Class probabilities, and an embedding that is a tensor inside the graph, which is made an output."""

    def __init__(self, card: ModelCard, weights: WeightsFile, device: str) -> None:
        runtime = library("onnxruntime", card.encoder, "quickstart")
        self._preprocessing = card.preprocessing
        graph = _graph_with_output(card.encoder, weights)
        providers = _providers(runtime, device)
        self.device = "cpu" if providers[0] == "CPUExecutionProvider" else f"cuda:{device_index(device)}"
        options = runtime.SessionOptions()
        # Spark says through this variable how many cores a task has, the model host how many an executor;
        # elsewhere: all of them.
        options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS") or 0)
        # Threads that wait for work must not burn the cores that decode.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = runtime.InferenceSession(graph, options, providers=providers)
        self._input = self._session.get_inputs()[0].name
        self._probabilities = self._session.get_outputs()[0].name
        self._embedding = card.encoder.embedding_output

    def start(self, parts: Sequence[npt.NDArray[np.uint8]]) -> Callable[[], Encoded]:
        """Encode a batch: see `Encoder.start`."""
        wanted = [self._probabilities] + ([self._embedding] if self._embedding else [])
        batch = normalise(joined(parts), self._preprocessing)
        try:
            probabilities, *features = self._session.run(wanted, {self._input: batch})
        except Exception as error:
            if not any(words in str(error) for words in _OUT_OF_MEMORY):
                raise
            raise OutOfMemoryError(
                f"a batch of {len(batch)} images does not fit into {self.device}"
            ) from error
        encoded = Encoded(unit_length(features[0]) if features else None, probabilities)
        return lambda: encoded


def _graph_with_output(card: EncoderCard, weights: WeightsFile) -> bytes | str:
    """Return the ONNX model with the card's embedding among its outputs."""
    if card.embedding_output is None:
        return str(weights.path)
    onnx = library("onnx", card, "quickstart")
    model = onnx.load(str(weights.path))
    if not any(card.embedding_output in node.output for node in model.graph.node):
        raise ConfigError(
            f"encoder.embedding_output is {card.embedding_output!r}, and no node of "
            f"{weights.path} has that output"
        )
    model.graph.output.append(onnx.ValueInfoProto(name=card.embedding_output))
    return bytes(model.SerializeToString())


def _providers(runtime: Any, device: str) -> list[Any]:  # noqa: ANN401 - a module
    has_cuda = "CUDAExecutionProvider" in runtime.get_available_providers()
    if device == "cpu" or (device.startswith("auto") and not has_cuda):
        return ["CPUExecutionProvider"]
    if not has_cuda:
        raise DeviceError(
            f"device {device} was asked for and this onnxruntime computes on the CPU only. "
            "Install onnxruntime-gpu in its place, or pass --device cpu."
        )
    return [("CUDAExecutionProvider", {"device_id": device_index(device)}), "CPUExecutionProvider"]
