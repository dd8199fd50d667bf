"""The image tower of a CLIP model, in torch, as open_clip builds it: pixels in, embeddings out."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

from nsfw_spark.encoders.encoder import read_tensors
from nsfw_spark.encoders.torch_network import TorchEncoder, fill
from nsfw_spark.errors import ConfigError
from nsfw_spark.model_card import EncoderCard, ModelCard
from nsfw_spark.weights import WeightsFile

if TYPE_CHECKING:
    import torch


class OpenClipEncoder(TorchEncoder):
    """An image tower.

    The text tower takes no memory: open_clip builds the model without storage, and this class reads only the
    image tower's tensors from the file.

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


Activation = Literal["gelu", "quick_gelu"]
_SUFFIX: Final = "-quickgelu"  # ends the names of open_clip's architectures with quick_gelu


def check_activation(card: EncoderCard) -> None:
    """Check that the card's architecture computes the activation that its weights were trained with.

    Raises:
        ConfigError: It computes another one, or nobody knows the activation of the weights.
    """
    import open_clip

    architecture = card.architecture
    config = open_clip.get_model_config(architecture)
    if config is None or card.weights.random is not None:
        return  # open_clip itself refuses an unknown architecture; random weights were not trained
    built, trained = _activation(config), _trained_with(card.weights.huggingface)
    if trained is None and card.activation is None:
        raise ConfigError(
            f"encoder.activation is missing, and open_clip does not know the weights of {architecture}: "
            "expected the one that they were trained with, quick_gelu (OpenAI's weights) or gelu (most "
            "others). The wrong one would give wrong scores without an error"
        )
    plain = architecture.removesuffix(_SUFFIX)
    for source, activation in (("open_clip", trained), ("encoder.activation", card.activation)):
        if activation not in (None, built):
            raise ConfigError(
                f"encoder.architecture {architecture} computes {built}, and {source} says that its weights "
                f"were trained with {activation}. Expected the architecture "
                f"{plain + _SUFFIX if plain == architecture else plain}"
            )


def _trained_with(repository: str | None) -> Activation | None:
    """Return the activation of a repository on the hub, from open_clip's table of pretrained weights."""
    import open_clip

    for architecture, tag in open_clip.list_pretrained() if repository else ():
        config = open_clip.get_pretrained_cfg(architecture, tag)
        if str(config.get("hf_hub", "")).rstrip("/") == repository:
            return _activation(config)
    return None


def _activation(config: Mapping[str, Any]) -> Activation:
    return "quick_gelu" if config.get("quick_gelu") else "gelu"
