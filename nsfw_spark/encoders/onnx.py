"""Networks in ONNX, on onnxruntime: class probabilities or boxes, and an embedding if the card names one.

In: a card and an ONNX file that holds all its tensors. Out: `Encoded`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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
from nsfw_spark.errors import ConfigError, DeviceError, WeightsError
from nsfw_spark.model_card import EncoderCard, ModelCard
from nsfw_spark.weights import WeightsFile

# onnxruntime has no error class for this; these are the words of its arena and of CUDA.
_OUT_OF_MEMORY: Final = ("Failed to allocate memory", "out of memory", "bad_alloc")

_NUM_CHANNELS: Final = 3


class OnnxEncoder(Encoder):
    """Runs a graph; returns its first output, and an inner tensor of the graph as the embedding."""

    def __init__(self, card: ModelCard, weights: WeightsFile, device: str) -> None:
        runtime = library("onnxruntime", card.encoder, "quickstart")
        self._preprocessing = card.preprocessing
        graph = _graph_with_output(card.encoder, weights)
        providers = _providers(runtime, device)
        self.device = "cpu" if providers[0] == "CPUExecutionProvider" else f"cuda:{device_index(device)}"
        options = runtime.SessionOptions()
        # Spark sets this variable to a task's cores, the model host to an executor's; 0 means all cores.
        options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS") or 0)
        # Threads that wait for work must not occupy the cores that decode.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        with _weights_errors(weights):
            self._session = runtime.InferenceSession(graph, options, providers=providers)
        pixel_values = self._session.get_inputs()[0]
        self._input, self._channels_first = pixel_values.name, pixel_values.shape[1] == _NUM_CHANNELS
        _check_size(card, pixel_values.shape)
        self._output = self._session.get_outputs()[0].name
        self._is_detector = card.head.library == "boxes"
        self._embedding = card.encoder.embedding_output

    def start(self, parts: Sequence[npt.NDArray[np.uint8]]) -> Callable[[], Encoded]:
        """Encode a batch: see `Encoder.start`."""
        wanted = [self._output] + ([self._embedding] if self._embedding else [])
        batch = normalise(joined(parts), self._preprocessing)
        if self._channels_first:
            batch = np.ascontiguousarray(batch.transpose(0, 3, 1, 2))
        try:
            output, *features = self._session.run(wanted, {self._input: batch})
        except Exception as error:
            if not any(words in str(error) for words in _OUT_OF_MEMORY):
                raise
            raise OutOfMemoryError(
                f"a batch of {len(batch)} images does not fit into {self.device}"
            ) from error
        embeddings = unit_length(features[0]) if features else None
        encoded = Encoded(embeddings, boxes=output) if self._is_detector else Encoded(embeddings, output)
        return lambda: encoded


@contextmanager
def _weights_errors(weights: WeightsFile) -> Iterator[None]:
    """Turn the errors of onnx and onnxruntime for an unreadable file into a `WeightsError`."""
    try:
        yield
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in {"google", "onnx", "onnxruntime"}:
            raise
        reason = " ".join(str(error).split())[:300]
        raise WeightsError(f"{weights.path} is not an ONNX model that can be run: {reason}") from error


def _graph_with_output(card: EncoderCard, weights: WeightsFile) -> bytes:
    """Return the ONNX model with the card's embedding among its outputs."""
    onnx = library("onnx", card, "quickstart")
    with _weights_errors(weights):
        model = onnx.load(str(weights.path), load_external_data=False)
    graphs = (model.graph, *model.functions)
    if outside := next((name for graph in graphs for name in _tensors_in_files(graph)), None):
        raise WeightsError(
            f"{weights.path} keeps the tensor {outside} in another file, which no sha256 vouches for; "
            "expected a model in one file: onnx.save(onnx.load(FILE), FILE)"
        )
    if card.embedding_output is None:
        return bytes(model.SerializeToString())
    if not any(card.embedding_output in node.output for node in model.graph.node):
        raise ConfigError(
            f"encoder.embedding_output is {card.embedding_output!r}, and no node of "
            f"{weights.path} has that output"
        )
    model.graph.output.append(onnx.ValueInfoProto(name=card.embedding_output))
    return bytes(model.SerializeToString())


def _tensors_in_files(graph: Any) -> Iterator[str]:  # noqa: ANN401 - onnx.GraphProto or FunctionProto
    """Yield the names of a graph's tensors that are stored in other files; inner graphs included."""
    for tensor in getattr(graph, "initializer", ()):
        if tensor.external_data:
            yield tensor.name
    for attribute in (attribute for node in graph.node for attribute in node.attribute):
        yield from (tensor.name for tensor in (attribute.t, *attribute.tensors) if tensor.external_data)
        for inner in (attribute.g, *attribute.graphs):
            yield from _tensors_in_files(inner)


def _check_size(card: ModelCard, shape: Sequence[int | str | None]) -> None:
    """Raise a ConfigError if the graph fixes its input size and the card has another."""
    size = card.preprocessing.size
    sides = [side for side in shape[1:] if isinstance(side, int) and side != _NUM_CHANNELS]
    if any(side != size for side in sides):
        raise ConfigError(
            f"model card {card.name}: preprocessing.size is {size}, and the graph takes images of "
            f"{' x '.join(map(str, sides))} pixels"
        )


def _providers(runtime: Any, device: str) -> list[Any]:  # noqa: ANN401 - a module
    has_cuda = "CUDAExecutionProvider" in runtime.get_available_providers()
    if device == "cpu" or (device.startswith("auto") and not has_cuda):
        return ["CPUExecutionProvider"]
    if not has_cuda:
        raise DeviceError(
            f"device is {device}, and this onnxruntime computes on the CPU only. "
            "Install onnxruntime-gpu in its place, or pass --device cpu."
        )
    # By default onnxruntime computes float32 as TF32, which rounds to 11 bits.
    options = {"device_id": device_index(device), "use_tf32": "0"}
    return [("CUDAExecutionProvider", options), "CPUExecutionProvider"]
