"""Finds, fetches and verifies weights.

In: a `ModelCard`, and where to look. Out: files whose sha256 is known, or tensors read from them. Weights are
data: nothing here unpickles.

A file of a repository, on the Hugging Face hub or GitHub, is looked for in `MODEL_DIR/OWNER/NAME/FILE`, then
in the caches (`places`), and then, where that is wanted, downloaded (`download`) from the `hub`, from
`github`, or from a `mirror` of them: `obtain` puts that in a row, `locate` does it for a whole model. What a
`lockfile` pins goes into the card first, so that whoever has the card looks for the same files everywhere.
"""

from __future__ import annotations

from nsfw_spark.weights.find import (
    WeightsFile,
    fetch_weights,
    fingerprint,
    known_sources,
    locate_weights,
    missing_packages,
    obtain_missing,
)
from nsfw_spark.weights.lockfile import LOCK_NAME, lock_weights, with_lock

__all__ = [
    "LOCK_NAME",
    "WeightsFile",
    "fetch_weights",
    "fingerprint",
    "known_sources",
    "locate_weights",
    "lock_weights",
    "missing_packages",
    "obtain_missing",
    "with_lock",
]
