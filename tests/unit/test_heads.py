"""Heads: embeddings, class probabilities or a perceptron's file in, scores out, one head or several."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from nsfw_spark.cards import load_card
from nsfw_spark.encoders import Encoded, unit_length
from nsfw_spark.errors import ConfigError, WeightsError
from nsfw_spark.heads import ClassHead, DenseHead, load_heads
from nsfw_spark.laion import Vectors
from nsfw_spark.perceptron import LinearLayer, MlpNetwork, Widths, read_mlp
from nsfw_spark.weights import WeightsFile, locate_weights
from tests.fakes import card, perceptron

GOLDEN = Path(__file__).parents[1] / "data" / "golden-l14-f16grid.npz"


def units(number: int, dimension: int, seed: int = 0) -> Vectors:
    return unit_length(np.random.default_rng(seed).standard_normal((number, dimension), dtype=np.float32))


def test_scores_of_a_batch_are_those_of_each_row() -> None:
    head = load_heads(card(), locate_weights(card()))
    embeddings = units(33, 768)
    together = head.score(Encoded(embeddings)).nsfw_scores
    alone = [head.score(Encoded(row[None])).nsfw_scores.item() for row in embeddings]
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-6)


def test_a_class_head_picks_its_class_and_hands_on_all() -> None:
    probabilities = np.float32([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]])
    classes = {"library": "classes", "weights": None, "classes": ["a", "b", "c"]}
    for name, expected in [("a", [0.7, 0.1]), ("c", [0.1, 0.6])]:
        head = load_heads(card(head={**classes, "score": f"probability:{name}"}), {})
        assert isinstance(head, ClassHead)
        scored = head.score(Encoded(None, probabilities))
        np.testing.assert_array_equal(scored.nsfw_scores, np.float32(expected))
        np.testing.assert_array_equal(scored.class_scores, probabilities)


def test_the_cards_encoding_decides_what_the_head_computes() -> None:
    with np.load(GOLDEN) as vectors:
        encoded, expected = Encoded(vectors["embeddings"].astype(np.float32)), vectors["scores"]
    exact, plain = card(head={"head_encoding": "exact"}), card(head={"head_encoding": "plain"})
    assert card() == plain, "plain is the default"
    scores = [load_heads(each, locate_weights(each)).score(encoded).nsfw_scores for each in (exact, plain)]
    np.testing.assert_allclose(scores[0], expected, rtol=0, atol=1e-6)
    assert np.abs(scores[1] - expected).max() > 0.05


def test_several_heads_score_one_embedding_in_the_cards_order() -> None:
    several = card(other_heads={"b": perceptron(1, [4, 1], "linear"), "a": perceptron(2, [1], "clamp")})
    encoded = Encoded(units(9, 768))
    scored = load_heads(several, locate_weights(several)).score(encoded)
    assert scored.other_scores is not None
    assert scored.other_scores.shape == (9, 2)
    assert scored.other_scores.dtype == np.float32
    assert scored.other_scores[:, 0].min() < 0, "linear"
    assert scored.other_scores[:, 1].min() == 0, "clamp"
    alone = load_heads(card(), locate_weights(card())).score(encoded)
    np.testing.assert_array_equal(scored.nsfw_scores, alone.nsfw_scores)
    assert alone.other_scores is None


def test_a_classifiers_embedding_serves_other_heads_too() -> None:
    classes = {"library": "classes", "weights": None, "classes": ["a", "b"], "score": "probability:b"}
    both = card(
        encoder={"embedding_dim": 2}, head=classes, other_heads={"size": perceptron(1, [1], "linear")}
    )
    encoded = Encoded(np.float32([[1, 0], [0, 1]]), np.float32([[0.9, 0.1], [0.3, 0.7]]))
    scored = load_heads(both, locate_weights(both)).score(encoded)
    np.testing.assert_array_equal(scored.nsfw_scores, np.float32([0.1, 0.7]))
    np.testing.assert_array_equal(scored.class_scores, encoded.probabilities)
    assert scored.other_scores is not None
    assert scored.other_scores[0] != scored.other_scores[1]


def test_levels_are_summed_from_each_level_up() -> None:
    """By hand, with numbers that binary fractions hold; the first level, which is safe, keeps its own."""
    probabilities = np.float32([[0.5, 0.25, 0.125, 0.125], [0, 0, 0, 1]])
    classes = {"library": "classes", "weights": None, "classes": ["neutral", "low", "medium", "high"]}
    expected = [[0.5, 0.5, 0.25, 0.125], [0, 1, 1, 1]]
    for name, index in [("low", 1), ("medium", 2), ("high", 3)]:
        head = load_heads(card(head={**classes, "score": f"cumulative:{name}"}), {})
        scored = head.score(Encoded(None, probabilities))
        np.testing.assert_array_equal(scored.class_scores, np.float32(expected))
        np.testing.assert_array_equal(scored.nsfw_scores, np.float32(expected)[:, index])


def test_sums_of_levels_are_scores_however_they_round() -> None:
    rows = np.random.default_rng(0).dirichlet([0.1] * 9, 10_000).astype(np.float32)
    assert (rows[:, 1:].sum(axis=1) > 1).any(), "nothing rounds up: nothing is tested"
    classes = {"library": "classes", "weights": None, "classes": [str(i) for i in range(9)]}
    head = load_heads(card(head={**classes, "score": "cumulative:1"}), {})
    scores = head.score(Encoded(None, rows)).nsfw_scores
    assert scores.min() >= 0
    assert scores.max() <= 1
    assert np.isnan(head.score(Encoded(None, rows * np.float32(np.nan))).nsfw_scores).all()


@pytest.mark.parametrize("name", ["laion-vit-b-32", "laion-vit-l-14"])
def test_the_heads_of_the_built_in_cards_load(name: str) -> None:
    built_in = load_card(name)
    assert isinstance(load_heads(built_in, locate_weights(built_in, parts=["head"])), DenseHead)


def test_the_h14_card_loads_a_head_of_its_shape_and_no_other(tmp_path: Path) -> None:
    built_in = load_card("laion-vit-h-14")
    widths = [width for width in built_in.head.layers if width != "relu"]
    state = {}
    for number, (inputs, outputs) in enumerate(zip([1024, *widths[:-1]], widths, strict=True)):
        state[f"layers.{number}.weight"] = torch.zeros(outputs, inputs)
        state[f"layers.{number}.bias"] = torch.full((outputs,), 0.25)
    torch.save(state, tmp_path / "h14_nsfw.pth")
    head = load_heads(built_in, {"head": WeightsFile(tmp_path / "h14_nsfw.pth", "")})
    assert head.score(Encoded(np.ones((2, 1024), np.float32))).nsfw_scores.tolist() == [0.25, 0.25]
    del state["layers.6.bias"]
    torch.save(state, tmp_path / "h14_nsfw.pth")
    with pytest.raises(WeightsError, match="does not hold the layers that the model card names"):
        load_heads(built_in, {"head": WeightsFile(tmp_path / "h14_nsfw.pth", "")})


def test_a_head_for_longer_embeddings_is_a_config_error() -> None:
    shorter = card(encoder={"embedding_dim": 512})
    with pytest.raises(
        ConfigError, match=r"head expects embeddings of 768 numbers, encoder\.embedding_dim is 512"
    ):
        load_heads(shorter, locate_weights(shorter))


def test_another_head_that_does_not_fit_is_named() -> None:
    b32 = load_card("laion-vit-b-32").head.model_dump()
    wrong = card(other_heads={"second": b32})
    with pytest.raises(ConfigError, match=r"other_heads\.second expects embeddings of 512 numbers"):
        load_heads(wrong, locate_weights(wrong))


@pytest.mark.parametrize("weights", [{}, {"head": WeightsFile(None, "random:1")}])
def test_a_laion_head_without_a_file_is_a_config_error(weights: dict[str, WeightsFile]) -> None:
    with pytest.raises(ConfigError, match="needs the file of its weights"):
        load_heads(card(), weights)


def test_a_damaged_head_is_a_weights_error(tmp_path: Path) -> None:
    (tmp_path / "head.safetensors").write_bytes(b"damaged")
    with pytest.raises(WeightsError, match=r"head\.safetensors"):
        load_heads(card(), {"head": WeightsFile(tmp_path / "head.safetensors", "")})


class H14Detector(nn.Sequential):
    """LAION's module, as h14_nsfw_model.py at commit d6bb8fe puts it together."""

    def __init__(self) -> None:
        hidden = [1024, 2048, 1024, 256, 128]
        layers: list[nn.Module] = []
        for inputs, outputs in zip([1024, *hidden[:-1]], hidden, strict=True):
            layers += [nn.Linear(inputs, outputs), nn.ReLU(), nn.Dropout(0.2)]
        super().__init__(*layers, nn.Linear(128, 16), nn.Linear(16, 1))
        for layer in self:
            if isinstance(layer, nn.Linear):  # torch's own let all outputs be nearly the same
                nn.init.kaiming_normal_(layer.weight)


