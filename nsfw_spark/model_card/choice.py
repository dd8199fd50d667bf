"""What of a model is computed: all that its card says, or what was asked for.

In: a model, names of heads, the name of a class. Out: the card with that choice alone, so that whatever
follows from a card (the weights that are looked for, the fingerprint, the columns) follows from the choice.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from nsfw_spark.errors import ConfigError
from nsfw_spark.model_card.card import ModelCard
from nsfw_spark.model_card.reading import built_in_models, load_card

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
