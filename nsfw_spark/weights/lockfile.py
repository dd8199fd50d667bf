"""Pins the weights of a model with a lock file, so that each machine uses the same ones.

A card may name a branch, and may lack a sha256. `weights.lock.yaml` records the commit and the sha256 of each
part of a model. In: such a file, and a card. Out: the card with both pinned. The file is text to commit:

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
"""Name of the lock file in a model directory, where no option has to name it."""

_ORIGIN: Final = ("huggingface", "github", "package", "file", "path", "random")
_PINS: Final = ("revision", "sha256", "git_sha1")
_HEADING: Final = "# Written by nsfw-spark models lock. Weights that differ from these pins are refused.\n"


class _Lock(Section):
    version: Literal[1]
    models: dict[str, dict[str, WeightsSource]]


def with_lock(card: ModelCard, model_dir: Path | None = None, lock: Path | None = None) -> ModelCard:
    """Return the card with the pins of the lock file; without a lock file, the unchanged card.

    The lock file of `model_dir` is optional. A `lock` replaces it, and must exist.

    Raises:
        ConfigError: A field of the file is wrong.
        WeightsError: The file is missing or lacks the model, or its card names other weights.
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
            raise WeightsError(f"{path} has no {part} of {card.name}, but the card has. {again}")
        if differ := _differences(source, locked[part]):
            raise WeightsError(f"{card.name}.{part}: the card and {path} differ: {differ}. {again}")
        pins = {name: getattr(source, name) or getattr(locked[part], name) for name in _PINS}
        pinned[part] = source.model_copy(update=pins)
    return card.with_weights_sources(pinned)


def lock_weights(path: Path, card: ModelCard, sources: Mapping[str, WeightsSource]) -> None:
    """Write the pins of a model, from `known_sources`, into a lock file. The entries of other models stay.

    Raises:
        ConfigError: A field of the existing file is wrong.
        WeightsError: The file cannot be read or written.
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
    """Return the fields in which card and lock differ, for messages. A pin of only one is no difference."""
    mine, theirs = _as_locked(source), _as_locked(locked)
    names = [name for name in _ORIGIN if mine.get(name) != theirs.get(name)]
    names += [name for name in _PINS if name in mine and mine[name] != theirs.get(name, mine[name])]
    return ", ".join(f"{name} {mine.get(name)} and {theirs.get(name)}" for name in names)


def _as_locked(source: WeightsSource) -> dict[str, Any]:
    content = source.model_dump(mode="json", exclude_none=True)
    if source.path is not None:
        content["path"] = source.path.name  # card and weights may move together
    return content
