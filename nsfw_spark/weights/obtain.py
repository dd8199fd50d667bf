"""Obtains a file of a repository: found on this machine, or downloaded to it.

In: a source of weights, where to look, and whether something may be downloaded. Out: a path. Files that lie
here are not read: who uses them verifies them. What is downloaded is verified before it gets its name.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from nsfw_spark.errors import WeightsError
from nsfw_spark.model_card import WeightsSource
from nsfw_spark.weights import places
from nsfw_spark.weights.checksums import verified_sha256
from nsfw_spark.weights.download import download
from nsfw_spark.weights.github import open_github_file
from nsfw_spark.weights.hub import open_hub_file
from nsfw_spark.weights.mirror import open_mirrored_file
from nsfw_spark.weights.remote import RemoteFile


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

    path, looked = places.find(source, model_dir)
    if path is not None:
        return path
    why_not = downloads.why_not
    if why_not is None:
        target = places.path_in_model_dir(source, model_dir) if model_dir else places.path_in_cache(source)
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

    target = places.path_in_model_dir(source, model_dir)
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
