"""Encoders: uint8 pixels in, embeddings and class probabilities out.

Four libraries, one interface (`encoder.py`), one file each; those on torch share `torch_network.py`.
`load_encoder` builds the one that a model card names and imports only that one's library: a model that needs
no torch loads none. What the numbers mean is the head's business.
"""

from __future__ import annotations

from nsfw_spark.encoders.encoder import (
    Encoded,
    Encoder,
    OutOfMemoryError,
    load_encoder,
    normalise,
    unit_length,
)
from nsfw_spark.encoders.fake import SampledPixelsEncoder
from nsfw_spark.encoders.onnx import OnnxEncoder
from nsfw_spark.encoders.open_clip import OpenClipEncoder
from nsfw_spark.encoders.timm import TimmEncoder

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
