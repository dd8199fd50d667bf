"""Reads model cards: the name of a built-in one, or the path of a file → a checked `ModelCard`.

A card is data: reading one runs no code and loads no weights.
"""

from __future__ import annotations

import difflib
import logging
import re
import textwrap
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Final

import yaml
from pydantic import BaseModel

from nsfw_spark.errors import ConfigError
from nsfw_spark.model_card import ModelCard, is_inside
from nsfw_spark.yaml_sections import parse_section

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


_log = logging.getLogger(__name__)


def choose_card(
    model: str | Path, *, heads: Sequence[str] | None = None, score_class: str | None = None
) -> ModelCard:
    """Read the card of a model that is about to be used, and say what has to be known of it.

    Args:
        model: Name of a built-in card, or path of a card file.
        heads: Of its heads those to compute, `nsfw` among them; None: all.
        score_class: The class whose score is to be nsfw_score; None: what the card says.

    Raises:
        ConfigError: No such card, a field of it is wrong, or it has no such head or class.
    """
    card = load_card(model)
    if card.warning:
        _log.warning("%s: %s", card.name, card.warning)
    return with_score_class(with_heads(card, heads), score_class)


def with_heads(card: ModelCard, names: Sequence[str] | None) -> ModelCard:
    """Return the card with some of its heads.

    Args:
        card: The model.
        names: Of heads, `nsfw` among them; None: all that the card has.

    Raises:
        ConfigError: `nsfw` is not among them, or the card has no such head.
    """
    if names is None:
        return card
    if "nsfw" not in names:
        raise ConfigError(
            f"the heads {', '.join(names) or '(none)'} were asked for; expected nsfw among them: it decides "
            "what is safe"
        )
    if unknown := [name for name in names if name not in card.heads]:
        raise ConfigError(
            f"the model {card.name} has no head {', '.join(unknown)}; expected some of "
            f"{', '.join(card.heads)}{_hint(card, unknown)}"
        )
    others = {name: card.other_heads[name] for name in dict.fromkeys(names) if name != "nsfw"}
    return card.model_copy(update={"other_heads": others})


def with_score_class(card: ModelCard, name: str | None) -> ModelCard:
    """Return the same model with the score of another class as nsfw_score; None: as it is.

    Raises:
        ConfigError: It has no such class, or none that can be a score.
    """
    if name is None:
        return card
    if name not in card.head.choices:
        choices = f"expected one of {', '.join(card.head.choices)}"
        none = "it has no classes, its score is the only one: leave the option out"
        raise ConfigError(
            f"score class {name!r} of the model {card.name}: {choices if card.head.choices else none}"
        )
    head = card.head.model_copy(update={"score": f"{card.head.kind}:{name}"})
    return card.model_copy(update={"head": head})


def _hint(card: ModelCard, names: Sequence[str]) -> str:
    """Name the built-in models that have these heads on the same encoder."""
    built_in = [load_card(name) for name in built_in_models()]
    able = [
        other.name
        for other in built_in
        if set(names) <= set(other.heads) and other.encoder.architecture == card.encoder.architecture
    ]
    return (
        f". On the same encoder: --model {' or '.join(able)}" if able else ". List it in a card of your own"
    )


_WIDTH: Final = 100
_INDENT: Final = "  "


def card_text(card: ModelCard) -> str:
    """Return the card as commented YAML, without the fields that are null."""
    return "\n".join(_lines(card, ""))


def _lines(section: BaseModel, indent: str) -> Iterator[str]:
    for name, info in type(section).model_fields.items():
        value = getattr(section, name)
        if value is None:
            continue
        if info.description:
            yield from _comment(info.description, indent)
        if isinstance(value, BaseModel):
            inside = list(_lines(value, indent + _INDENT))
            yield f"{indent}{name}:" + ("" if inside else " {}")
            yield from inside
        elif isinstance(value, dict) and value:
            yield f"{indent}{name}:"
            for key, inner in value.items():
                yield f"{indent}{_INDENT}{key}:"
                yield from _lines(inner, indent + 2 * _INDENT)
        else:
            yield from _value(section, name, indent)


def _comment(description: str, indent: str) -> list[str]:
    """Return the first paragraph of what a field means, as comments."""
    paragraph = re.sub(r"\s+", " ", description.strip().split("\n\n")[0])
    prefix = f"{indent}# "
    return textwrap.wrap(paragraph, _WIDTH, initial_indent=prefix, subsequent_indent=prefix)


def _value(section: BaseModel, name: str, indent: str) -> list[str]:
    """Return a field as YAML: a number or a text, a list of them on one line, or a list of sections."""
    value = section.model_dump(mode="json", include={name})[name]
    is_short = isinstance(value, list) and not any(isinstance(each, dict) for each in value)
    text = yaml.safe_dump(
        value if is_short else {name: value},
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=is_short,
        width=_WIDTH,
    ).rstrip()
    return textwrap.indent(f"{name}: {text}" if is_short else text, indent).splitlines()
