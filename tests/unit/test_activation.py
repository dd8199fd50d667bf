"""QuickGELU or GELU: a card whose architecture is not that of its weights cannot be used by mistake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nsfw_spark.cards import built_in_models, load_card
from nsfw_spark.encoders.open_clip import check_activation
from nsfw_spark.errors import ConfigError
from nsfw_spark.model import ModelSpec, load_model
from nsfw_spark.model_card import EncoderCard
from tests.fakes import card

OPENAI = {"huggingface": "timm/vit_base_patch32_clip_224.openai", "file": "open_clip_model.safetensors"}
LAION = {"huggingface": "laion/CLIP-ViT-B-32-laion2B-s34B-b79K", "file": "open_clip_model.safetensors"}
OWN = {"path": "tower.safetensors"}
QUICK, PLAIN = "ViT-B-32-quickgelu", "ViT-B-32"


def encoder(architecture: str, weights: dict[str, str], activation: str | None = None) -> EncoderCard:
    content: dict[str, Any] = {
        "library": "open_clip",
        "architecture": architecture,
        "weights": weights,
        "activation": activation,
    }
    return EncoderCard.model_validate(content)


@pytest.mark.parametrize(
    "right",
    [
        encoder(QUICK, OPENAI),
        encoder(QUICK, OPENAI, "quick_gelu"),
        encoder(PLAIN, LAION),
        encoder(QUICK, OWN, "quick_gelu"),
        encoder(PLAIN, OWN, "gelu"),
    ],
)
def test_the_activation_that_the_weights_were_trained_with_is_accepted(right: EncoderCard) -> None:
    check_activation(right)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (encoder(PLAIN, OPENAI), f"computes gelu, and open_clip says .* quick_gelu.*architecture {QUICK}$"),
        (encoder(QUICK, LAION), f"computes quick_gelu, and open_clip says .* gelu.*architecture {PLAIN}$"),
        (encoder(PLAIN, OWN, "quick_gelu"), r"and encoder\.activation says"),
        (encoder(QUICK, OWN, "gelu"), r"and encoder\.activation says"),
        (encoder(QUICK, OPENAI, "gelu"), r"and encoder\.activation says"),
        (encoder(PLAIN, OPENAI, "gelu"), "and open_clip says"),
        (encoder(QUICK, OWN), r"encoder\.activation is missing.*expected quick_gelu.*or gelu"),
        (encoder(PLAIN, OWN), r"encoder\.activation is missing"),
        (encoder(PLAIN, {**LAION, "huggingface": "somebody/fine-tuned"}), r"encoder\.activation is missing"),
    ],
    ids=lambda value: (
        f"{value.architecture} {value.weights.repository}" if isinstance(value, EncoderCard) else ""
    ),
)
def test_another_one_and_an_unknown_one_are_config_errors(wrong: EncoderCard, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_activation(wrong)


@pytest.mark.parametrize(
    "name", [name for name in built_in_models() if load_card(name).encoder.library == "open_clip"]
)
def test_the_built_in_cards_are_right_and_would_be_wrong_with_the_other(name: str) -> None:
    right = load_card(name).encoder
    check_activation(right)
    has_suffix = right.architecture.endswith("-quickgelu")
    other = right.architecture.removesuffix("-quickgelu") + ("" if has_suffix else "-quickgelu")
    with pytest.raises(ConfigError, match=f"Expected the architecture {right.architecture}$"):
        check_activation(right.model_copy(update={"architecture": other}))


def test_a_model_with_another_activation_is_not_loaded(tmp_path: Path) -> None:
    """And it is said before the weights are read: a file of two gigabytes."""
    (tmp_path / "tower.safetensors").touch()
    weights = {"path": tmp_path / "tower.safetensors", "random": None}
    own = card(
        encoder={"library": "open_clip", "architecture": QUICK, "weights": weights, "activation": "gelu"}
    )
    with pytest.raises(ConfigError, match=r"encoder\.activation says"):
        load_model(ModelSpec(own, device="cpu"))
