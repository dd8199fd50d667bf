"""Loads model cards: the name of a built-in card, or the path of a card file → a checked `ModelCard`.

A card is data: reading it runs no code and loads no weights.
"""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Final

from nsfw_spark.errors import ConfigError
from nsfw_spark.model_card import ModelCard, is_inside
from nsfw_spark.yaml_sections import parse_section

_BUILT_IN: Final = resources.files("nsfw_spark") / "models"
_log = logging.getLogger(__name__)


def built_in_models() -> list[str]:
    """Return the names of the built-in cards, sorted."""
    return sorted(
        card.name.removesuffix(".yaml") for card in _BUILT_IN.iterdir() if card.name.endswith(".yaml")
    )


def choose_card(
    model: str | Path, *, heads: Sequence[str] | None = None, score_class: str | None = None
) -> ModelCard:
    """Load the card of a model for use: log its warning, and select its heads and its score.

    Args:
        model: Name of a built-in card, or path of a card file.
        heads: Names of the heads to compute, with `nsfw` among them; None means all.
        score_class: Class for nsfw_score; None means the card's choice.

    Raises:
        ConfigError: The card is missing or wrong, or lacks the head or class.
    """
    card = load_card(model)
    if card.warning:
        _log.warning("%s: %s", card.name, card.warning)
    return with_score_class(with_heads(card, heads), score_class)


def load_card(model: str | Path) -> ModelCard:
    """Load a built-in card by its name, or a card file by its path (`.yaml`, `.yml`).

    Raises:
        ConfigError: The card is missing, or one of its fields is wrong.
    """
    return _load(_card_file(model))


def card_text(model: str | Path) -> str:
    """Return a card's YAML with its comments, after a check that the card is valid.

    Raises:
        ConfigError: As `load_card`.
    """
    file = _card_file(model)
    _load(file)
    return file.read_text(encoding="utf-8")


def _card_file(model: str | Path) -> Traversable:
    name = str(model)
    if name.endswith((".yaml", ".yml")):
        return Path(os.path.expanduser(name))  # noqa: PTH111 - Path's fails where there is no home directory
    models = built_in_models()
    if name in models:
        return _BUILT_IN / f"{name}.yaml"
    near = difflib.get_close_matches(name, models, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise ConfigError(
        f"unknown model {name!r}: {hint}expected one of {', '.join(models)}, "
        "or the path of a card file that ends in .yaml"
    )


def _load(file: Traversable) -> ModelCard:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the model card {file}: {error}") from error
    card = parse_section(ModelCard, text, origin=str(file))
    sources = {}
    for part, source in card.weights_sources.items():
        if source.path is None:
            continue
        if not is_inside(source.path):
            raise ConfigError(
                f"{file}: {part}.weights.path is {source.path}; expected a path relative to the card, in its "
                "folder or below: a card must not read other files, since people copy cards from each other. "
                "Put the card beside the weights, or a link to the weights beside the card"
            )
        # Absolute, because Spark's workers have another current directory.
        path = (Path(str(file)).parent / source.path).resolve()
        sources[part] = source.model_copy(update={"path": path})
    return card.with_weights_sources(sources)


def with_heads(card: ModelCard, names: Sequence[str] | None) -> ModelCard:
    """Return the card with only the named heads; None keeps all.

    Raises:
        ConfigError: `nsfw` is not among the names, or the card lacks one of the heads.
    """
    if names is None:
        return card
    if "nsfw" not in names:
        raise ConfigError(
            f"heads are {', '.join(names) or '(none)'}; expected nsfw among them: it decides what is safe"
        )
    if unknown := [name for name in names if name not in card.heads]:
        raise ConfigError(
            f"the model {card.name} has no head {', '.join(unknown)}; expected some of "
            f"{', '.join(card.heads)}. {_hint(card, unknown)}"
        )
    others = {name: card.other_heads[name] for name in dict.fromkeys(names) if name != "nsfw"}
    return card.model_copy(update={"other_heads": others})


def _hint(card: ModelCard, names: Sequence[str]) -> str:
    """Name the built-in models that have these heads on the same encoder."""
    built_in = [load_card(name) for name in built_in_models()]
    able = [
        other.name
        for other in built_in
        if set(names) <= set(other.heads) and other.encoder.architecture == card.encoder.architecture
    ]
    return f"On the same encoder: --model {' or '.join(able)}" if able else "List it in a card of your own"


def with_score_class(card: ModelCard, name: str | None) -> ModelCard:
    """Return the card with the score of another class as nsfw_score; None keeps the card's class.

    Raises:
        ConfigError: The card has no such class, or that class cannot be the score.
    """
    if name is None:
        return card
    if name not in card.head.choices:
        classes = ", ".join(card.head.choices)
        expected = f"expected one of {classes}" if classes else "it has no classes: leave the option out"
        raise ConfigError(f"score class {name!r} of the model {card.name}: {expected}")
    head = card.head.model_copy(update={"score": f"{card.head.kind}:{name}"})
    return card.model_copy(update={"head": head})
