"""The lock file: which weights exactly a model has, whenever and wherever it is used.

A card may name a branch, and may not know a sha256. `weights.lock.yaml` says, for each part of each model in
it, the commit and the sha256 that were found when it was written. In: such a file, and a card. Out: the card
with both pinned, so that all that follows, on every machine, is held to them. It is a text to commit:

    version: 1
    models:
      laion-vit-l-14:
        encoder: {huggingface: owner/name, file: model.safetensors, revision: 0123…, sha256: 4567…}
        head: {package: nsfw_spark, file: models/laion/….zip, sha256: 89ab…}
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

import yaml

from nsfw_spark.errors import WeightsError
from nsfw_spark.model_card import ModelCard, WeightsSource
from nsfw_spark.yaml_sections import Section, parse_section

LOCK_NAME: Final = "weights.lock.yaml"
"""In a model directory: found without being named."""

_PLACE: Final = ("huggingface", "github", "package", "file", "random")
_PINS: Final = ("revision", "sha256", "git_sha1")
_HEADING: Final = (
    "# Written by nsfw-spark models lock: weights that differ from what is pinned here are refused.\n"
)


class _Lock(Section):
    """All of a lock file."""

    version: Literal[1]
    models: dict[str, dict[str, WeightsSource]]


def with_lock(card: ModelCard, model_dir: Path | None = None, lock: Path | None = None) -> ModelCard:
    """Return a card whose weights are pinned as the lock file says; without such a file the card as it is.

    Args:
        card: The model.
        model_dir: Where a lock file is looked for, if none is named.
        lock: The lock file; then it must be there.

    Raises:
        ConfigError: The file cannot be read, or a field of it is wrong.
        WeightsError: The model is not in it, or its card names other weights.
    """
    path = lock or (model_dir and model_dir / LOCK_NAME)
    if path is None or (lock is None and not path.is_file()):
        return card
    locked = _read(path).models.get(card.name)
    again = f"Lock it again: nsfw-spark models lock {card.name} …"
    if locked is None:
        raise WeightsError(f"{card.name} is not in {path}, so its weights are not pinned. {again}")
    pinned = {}
    for part, source in card.weights_sources.items():
        if part not in locked:
            raise WeightsError(f"{path} has no {part} of {card.name}, which the card names. {again}")
        if differ := _differences(source, locked[part]):
            raise WeightsError(f"{card.name}.{part}: the card and {path} differ: {differ}. {again}")
        pins = {name: getattr(source, name) or getattr(locked[part], name) for name in _PINS}
        pinned[part] = source.model_copy(update=pins)
    return card.with_weights_sources(pinned)


def lock_weights(path: Path, card: ModelCard, sources: Mapping[str, WeightsSource]) -> None:
    """Write what a model's weights are into a lock file; what it says of other models stays.

    Args:
        path: The file, made where it is missing.
        card: The model.
        sources: Its parts, with all that is known of them.

    Raises:
        ConfigError: The file is there and cannot be read.
        WeightsError: It cannot be written.
    """
    models: dict[str, Any] = {}
    if path.exists():
        models = _read(path).model_dump(mode="json", exclude_none=True)["models"]
    models[card.name] = {part: _as_locked(source) for part, source in sources.items()}
    content = {"version": 1, "models": dict(sorted(models.items()))}
    text = _HEADING + yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=1000)
    new = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new.write_text(text, encoding="utf-8")
        new.replace(path)
    except OSError as error:
        raise WeightsError(f"cannot write the lock file {path}: {error}") from error


def _read(path: Path) -> _Lock:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise WeightsError(
            f"cannot read the lock file {path}: {error}. Write one: nsfw-spark models lock MODEL …"
        ) from error
    return parse_section(_Lock, text, origin=str(path))


def _differences(source: WeightsSource, locked: WeightsSource) -> str:
    """Say in what the card contradicts the lock; what only one of them knows is no contradiction."""
    names = [name for name in _PLACE if getattr(source, name) != getattr(locked, name)]
    if (source.path and source.path.name) != (locked.path and locked.path.name):
        names.append("path")
    names += [
        name
        for name in _PINS
        if None not in (values := {getattr(source, name), getattr(locked, name)}) and len(values) > 1
    ]
    return ", ".join(f"{name} {getattr(source, name)} and {getattr(locked, name)}" for name in names)


def _as_locked(source: WeightsSource) -> dict[str, Any]:
    content = source.model_dump(mode="json", exclude_none=True)
    if source.path is not None:
        content["path"] = source.path.name  # it lies beside the card, wherever that lies
    return content
