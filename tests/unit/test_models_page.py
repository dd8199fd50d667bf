"""The tables of docs/models.md equal the model cards."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from nsfw_spark.cards import built_in_models, load_card

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def models_table() -> ModuleType:
    spec = importlib.util.spec_from_file_location("models_table", DOCS / "models_table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_page_is_made_of_the_cards(models_table: ModuleType) -> None:
    page = models_table.PAGE.read_text(encoding="utf-8")
    made = models_table.page_with(models_table.tables(), page)
    assert page == made, "run: python docs/models_table.py"


def test_the_tables_tell_of_each_model_its_licence_and_what_is_published_of_it(
    models_table: ModuleType,
) -> None:
    """Otherwise the test above would pass with empty tables too."""
    tables = models_table.tables()
    for name in built_in_models():
        card = load_card(name)
        assert tables.count(f"`{name}`") == 2
        wanted = [card.source, card.licence, *card.bad_at, *(each.value for each in card.accuracy)]
        assert all(text in tables for text in wanted)
        assert "|" not in "".join(wanted), "it would end a column"


def test_changed_tables_are_put_in_the_place_of_the_old_ones(models_table: ModuleType) -> None:
    page = f"before\n{models_table.BEGIN}\n\nold\n\n{models_table.END}\nafter\n"
    expected = f"before\n{models_table.BEGIN}\n\nnew\n\n{models_table.END}\nafter\n"
    assert models_table.page_with("new", page) == expected
