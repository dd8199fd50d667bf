"""Perceptrons: read as the card describes them; whatever else is in the file is a `WeightsError`."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from nsfw_spark.errors import WeightsError
from nsfw_spark.heads import Widths, read_mlp
from nsfw_spark.weights import WeightsFile


def tensors(num_inputs: int, widths: Widths, prefix: str = "layers.{}.") -> dict[str, torch.Tensor]:
    """Return a state_dict whose numbers say in which layer they are."""
    outputs = [int(width) for width in widths if width != "relu"]
    found = {}
    for i, (inputs, width) in enumerate(zip([num_inputs, *outputs[:-1]], outputs, strict=True)):
        name = prefix.format(3 * i)
        found |= {f"{name}weight": torch.full((width, inputs), float(i)), f"{name}bias": torch.ones(width)}
    return found


def saved(path: Path, content: object) -> WeightsFile:
    if path.suffix == ".safetensors":
        save_file(content, path)
    else:
        torch.save(content, path)
    return WeightsFile(path, "")


@pytest.mark.parametrize("name", ["head.pth", "head.pt", "head.safetensors"])
def test_layers_come_in_the_order_of_their_numbers(tmp_path: Path, name: str) -> None:
    """The sixth layer is called layers.15: as text, that is before layers.3."""
    widths = [4, "relu", 5, 6, "relu", 3, 2, 1]
    state = tensors(7, widths)
    shuffled = dict(sorted(state.items(), reverse=True))
    layers = read_mlp(saved(tmp_path / name, shuffled), 7, widths)
    assert [layer.kernel.shape for layer in layers] == [(7, 4), (4, 5), (5, 6), (6, 3), (3, 2), (2, 1)]
    assert [layer.bias.shape for layer in layers] == [(4,), (5,), (6,), (3,), (2,), (1,)]
    assert [layer.kernel[0, 0] for layer in layers] == [0, 1, 2, 3, 4, 5]
    assert [layer.has_relu for layer in layers] == [True, False, True, False, False, False]
    assert {layer.kernel.dtype for layer in layers} == {np.dtype(np.float32)}


def test_a_weight_is_turned_so_that_it_multiplies_from_the_right(tmp_path: Path) -> None:
    state = {"weight": torch.tensor([[1.0, 2.0, 3.0]]), "bias": torch.tensor([4.0])}
    (layer,) = read_mlp(saved(tmp_path / "linear.pth", state), 3, [1])
    assert layer.kernel.tolist() == [[1], [2], [3]]
    assert layer.bias.tolist() == [4]


def test_half_precision_weights_become_float32(tmp_path: Path) -> None:
    state = {name: tensor.bfloat16() for name, tensor in tensors(2, [1]).items()}
    (layer,) = read_mlp(saved(tmp_path / "head.safetensors", state), 2, [1])
    assert layer.kernel.dtype == np.float32


def without(state: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    return {each: tensor for each, tensor in state.items() if each != name}


GOOD = tensors(4, [3, 1])


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (
            tensors(5, [3, 1]),
            r"layers\.0\.weight \[3, 5\].*expected a weight and a bias for each of \[3, 4\]",
        ),
        (tensors(4, [2, 1]), r"layers\.3\.weight \[1, 2\]"),
        (tensors(4, [3, 3, 1]), r"layers\.6\.weight"),
        (tensors(4, [1]), r"it has layers\.0\.weight \[1, 4\], layers\.0\.bias \[1\]; expected"),
        (without(GOOD, "layers.3.bias"), r"layers\.3\.weight \[1, 3\]; expected"),
        ({**GOOD, "layers.3.extra": torch.ones(1)}, r"layers\.3\.extra \[1\]"),
        ({**GOOD, "norm.weight": torch.ones(4)}, r"norm\.weight \[4\]"),
        ({}, "it has no tensors"),
    ],
    ids=["inputs", "width", "deeper", "shallower", "no bias", "extra", "other layer", "empty"],
)
def test_other_layers_than_the_cards_are_a_weights_error(
    tmp_path: Path, state: dict[str, torch.Tensor], said: str
) -> None:
    with pytest.raises(WeightsError, match=r"head\.pth does not hold the layers.*" + said):
        read_mlp(saved(tmp_path / "head.pth", state), 4, [3, 1])


class RunsCode:
    """What a hostile pickle does: whoever loads it makes a directory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    trace = tmp_path / "it ran"
    hostile = saved(tmp_path / "hostile.pth", {**GOOD, "layers.6.weight": RunsCode(trace)})
    with pytest.raises(WeightsError, match=r"hostile\.pth is not a torch checkpoint of tensors"):
        read_mlp(hostile, 4, [3, 1])
    assert not trace.exists()
    torch.load(hostile.path, weights_only=False)
    assert trace.exists()


def broken(tmp_path: Path) -> dict[str, bytes]:
    torch.save(GOOD, tmp_path / "good.pth")
    whole = (tmp_path / "good.pth").read_bytes()
    old = pickle.dumps(GOOD)
    return {
        "empty": b"",
        "text": b"<html>",
        "half": whole[: len(whole) // 2],
        "pickle": old,
        "zeros": bytes(99),
    }


@pytest.mark.parametrize("kind", ["empty", "text", "half", "pickle", "zeros"])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_damaged_file_is_a_weights_error(tmp_path: Path, kind: str, suffix: str) -> None:
    path = tmp_path / f"head.{suffix}"
    path.write_bytes(broken(tmp_path)[kind])
    with pytest.raises(WeightsError, match=rf"head\.{suffix} is not a"):
        read_mlp(WeightsFile(path, ""), 4, [3, 1])


@pytest.mark.parametrize("content", [[torch.ones(1)], {"state_dict": GOOD}, {"epoch": 3}, torch.ones(2)])
def test_a_checkpoint_of_other_things_is_a_weights_error(tmp_path: Path, content: object) -> None:
    with pytest.raises(WeightsError, match=r"it holds a (list|dict|Tensor) of other things"):
        read_mlp(saved(tmp_path / "head.pth", content), 4, [3, 1])


def test_random_weights_follow_from_the_seed() -> None:
    first, again, other = (
        read_mlp(WeightsFile(None, f"random:{seed}"), 64, [32, "relu", 1]) for seed in (1, 1, 2)
    )
    for one, same, different in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(one.kernel, same.kernel)
        np.testing.assert_array_equal(one.bias, same.bias)
        assert not np.allclose(one.kernel, different.kernel)
    assert [layer.kernel.shape for layer in first] == [(64, 32), (32, 1)]
