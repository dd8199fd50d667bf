"""Weights files: find them, download them, and pin them. Weights are data: nothing here unpickles.

`find` looks for each file of a model in the model directory and in the caches, and checks its sha256.
`download` gets a missing file from the hub, GitHub or a mirror. `lockfile` pins files in the card first, so
that each machine with the card looks for the same ones.
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
