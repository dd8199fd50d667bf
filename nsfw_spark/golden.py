"""Golden scores of LAION's heads: what the original TensorFlow model gave for a few embeddings.

In: a network that was just loaded, and the sha256 of its archive. It must give these scores, whether it is
`plain` or `exact`: the embeddings are such that no vocabulary has their numbers. What else is wrong then is
this machine's arithmetic. Where they come from: `models/laion/README.md`.
"""

from __future__ import annotations

from importlib import resources
from typing import Final

import numpy as np

from nsfw_spark.dense import DenseNetwork
from nsfw_spark.errors import DeviceError

TOLERANCE: Final = 1e-5
"""The networks differ from TensorFlow's by up to 1.3e-6 on these."""

_PREFIXES: Final = {
    "905520bb0336accc73ee282c605d926aef90cf14248889d44b9cee50eef71f8a": "l14",
    "78715ab9d64485167e8c9ade3b8e6761a17a16c24d114bd47431ac1dab46462b": "b32",
}
"""By sha256 of the archive, the beginning of the names in the file."""


def check_golden_scores(network: DenseNetwork, sha256: str) -> None:
    """Make sure that a head that LAION published gives the scores that it gave there.

    Args:
        network: The head, loaded.
        sha256: Of its archive. Of archives that are not known, nothing is.

    Raises:
        DeviceError: It gives others.
    """
    prefix = _PREFIXES.get(sha256)
    if prefix is None:
        return
    with (
        resources.files("nsfw_spark").joinpath("models/laion/golden.npz").open("rb") as file,
        np.load(file) as golden,
    ):
        embeddings, expected = golden[f"{prefix}_embeddings"], golden[f"{prefix}_scores"]  # (4, D), (4,)
    found = network.scores(embeddings)
    if not np.abs(found - expected).max() <= TOLERANCE:  # NaN included
        raise DeviceError(
            f"LAION's head {prefix} gives {found.tolist()} on this machine for its golden embeddings; "
            f"expected {expected.tolist()}, to {TOLERANCE:g}. Its file is the right one, so that numpy "
            f"{np.__version__}, or the library that multiplies matrices for it, computes wrongly here: "
            "install another version"
        )