class AestheticPredictor(nn.Sequential):
    """The module of simple_inference.py in improved-aesthetic-predictor at commit 6934dd8."""

    def __init__(self) -> None:
        dropouts = [nn.Dropout(0.2), nn.Dropout(0.2), nn.Dropout(0.1)]
        linears = [nn.Linear(768, 1024), nn.Linear(1024, 128), nn.Linear(128, 64)]
        pairs = [each for pair in zip(linears, dropouts, strict=True) for each in pair]
        super().__init__(*pairs, nn.Linear(64, 16), nn.Linear(16, 1))


def published(path: Path, module: nn.Sequential) -> WeightsFile:
    """Save a module's seeded weights under the names that the published file has: `layers.0.weight`, …."""
    torch.save({f"layers.{name}": tensor for name, tensor in module.state_dict().items()}, path)
    return WeightsFile(path, "")


def by_torch(module: nn.Sequential, embeddings: Vectors) -> Vectors:
    with torch.inference_mode():
        return np.asarray(module.eval()(torch.from_numpy(embeddings))[:, 0])


def spread_out(module: nn.Sequential, embeddings: Vectors) -> None:
    """Change the last layer so that the outputs lie around 0.5, some of them below 0 and some above 1."""
    outputs = by_torch(module, embeddings)
    last, factor = module[-1], 0.5 / float(outputs.std())
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.weight *= factor
        last.bias.copy_((last.bias - float(outputs.mean())) * factor + 0.5)


