"""Encoders: uint8 pixels in, embeddings and class probabilities out.

Four libraries, one interface (`encoder.py`), one file each; those on torch share `torch_network.py`.
`load_encoder` builds the one that a model card names and imports only that one's library: a model that needs
no torch loads none. What the numbers mean is the head's business.
"""

from __future__ import annotations

from nsfw_spark.encoders.encoder import Encoded, Encoder, OutOfMemoryError, normalise, unit_length
from nsfw_spark.encoders.fake import SampledPixelsEncoder
from nsfw_spark.encoders.onnx import OnnxEncoder
from nsfw_spark.encoders.open_clip import OpenClipEncoder
from nsfw_spark.encoders.timm import TimmEncoder
from nsfw_spark.model_card import ModelCard
from nsfw_spark.weights import WeightsFile

__all__ = [
    "Encoded",
    "Encoder",
    "OnnxEncoder",
    "OpenClipEncoder",
    "OutOfMemoryError",
    "SampledPixelsEncoder",
    "TimmEncoder",
    "load_encoder",
    "normalise",
    "unit_length",
]


def load_encoder(card: ModelCard, weights: WeightsFile, device: str) -> Encoder:
    """Build the encoder that the card names and load its weights.

    Args:
        card: The model.
        weights: The file, or the seed, of the encoder.
        device: `cpu`; `cuda` or `cuda:N`; `auto` or `auto:N`: that GPU if there is any, else the CPU.

    Raises:
        ConfigError: The library does not know the architecture, or is not installed.
        WeightsError: The weights are not those of the architecture.
        DeviceError: `cuda` was asked for and there is none, or the model does not fit into it.
    """
    match card.encoder.library:
        case "open_clip":
            return OpenClipEncoder(card, weights, device)
        case "timm":
            return TimmEncoder(card, weights, device)
        case "onnx":
            return OnnxEncoder(card, weights, device)
        case "sampled_pixels":
            return SampledPixelsEncoder(card, weights)
