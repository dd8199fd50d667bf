"""Reads tensors from safetensors files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from nsfw_spark.errors import WeightsError

if TYPE_CHECKING:  # torch is heavy, and absent where no model needs it
    import torch

_FETCH: Final = "nsfw-spark models fetch MODEL --model-dir DIR"


def read_tensors(path: Path, prefix: str = "") -> dict[str, torch.Tensor]:
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
        expected = "a CLIP checkpoint" if prefix else "a network's weights"
        raise WeightsError(f"{path} holds no tensor named {prefix}…; expected {expected}")
    return tensors
