"""Writes the tables of docs/models.md from the model cards: `python docs/models_table.py`.

It replaces only the text between the page's two marks. tests/unit/test_models_page.py fails if the page's
tables differ from the cards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

from nsfw_spark.cards import built_in_models, load_card
from nsfw_spark.model_card import ModelCard

PAGE: Final = Path(__file__).with_name("models.md")
BEGIN: Final = "<!-- from the model cards: python docs/models_table.py -->"
END: Final = "<!-- end -->"


def tables() -> str:
    """Return the two tables as Markdown."""
    cards = [load_card(name) for name in built_in_models()]
    return "\n\n".join([_costs(cards), _figures(cards)])


def page_with(tables: str, page: str) -> str:
    """Return the page with its tables replaced."""
    head, _, rest = page.partition(BEGIN)
    return f"{head}{BEGIN}\n\n{tables}\n\n{END}{rest.partition(END)[2]}"


def _costs(cards: Iterable[ModelCard]) -> str:
    columns = (
        "model",
        "licence of the weights",
        "parameters",
        "download",
        "memory",
        "CPU",
        "precision on a GPU",
    )
    rows = [
        (
            f"[`{card.name}`]({card.source})",
            card.licence,
            _or_dash(card.size.parameters, lambda number: f"{number / 1e6:.1f} M"),
            _or_dash(card.size.download_mb, lambda number: f"{number:,.0f} MB"),
            _or_dash(card.size.memory_mb, lambda number: f"{number:,.0f} MB"),
            f"{card.seconds_per_image.cpu:g} s",
            card.encoder.precision,
        )
        for card in cards
    ]
    return _table(columns, rows)


def _figures(cards: Iterable[ModelCard]) -> str:
    rows = []
    for card in cards:
        figures = [f"{each.measured}: {each.value} ([source]({each.source}))" for each in card.accuracy]
        weak = "<br>".join(card.bad_at) or "-"
        rows.append((f"`{card.name}`", "<br>".join(figures) or "none published", weak))
    return _table(("model", "what its authors measured", "what it is bad at"), rows)


def _or_dash(number: float | None, text: Callable[[float], str]) -> str:
    return "-" if number is None else text(number)


def _table(columns: Sequence[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [columns, ["---" for _ in columns], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    PAGE.write_text(page_with(tables(), PAGE.read_text(encoding="utf-8")), encoding="utf-8")
