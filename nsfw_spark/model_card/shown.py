"""A model card for people: all that it says, what is left to defaults too, and what each field means.

In: a card. Out: YAML with comments, from which the same card can be read again: a beginning for one's own.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from typing import Final

import yaml
from pydantic import BaseModel

from nsfw_spark.model_card.card import ModelCard

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
