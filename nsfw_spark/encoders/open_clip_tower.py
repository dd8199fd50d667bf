"""The image tower of a CLIP model, in torch, as open_clip builds it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, ClassVar

from nsfw_spark.encoders.activation import check_activation
from nsfw_spark.encoders.encoder import read_tensors
from nsfw_spark.encoders.torch_network import TorchEncoder, fill
from nsfw_spark.errors import ConfigError
from nsfw_spark.model_card import ModelCard
from nsfw_spark.weights import WeightsFile

if TYPE_CHECKING:
    import torch


class OpenClipEncoder(TorchEncoder):
    """An image tower.

    The text tower never gets memory: the model is laid out without storage, and only the tensors of the
    image tower are read from the file.

    Source:
        `encode_image(normalize=True)` of open_clip 3.3.
    """

    _LIBRARY: ClassVar[str] = "open_clip"
    _EXTRA: ClassVar[str] = "clip"

    def _build(self, card: ModelCard, weights: WeightsFile) -> Any:  # noqa: ANN401 - torch.nn.Module
        import open_clip
        import torch

        architecture = card.encoder.architecture
        check_activation(card.encoder)
        quiet = logging.getLogger()
        level = quiet.level
        quiet.setLevel(logging.ERROR)  # "No pretrained weights loaded": they are loaded below
        try:
            if weights.path is None:
                torch.manual_seed(int(card.encoder.weights.random or 0))
                return open_clip.create_model(architecture, load_weights=False).visual
            model = open_clip.create_model(architecture, load_weights=False, device="meta")
        except RuntimeError as error:
            raise ConfigError(
                f"encoder.architecture is {architecture!r}, which open_clip cannot build: {error}"
            ) from error
        finally:
            quiet.setLevel(level)
        fill(model.visual, read_tensors(weights.path, "visual."), card.encoder, weights.path)
        return model.visual

    def _encode(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, None]:
        import torch

        embeddings = self._network(pixel_values).float()  # (N, D)
        return torch.nn.functional.normalize(embeddings, dim=-1), None
