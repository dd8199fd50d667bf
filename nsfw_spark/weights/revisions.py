"""Which commit holds a file: asked of the hub, for the lock file."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from nsfw_spark.model_card import ModelCard, WeightsSource
from nsfw_spark.weights.hub import open_hub_file
from nsfw_spark.weights.locate import WeightsFile
from nsfw_spark.weights.obtain import Downloads

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
