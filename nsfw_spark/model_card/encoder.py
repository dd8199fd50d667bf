"""Which network encodes images: a part of the model card, as data."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from nsfw_spark.inside import Architecture
from nsfw_spark.model_card.weights_source import WeightsSource
from nsfw_spark.sections import Section


class EncoderCard(Section):
    """The network that turns pixels into embeddings or class probabilities."""

    library: Literal["open_clip", "timm", "onnx", "sampled_pixels"]
    """What computes it. `sampled_pixels` costs nothing and knows nothing: for tests and benchmarks."""
    architecture: Architecture
    """The library's own name of the network."""
    weights: WeightsSource
    tensor_names: Literal["transformers_vit"] | None = None
    """timm: weights that transformers' ViTForImageClassification wrote; null: the library's own names."""
    activation: Literal["gelu", "quick_gelu"] | None = None
    """open_clip: with which its weights were trained, OpenAI's with quick_gelu. Needed for a file of your
    own; of repositories that open_clip knows, it says so itself."""
    embedding_dim: Annotated[int, Field(ge=1)] | None = None
    """D: length of the embedding; null where the model gives none."""
    embedding_output: str | None = None
    """onnx: the tensor of the graph, shape (N, D), that holds the embedding before it is normalised."""
    precision: Literal["float32", "float16", "bfloat16"] = "float32"
    """Arithmetic on a GPU. A CPU computes in float32."""
