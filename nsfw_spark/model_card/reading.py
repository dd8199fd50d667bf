"""Reads model cards: the name of a built-in one, or the path of a file → a checked `ModelCard`.

A card is data: reading one runs no code and loads no weights.
"""

from __future__ import annotations

import difflib
from importlib import resources
from pathlib import Path
from typing import Final

from nsfw_spark.errors import ConfigError
from nsfw_spark.inside import is_inside
from nsfw_spark.model_card.card import ModelCard
from nsfw_spark.sections import parse_section

_BUILT_IN: Final = resources.files("nsfw_spark") / "models"


def built_in_models() -> list[str]:
    """Return the names of the built-in cards, sorted."""
    return sorted(
        card.name.removesuffix(".yaml") for card in _BUILT_IN.iterdir() if card.name.endswith(".yaml")
    )


def load_card(model: str | Path) -> ModelCard:
    """Read a model card.

    Args:
        model: Name of a built-in card, or path of a card file (`.yaml`, `.yml`).

    Raises:
        ConfigError: No such card, or a field of it is wrong.
    """
    name = str(model)
    if name.endswith((".yaml", ".yml")):
        return _read_card(Path(name))
    if name not in built_in_models():
        near = difflib.get_close_matches(name, built_in_models(), n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(
            f"unknown model {name!r}: {hint}expected one of {', '.join(built_in_models())}, "
            "or the path of a card file that ends in .yaml"
        )
    with resources.as_file(_BUILT_IN / f"{name}.yaml") as path:
        return _read_card(path)


def _read_card(path: Path) -> ModelCard:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the model card {path}: {error}") from error
    card = parse_section(ModelCard, text, origin=str(path))
    for part, source in card.weights_sources.items():
        if source.path is not None and not is_inside(source.path):
            raise ConfigError(
                f"{path}: {part}.weights.path is {source.path}; expected a path relative to the card, in its "
                "folder or below. Put the card beside the weights, or a link to them beside the card"
            )
    return _with_absolute_paths(card, path.parent)


def _with_absolute_paths(card: ModelCard, folder: Path) -> ModelCard:
    """Resolve `path` weights against the card's folder: workers have another current directory."""
    content = card.model_dump()
    for section in (content["encoder"], content["head"], *content["other_heads"].values()):
        weights = section["weights"]
        if weights and weights["path"]:
            weights["path"] = (folder / weights["path"]).resolve()
    return ModelCard.model_validate(content)