def test_the_h14_head_is_laions_module(tmp_path: Path) -> None:
    torch.manual_seed(14)
    module, card, embeddings = H14Detector(), load_card("laion-vit-h-14"), units(64, 1024)
    spread_out(module, embeddings)
    outputs = by_torch(module, embeddings)
    assert outputs.min() < -0.1
    assert outputs.max() > 1.1
    layers = read_mlp(published(tmp_path / "h14_nsfw.pth", module), 1024, card.head.layers)
    assert [layer.has_relu for layer in layers] == [True] * 5 + [False] * 2
    assert card.head.score == "clamp"
    scores = MlpNetwork(layers, "clamp").scores(embeddings)
    np.testing.assert_allclose(scores, outputs.clip(0, 1), rtol=0, atol=1e-5)
    assert scores.dtype == np.float32


def test_the_aesthetic_head_is_its_authors_module(tmp_path: Path) -> None:
    torch.manual_seed(5)
    module, card = AestheticPredictor(), load_card("aesthetic-vit-l-14")
    head, embeddings = card.other_heads["aesthetic"], units(32, 768)
    layers = read_mlp(published(tmp_path / "linearMSE.pth", module), 768, head.layers)
    assert head.score == "linear"
    scores = MlpNetwork(layers, "linear").scores(embeddings)
    assert np.ptp(scores) > 1e-3
    np.testing.assert_allclose(scores, by_torch(module, embeddings), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("output", "expected"),
    [("sigmoid", [0.119203, 0.5, 0.880797]), ("clamp", [0, 0, 1]), ("linear", [-2, 0, 2])],
)
def test_an_output_becomes_a_score(
    output: Literal["sigmoid", "clamp", "linear"], expected: list[float]
) -> None:
    layer = LinearLayer(np.float32([[2]]), np.float32([0]), has_relu=False)
    scores = MlpNetwork([layer], output).scores(np.float32([[-1], [0], [1], [np.nan]]))
    np.testing.assert_allclose(scores, [*expected, np.nan], atol=1e-6)


def test_a_relu_stands_where_the_card_says() -> None:
    halves = LinearLayer(np.float32([[1, -1]]), np.float32([0, 0]), has_relu=True)
    total = LinearLayer(np.float32([[1], [1]]), np.float32([-1]), has_relu=False)
    scores = MlpNetwork([halves, total], "linear").scores(np.float32([[-3], [0], [5]]))
    assert scores.tolist() == [2, -1, 4]


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
    """A hostile pickle: loading it makes a directory."""

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
