"""Where on this machine a file of a repository may lie: the model directory, and two caches.

In: a source of weights. Out: paths. Whether a file there is the right one this module does not know.

One cache is that of the Hugging Face hub's client: only read, for what other programs have downloaded. The
other is ours, in the place that this client has for files that are not the hub's; both move with `HF_HOME`.
"""

from __future__ import annotations

from pathlib import Path

from nsfw_spark.model_card import WeightsSource


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
