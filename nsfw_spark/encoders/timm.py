"""Classifiers in torch, as timm builds them: pixels in, class probabilities and embeddings out.

Files that transformers' ViTForImageClassification wrote hold the same network under other names. `timm_names`
renames them, so transformers is not needed.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, ClassVar, Final

from nsfw_spark.encoders.encoder import read_tensors
from nsfw_spark.encoders.torch_network import TorchEncoder, fill
from nsfw_spark.errors import ConfigError
from nsfw_spark.model_card import ModelCard
from nsfw_spark.weights import WeightsFile

if TYPE_CHECKING:
    import torch

_WRAPPER: Final = "timm_model."
"""Prefix of timm's names in some files that transformers' TimmWrapper wrote."""


class TimmEncoder(TorchEncoder):
    """A classifier: the probabilities of its classes, and its pooled features as the embedding.

    Softmax is computed in float32, also if the network's precision is lower.

    Source:
        `forward` of timm 1.0.31's models, taken apart into features, pooling and classifier.
    """

    _LIBRARY: ClassVar[str] = "timm"
    _EXTRA: ClassVar[str] = "timm"

    def _build(self, card: ModelCard, weights: WeightsFile) -> Any:  # noqa: ANN401 - torch.nn.Module
        import torch

        if weights.path is None:
            torch.manual_seed(int(card.encoder.weights.random or 0))
        network = _network(card)
        self._has_embedding = card.encoder.embedding_dim is not None
        if card.encoder.tensor_names == "transformers_vit":
            for module in network.modules():
                if isinstance(module, torch.nn.LayerNorm):
                    module.eps = LAYER_NORM_EPSILON
        if weights.path is not None:
            tensors = read_tensors(weights.path)
            if card.encoder.tensor_names == "transformers_vit":
                tensors = timm_names(tensors)
            elif all(name.startswith(_WRAPPER) for name in tensors):
                tensors = {name.removeprefix(_WRAPPER): tensor for name, tensor in tensors.items()}
            fill(network, tensors, card.encoder, weights.path)
        return network

    def _encode(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor]:
        import torch

        features = self._network.forward_features(pixel_values)
        pooled = self._network.forward_head(features, pre_logits=True)  # (N, D)
        logits = self._network.get_classifier()(pooled)  # (N, C)
        embeddings = torch.nn.functional.normalize(pooled.float(), dim=-1) if self._has_embedding else None
        return embeddings, logits.float().softmax(dim=-1)


def _network(card: ModelCard) -> Any:  # noqa: ANN401 - torch.nn.Module
    """Build the card's architecture with random weights, and one output for each class of the card."""
    import timm

    architecture, dim = card.encoder.architecture, card.encoder.embedding_dim
    try:
        network = timm.create_model(architecture, pretrained=False, num_classes=len(card.head.classes))
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"encoder.architecture is {architecture!r}, which timm cannot build: {error}"
        ) from error
    if dim not in (None, network.head_hidden_size):
        raise ConfigError(
            f"model card {card.name}: encoder.embedding_dim is {dim}, and the pooled features of "
            f"{architecture} are {network.head_hidden_size} numbers"
        )
    return network


LAYER_NORM_EPSILON: Final = 1e-12
"""`layer_norm_eps` of transformers' ViT, in config.json. timm's own is 1e-6."""

_NAMES: Final = {
    r"vit\.embeddings\.cls_token": "cls_token",
    r"vit\.embeddings\.position_embeddings": "pos_embed",
    r"vit\.embeddings\.patch_embeddings\.projection\.": "patch_embed.proj.",
    r"vit\.encoder\.layer\.(\d+)\.layernorm_before\.": r"blocks.\1.norm1.",
    r"vit\.encoder\.layer\.(\d+)\.attention\.output\.dense\.": r"blocks.\1.attn.proj.",
    r"vit\.encoder\.layer\.(\d+)\.layernorm_after\.": r"blocks.\1.norm2.",
    r"vit\.encoder\.layer\.(\d+)\.intermediate\.dense\.": r"blocks.\1.mlp.fc1.",
    r"vit\.encoder\.layer\.(\d+)\.output\.dense\.": r"blocks.\1.mlp.fc2.",
    r"vit\.layernorm\.": "norm.",
    r"classifier\.": "head.",
}
_QUERY: Final = re.compile(r"vit\.encoder\.layer\.(\d+)\.attention\.attention\.query\.(weight|bias)")


def timm_names(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename the tensors of a ViTForImageClassification file from transformers' names to timm's.

    Query, key and value of a layer become one tensor. Tensors that timm's network lacks keep their names, so
    that the error of `fill` can list them.

    Source:
        transformers 5.23 `models/vit/modeling_vit.py`; timm 1.0.31 `models/vision_transformer.py`, whose
        attention takes query, key and value from the rows of `qkv` in this order.
    """
    import torch

    rest, renamed = dict(tensors), {}
    for name in tensors:
        if not (query := _QUERY.fullmatch(name)):
            continue
        parts = [name.replace("query", part) for part in ("query", "key", "value")]
        if rest.keys() >= set(parts):
            layer, kind = query.groups()
            renamed[f"blocks.{layer}.attn.qkv.{kind}"] = torch.cat([rest.pop(part) for part in parts])
    return renamed | {_renamed(name): tensor for name, tensor in rest.items()}


def _renamed(name: str) -> str:
    for pattern, replacement in _NAMES.items():
        name = re.sub(f"^{pattern}", replacement, name)
    return name
