"""The image tower of a CLIP model, in torch, as open_clip builds it: pixels in, embeddings out."""

from __future__ import annotations

import logging
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
    built = _of_architecture(card.architecture)
    if built is None or card.weights.random is not None:
        return  # open_clip itself refuses an unknown architecture; random weights were not trained
    trained = _of_repository(card.weights.huggingface)
    if trained is None and card.activation is None:
        raise ConfigError(
            f"encoder.activation is missing, and open_clip does not know the weights of {card.architecture}: "
            "expected the one that they were trained with, quick_gelu (OpenAI's weights) or gelu (most "
            "others). The wrong one would give wrong scores without an error"
        )
    for source, activation in (("open_clip", trained), ("encoder.activation", card.activation)):
        if activation not in (None, built):
            raise ConfigError(
                f"encoder.architecture {card.architecture} computes {built}, and {source} says that its "
                f"weights were trained with {activation}. Expected the architecture "
                f"{_other(card.architecture)}"
            )


def _of_architecture(architecture: str) -> Activation | None:
    import open_clip

    config = open_clip.get_model_config(architecture)
    return None if config is None else _activation(is_quick=config.get("quick_gelu", False))


def _of_repository(repository: str | None) -> Activation | None:
    """Return the activation of a repository on the hub, from open_clip's table of pretrained weights."""
    import open_clip

    if repository is None:
        return None
    for architecture, tag in open_clip.list_pretrained():
        known = open_clip.get_pretrained_cfg(architecture, tag)
        if str(known.get("hf_hub", "")).rstrip("/") == repository:
            return _activation(is_quick=known.get("quick_gelu", False))
    return None


def _activation(*, is_quick: bool) -> Activation:
    return "quick_gelu" if is_quick else "gelu"


def _other(architecture: str) -> str:
    has_suffix = architecture.endswith(_SUFFIX)
    return architecture.removesuffix(_SUFFIX) if has_suffix else architecture + _SUFFIX
