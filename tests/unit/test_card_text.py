"""What `models show` prints: the whole card, and what its fields mean."""

from __future__ import annotations

import pytest
import yaml

from nsfw_spark.cards import built_in_models, card_text, load_card
from nsfw_spark.model_card import ModelCard
from tests.fakes import card, perceptron


@pytest.mark.parametrize("name", built_in_models())
def test_it_is_the_whole_card(name: str) -> None:
    shown = yaml.safe_load(card_text(load_card(name)))
    assert shown == load_card(name).model_dump(mode="json", exclude_none=True)
    assert ModelCard.model_validate(shown) == load_card(name)


def test_several_heads_and_texts_that_yaml_would_misread_are_shown() -> None:
    odd = card(
        summary='yes: #1, it\'s "on"',
        other_heads={"beauty": perceptron(1, [8, "relu", 1], "linear")},
        bad_at=["- a list", "no"],
    )
    assert ModelCard.model_validate(yaml.safe_load(card_text(odd))) == odd


def test_what_is_left_to_a_default_is_shown_and_what_is_null_is_not() -> None:
    lines = card_text(load_card("laion-vit-l-14")).splitlines()
    assert "  resizer: simd" in lines
    assert "  head_encoding: plain" in lines
    assert not [line for line in lines if "null" in line and "#" not in line]


def test_each_field_is_preceded_by_what_it_means() -> None:
    lines = card_text(load_card("freepik-eva02-b-448")).splitlines()
    at = lines.index("  precision: bfloat16")
    assert lines[at - 1] == "  # Arithmetic on a GPU. A CPU computes in float32."
    assert max(len(line) for line in lines if line.lstrip().startswith("#")) <= 100
