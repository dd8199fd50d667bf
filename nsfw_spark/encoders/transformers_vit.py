"""The tensors of transformers' ViT under the names that timm has for them.

Both build the network of "An Image is Worth 16x16 Words". They differ in names, in that timm computes query,
key and value in one multiplication, and in the epsilon of the layer norms.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import torch

LAYER_NORM_EPSILON: Final = 1e-12
"""Of transformers' ViT: `layer_norm_eps` in config.json. timm's own is 1e-6."""

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
    """Rename the tensors of a ViTForImageClassification file.

    Args:
        tensors: By the names that transformers 4 and 5 write.

    Returns:
        The same by timm's names; query, key and value of a layer as one. What has no place in the network
        keeps its name, so that whoever fills it can say so.

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
        if found := re.match(pattern, name):
            return found.expand(replacement) + name[found.end() :]
    return name
