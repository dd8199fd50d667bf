"""Networks that end in classes, in torch, as timm builds them.

What transformers' ViTForImageClassification wrote are weights of the same network under other names, and read
without transformers: see transformers_vit.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Final

from nsfw_spark.encoders.encoder import read_tensors
from nsfw_spark.encoders.torch_network import TorchEncoder, fill
from nsfw_spark.encoders.transformers_vit import LAYER_NORM_EPSILON, timm_names
from nsfw_spark.errors import ConfigError
from nsfw_spark.model_card import EncoderCard, ModelCard
from nsfw_spark.weights import WeightsFile

if TYPE_CHECKING:
    import torch

_WRAPPER: Final = "timm_model."
"""What transformers' TimmWrapper puts before timm's names, or leaves out, depending on how it was saved."""


class TimmEncoder(TorchEncoder):
    """A classifier: the probabilities of its classes, and its pooled features as the embedding.

    Softmax is computed in float32, whatever the network's precision is.

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
            tensors = _named_as_timm(read_tensors(weights.path), card.encoder)
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
    """Lay out the card's architecture, with as many outputs as it has classes and random weights."""
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


def _named_as_timm(tensors: dict[str, torch.Tensor], card: EncoderCard) -> dict[str, torch.Tensor]:
    if card.tensor_names == "transformers_vit":
        return timm_names(tensors)
    if all(name.startswith(_WRAPPER) for name in tensors):
        return {name.removeprefix(_WRAPPER): tensor for name, tensor in tensors.items()}
    return tensors
