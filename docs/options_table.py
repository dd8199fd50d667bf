"""Write the tables of docs/options.md from the options: `python docs/options_table.py`.

The page keeps its own text. The part between the two marks is made here, and tests/unit/test_docs.py fails
where it differs from nsfw_spark/options.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from nsfw_spark.cli_options import option_help
from nsfw_spark.options import GROUPS

PAGE: Final = Path(__file__).with_name("options.md")
BEGIN: Final = "<!-- from nsfw_spark/options.py: python docs/options_table.py -->"
END: Final = "<!-- end -->"


def tables() -> str:
    """Return one table for each group of options, as Markdown."""
    parts = []
    for group in GROUPS:
        lines = [
            f"## {group.group}",
            "",
            "| option | values | default | meaning |",
            "| --- | --- | --- | --- |",
        ]
        for field in group.__annotations__:
            if field in group.model_fields:
                name, values, default, meaning = option_help(field)
                cells = [f"`{name}`", f"`{values}`" if values else "", default, meaning]
                row = " | ".join(cell.replace("|", "\\|") for cell in cells)
                lines.append(f"| {row} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def page_with(tables: str, page: str) -> str:
    """Return the page with these tables in place of its own."""
    head, _, rest = page.partition(BEGIN)
    return f"{head}{BEGIN}\n\n{tables}\n\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(page_with(tables(), PAGE.read_text(encoding="utf-8")), encoding="utf-8")
