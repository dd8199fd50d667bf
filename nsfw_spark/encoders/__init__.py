"""Encoders: uint8 pixels in; embeddings, class probabilities or boxes out.

`encoder.py` has the interface and `load_encoder`, which builds the encoder of a model card. Each library has
its file: `open_clip.py` and `timm.py` (which share `torch_network.py`), `onnx.py`, and the test double
`fake.py`. Encoders do not know what the numbers mean: `nsfw_spark.heads` does.
"""

from __future__ import annotations

from nsfw_spark.encoders.encoder import (
    Encoded,
    Encoder,
    OutOfMemoryError,
    load_encoder,
    normalise,
    read_tensors,
    unit_length,
)

__all__ = [
    "Encoded",
    "Encoder",
    "OutOfMemoryError",
    "load_encoder",
    "normalise",
    "read_tensors",
    "unit_length",
]
