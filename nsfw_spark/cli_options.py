"""Turns fields of `nsfw_spark.options` into typer's options: name, values, default and help.

In: the names of fields. Out: types for typer, and commands made of them. Knows no command.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from inspect import Parameter, Signature
from types import NoneType
from typing import Annotated, Any, Final, Literal, get_args, get_origin

import typer

from nsfw_spark.options import GROUPS, JobOptions, PeekOptions

_METAVARS: Final = {
    "device": "auto|cpu|cuda[:N]",
    "format": "FORMAT",
    "uncertain": "LOW:HIGH",
    "heads": "NAME,…",
    "carry": "all|none|NAME,…",
    "policy": "SQL|FILE",
    "source_option": "NAME=VALUE",
    **dict.fromkeys(("model", "second"), "NAME|FILE"),
    **dict.fromkeys(("input", "output", "checkpoints", "content_from", "model_source"), "URI"),
    **dict.fromkeys(("content_column", "id_column", "score_class"), "NAME"),
    "model_dir": "DIR",
    "weights_lock": "FILE",
}

Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
"""The option of every command that `main` reads."""
Verbose = Annotated[bool, typer.Option("--verbose", help="Show all that Spark's start prints.")]
"""The option of every command that starts Spark."""
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document in place of text.")]
_OPTIONS: Final = {**PeekOptions.model_fields, **JobOptions.model_fields}


def add_command(
    app: typer.Typer, name: str, command: Callable[..., int], types: Mapping[str, Any], **help_: str | None
) -> None:
    """Add a command whose parameters, all of them keywords, have these types for typer."""
    command.__annotations__ = dict(types)
    defaults = {
        name: False if name in ("debug", "verbose", "as_json") or name.startswith("no_") else None
        for name in types
    }
    command.__signature__ = Signature(  # type: ignore[attr-defined]
        [
            Parameter(name, Parameter.KEYWORD_ONLY, default=defaults[name], annotation=type_)
            for name, type_ in types.items()
        ]
    )
    app.command(name, **help_)(command)  # type: ignore[arg-type]


def option_types(argument: str, fields: Collection[str]) -> dict[str, Any]:
    """Return the types of a command's argument and of its options, in their groups."""
    return {
        argument: Annotated[str | None, typer.Argument(metavar=argument.upper(), help=help_of(argument))],
        **{
            field: _option_type(field, group.group)
            for group in GROUPS
            for field in group.__annotations__
            if field in fields
        },
    }


def _option_type(field: str, group: str) -> Any:  # noqa: ANN401 - a type, for typer to read
    """Return the option of a field; its value stays text, which `JobOptions` validates."""
    flag, metavar, default, text = option_help(field)
    if _OPTIONS[field].annotation is bool:
        return Annotated[bool | None, typer.Option(flag, help=text, rich_help_panel=group)]
    text += f" Default: {default}." if default else ""
    option = typer.Option(flag, metavar=metavar, help=text, show_default=False, rich_help_panel=group)
    return Annotated[list[str] | None, option] if field == "source_option" else Annotated[str | None, option]


def option_help(field: str) -> tuple[str, str, str, str]:
    """Return an option's name, its values, its default and its meaning; empty where there is none."""
    info = _OPTIONS[field]
    name = field.upper() if field == "input" else f"--{field.replace('_', '-')}"
    if info.annotation is bool:
        return name, "", "off", help_of(field)
    default = "" if info.default is None or info.is_required() else _as_text(info.default)
    return name, _METAVARS.get(field) or _metavar(info.annotation), default, help_of(field)


def _metavar(type_: Any) -> str:  # noqa: ANN401 - any annotation
    """Return the values of a type as help shows them: `INT`, `auto|cpu`, `INT|auto`."""
    if get_origin(type_) is Literal:
        return "|".join(str(value) for value in get_args(type_))
    if parts := [part for part in get_args(type_) if part is not NoneType]:
        return "|".join(_metavar(part) for part in parts)
    return {int: "INT", float: "NUMBER"}.get(type_, "TEXT")


def _as_text(value: Any) -> str:  # noqa: ANN401 - any default
    if isinstance(value, tuple):
        return ":".join(f"{each:g}" for each in value)
    return (
        f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else str(value)
    )


def help_of(field: str) -> str:
    """Return an option's meaning, on one line."""
    return str(_OPTIONS[field].description).replace("\n", " ")
