"""Dense networks: the numbers that the authors' own code gives, in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from torch import nn

from nsfw_spark.cards import load_card
from nsfw_spark.encoders import unit_length
from nsfw_spark.heads import LinearLayer, MlpNetwork, read_mlp
from nsfw_spark.laion import LaionHead, LaionNetwork, Vectors, _as_tensorflow
from nsfw_spark.weights import WeightsFile

# (x - mean) / sqrt(variance), then |x0| + 2 |x1| by way of two ReLUs each, then a sigmoid of 3 less.
BY_HAND = LaionHead(
    mean=np.float32([1, 2]),
    variance=np.float32([4, 9]),
    layers=(
        (np.float32([[1, -1, 0, 0], [0, 0, 1, -1]]), np.float32([0, 0, 0, 0])),
        (np.float32([[1], [1], [2], [2]]), np.float32([-3])),
    ),
)


def units(number: int, dimension: int, seed: int = 0) -> Vectors:
    return unit_length(np.random.default_rng(seed).standard_normal((number, dimension), dtype=np.float32))


def test_laions_network_normalises_then_layers_then_sigmoid() -> None:
    # Normalised: (0, 0), (1, -1), (-2, 2).
    scores = LaionNetwork(BY_HAND).scores(np.float32([[1, 2], [3, -1], [-3, 8]]))
    np.testing.assert_allclose(scores, 1 / (1 + np.exp([3.0, 0.0, -3.0])), rtol=1e-6)
    assert scores.dtype == np.float32


def test_the_last_layer_has_no_relu() -> None:
    assert LaionNetwork(BY_HAND).scores(np.float32([[1, 2]])).item() < 0.5


def test_the_embeddings_are_not_changed() -> None:
    embeddings = np.float32([[1, 2], [3, -1]])
    for vocabularies in (None, {0: {"1.000000": 1}}):
        LaionNetwork(BY_HAND, vocabularies).scores(embeddings)
    np.testing.assert_array_equal(embeddings, [[1, 2], [3, -1]])


@pytest.mark.parametrize("scale", [1e3, 1e6, 1e30])
def test_huge_logits_saturate_without_a_warning(scale: float) -> None:
    flipped = LaionHead(
        BY_HAND.mean, BY_HAND.variance, (BY_HAND.layers[0], (-BY_HAND.layers[1][0], np.float32([0])))
    )
    far = np.float32([[scale, 0]])
    assert LaionNetwork(BY_HAND).scores(far).item() == 1
    assert LaionNetwork(flipped).scores(far).item() == 0


@pytest.mark.parametrize("vocabularies", [None, {1: {"5.000000": 2}}], ids=["plain", "exact"])
def test_an_embedding_that_is_not_a_number_gives_no_score(vocabularies: dict[int, dict[str, int]]) -> None:
    """To AutoKeras NaN is 0, or absent from the vocabulary: an image would get a score for nothing."""
    scores = LaionNetwork(BY_HAND, vocabularies).scores(np.float32([[np.nan, 0], [0, np.nan], [1, 2]]))
    assert np.isnan(scores).tolist() == [True, True, False]


@pytest.mark.parametrize(
    ("number", "index"),
    [(0.5, 1), (0.5000004, 1), (-0.25, 2), (1 / 128, 3), (0.5000006, 0), (0.25, 0), (-0.0, 0), (7.0, 0)],
)
def test_exact_looks_the_printed_number_up(number: float, index: int) -> None:
    """0 is what is absent; 1/128 lies half-way between two texts, and goes to the even one."""
    vocabularies = {1: {"0.500000": 1, "-0.250000": 2, "0.007812": 3}}
    expected = LaionNetwork(BY_HAND).scores(np.float32([[1, index]]))
    scores = LaionNetwork(BY_HAND, vocabularies).scores(np.float32([[1, number]]))
    np.testing.assert_allclose(scores, expected, rtol=1e-6)


def test_products_are_added_in_blocks_and_rounded_each_time() -> None:
    """2^24 + 1 is no float32: a 1 is lost beside it, but not those of another block."""
    row = np.ones((1, 300), np.float32)
    kernel = np.ones((300, 2), np.float32)
    row[0, 0] = 2**24
    assert _as_tensorflow(row, kernel).tolist() == [[2**24 + 44] * 2]
    row[0, 0], kernel[0] = 2**12 + 1, 2**12 + 1  # its square needs 25 bits: it is rounded with the sum
    kernel[1] = -1
    kernel[2:] = 0
    assert _as_tensorflow(row, kernel).tolist() == [[(2**12 + 1) ** 2 - 1] * 2]


@pytest.mark.parametrize("num_rows", [0, 1, 64, 65, 200])
def test_the_product_of_a_row_does_not_depend_on_the_others(num_rows: int) -> None:
    rows = np.random.default_rng(1).standard_normal((200, 600), np.float32)
    kernel = np.random.default_rng(2).standard_normal((600, 3), np.float32)
    whole = _as_tensorflow(rows, kernel)
    np.testing.assert_array_equal(_as_tensorflow(rows[:num_rows], kernel), whole[:num_rows])
    np.testing.assert_allclose(whole, rows.astype(np.float64) @ kernel, rtol=0, atol=1e-4)


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
