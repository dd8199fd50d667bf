"""LAION's heads: their files give the original TensorFlow model's scores, and wrong files are refused."""

from __future__ import annotations

import itertools
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save, save_file

from nsfw_spark.cards import built_in_models, load_card
from nsfw_spark.errors import DeviceError, WeightsError
from nsfw_spark.heads import load_heads
from nsfw_spark.laion import (
    _GOLDEN,
    TOLERANCE,
    LaionHead,
    LaionNetwork,
    Vectors,
    _as_tensorflow,
    check_golden_scores,
    read_head,
)
from nsfw_spark.model_card import ModelCard
from nsfw_spark.weights import locate_weights
from tests.conftest import LAION_ARCHIVES, LAION_HEADS

DATA = Path(__file__).parents[1] / "data"
L14 = LAION_HEADS / "clip_autokeras_binary_nsfw.safetensors"
B32 = LAION_HEADS / "clip_autokeras_nsfw_b32.safetensors"
B32_BYTES, B32_TENSORS = B32.read_bytes(), load_file(B32)

# (x - mean) / sqrt(variance), then |x0| + 2 |x1| by way of two ReLUs each, then a sigmoid of 3 less.
BY_HAND = LaionHead(
    mean=np.float32([1, 2]),
    variance=np.float32([4, 9]),
    layers=(
        (np.float32([[1, -1, 0, 0], [0, 0, 1, -1]]), np.float32([0, 0, 0, 0])),
        (np.float32([[1], [1], [2], [2]]), np.float32([-3])),
    ),
    vocabularies={1: np.float16([0.5, -0.25, 1 / 128, 5])},
)


def test_the_network_normalises_then_layers_then_sigmoid() -> None:
    # Normalised: (0, 0), (1, -1), (-2, 2).
    scores = LaionNetwork(BY_HAND).scores(np.float32([[1, 2], [3, -1], [-3, 8]]))
    np.testing.assert_allclose(scores, 1 / (1 + np.exp([3.0, 0.0, -3.0])), rtol=1e-6)
    assert scores.dtype == np.float32


def test_the_last_layer_has_no_relu() -> None:
    assert LaionNetwork(BY_HAND).scores(np.float32([[1, 2]])).item() < 0.5


def test_the_embeddings_are_not_changed() -> None:
    embeddings = np.float32([[1, 2], [3, -1]])
    for is_exact in (False, True):
        LaionNetwork(BY_HAND, is_exact=is_exact).scores(embeddings)
    np.testing.assert_array_equal(embeddings, [[1, 2], [3, -1]])


@pytest.mark.parametrize("scale", [1e3, 1e6, 1e30])
def test_huge_logits_saturate_without_a_warning(scale: float) -> None:
    flipped = LaionHead(
        BY_HAND.mean, BY_HAND.variance, (BY_HAND.layers[0], (-BY_HAND.layers[1][0], np.float32([0]))), {}
    )
    far = np.float32([[scale, 0]])
    assert LaionNetwork(BY_HAND).scores(far).item() == 1
    assert LaionNetwork(flipped).scores(far).item() == 0


@pytest.mark.parametrize("is_exact", [False, True], ids=["plain", "exact"])
def test_an_embedding_that_is_not_a_number_gives_no_score(*, is_exact: bool) -> None:
    """AutoKeras reads NaN as 0, or as absent from the vocabulary, and so gives such an image a score."""
    scores = LaionNetwork(BY_HAND, is_exact=is_exact).scores(np.float32([[np.nan, 0], [0, np.nan], [1, 2]]))
    assert np.isnan(scores).tolist() == [True, True, False]


@pytest.mark.parametrize(
    ("number", "index"),
    [(0.5, 1), (0.5000004, 1), (-0.25, 2), (1 / 128, 3), (0.5000006, 0), (0.25, 0), (-0.0, 0), (7.0, 0)],
)
def test_exact_looks_the_printed_number_up(number: float, index: int) -> None:
    """0 means absent; 1/128 lies half-way between two texts, and becomes the even one."""
    expected = LaionNetwork(BY_HAND).scores(np.float32([[1, index]]))
    scores = LaionNetwork(BY_HAND, is_exact=True).scores(np.float32([[1, number]]))
    np.testing.assert_allclose(scores, expected, rtol=1e-6)


def test_products_are_added_in_blocks_and_rounded_each_time() -> None:
    """2^24 + 1 is no float32: a 1 is lost beside 2^24, but not the sum of another block."""
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


# The largest effect of the vocabularies, which `plain` leaves out: docs/heads.md.
@pytest.mark.parametrize(("path", "golden", "tolerance"), [(L14, "l14", 5e-5), (B32, "b32", 2e-4)])
def test_plain_scores_are_those_of_the_original_model(path: Path, golden: str, tolerance: float) -> None:
    with np.load(DATA / f"golden-{golden}.npz") as vectors:
        embeddings, expected = vectors["embeddings"], vectors["scores"]
    scores = LaionNetwork(read_head(path)).scores(embeddings)
    assert scores.dtype == np.float32
    assert np.ptp(expected) > 0.9, "scores all over (0, 1) are compared"
    np.testing.assert_allclose(scores, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("batch_size", [1, 7, 64, 256])
@pytest.mark.parametrize(
    ("path", "golden"),
    [(L14, "l14"), (L14, "l14-f16grid"), (B32, "b32"), (B32, "b32-f16grid")],
    ids=["l14", "l14 float16", "b32", "b32 float16"],
)
def test_exact_scores_are_the_original_models_to_a_millionth(
    path: Path, golden: str, batch_size: int
) -> None:
    with np.load(DATA / f"golden-{golden}.npz") as vectors:
        embeddings, expected = vectors["embeddings"].astype(np.float32), vectors["scores"]
    network = LaionNetwork(read_head(path), is_exact=True)
    batches = [embeddings[at : at + batch_size] for at in range(0, len(embeddings), batch_size)]
    scores = np.concatenate([network.scores(batch) for batch in batches])
    assert np.ptp(expected) > 0.9, "scores all over (0, 1) are compared"
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("path", "golden", "least"), [(L14, "l14", 0.05), (B32, "b32", 0.1)])
def test_plain_scores_of_float16_embeddings_differ_as_in_every_port(
    path: Path, golden: str, least: float
) -> None:
    """Otherwise the test above would show nothing."""
    with np.load(DATA / f"golden-{golden}-f16grid.npz") as vectors:
        embeddings, expected = vectors["embeddings"].astype(np.float32), vectors["scores"]
        of_the_port = vectors["scores_port"]
    scores = LaionNetwork(read_head(path)).scores(embeddings)
    np.testing.assert_allclose(scores, of_the_port, rtol=0, atol=2e-6)
    assert np.abs(scores - expected).max() > least


@pytest.mark.parametrize(
    ("path", "golden", "sizes"),
    [
        (L14, "l14", {180: 10425, 316: 2266, 413: 2190, 440: 2293, 644: 2241}),
        (B32, "b32", {92: 1566, 133: 747, 312: 745}),
    ],
    ids=["l14", "b32"],
)
def test_the_vocabularies_give_tensorflows_indices(path: Path, golden: str, sizes: dict[int, int]) -> None:
    vocabularies = read_head(path).vocabularies
    assert {column: len(numbers) for column, numbers in vocabularies.items()} == sizes
    indices = LaionNetwork(read_head(path), is_exact=True)._indices
    with np.load(DATA / f"golden-{golden}-f16grid.npz") as vectors:
        embeddings, expected = vectors["embeddings"], vectors["token_index"]
    found = [[indices[column].get(f"{row[column]:f}", 0) for column in sorted(indices)] for row in embeddings]
    assert found == expected.tolist()
    assert (expected > 0).mean() > 0.5, "most are found"


@pytest.mark.parametrize(
    ("path", "widths"), [(L14, [768, 64, 512, 256, 1]), (B32, [512, 32, 32, 1])], ids=["l14", "b32"]
)
def test_the_layers_come_in_their_order(path: Path, widths: list[int]) -> None:
    head = read_head(path)
    assert head.mean.shape == head.variance.shape == (widths[0],)
    assert [kernel.shape for kernel, _ in head.layers] == list(itertools.pairwise(widths))
    assert [bias.shape for _, bias in head.layers] == [(width,) for width in widths[1:]]
    assert head.variance.min() > 0


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A path for one file after another."""
    return tmp_path_factory.mktemp("laion") / "head.safetensors"


@pytest.mark.parametrize("archive", LAION_ARCHIVES, ids=lambda path: path.stem)
def test_the_error_for_laions_own_archive_names_the_tool(archive: Path) -> None:
    with pytest.raises(WeightsError, match=rf"python tools/convert_laion_heads\.py .*{archive.name}"):
        read_head(archive)


@pytest.mark.parametrize(
    "content",
    [b"", b"garbage", b"PK\x03\x04 garbage", B32_BYTES[: len(B32_BYTES) // 2], B32_BYTES[:-30], save({})],
    ids=["empty", "garbage", "signature", "half", "short", "hollow"],
)
def test_a_file_of_another_kind_is_a_weights_error(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    with pytest.raises(WeightsError, match=r"head\.safetensors is not a safetensors file of one of LAION's"):
        read_head(file)


def test_an_absent_file_is_a_weights_error(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"absent\.safetensors"):
        read_head(tmp_path / "absent.safetensors")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers.1.bias": None}, r"layers\.1\.bias"),
        ({"variance": None}, "variance"),
        ({"layers.2.kernel": None, "layers.2.bias": None}, "end in 32 outputs, expected 1"),
        ({"mean": np.zeros(511, np.float32)}, r"variance is float32 \(512,\), expected float32 \(511,\)"),
        ({"layers.0.kernel": np.zeros((512, 31), np.float32)}, r"\(512, 31\), expected float32 \(512, 32\)"),
        ({"layers.0.bias": np.zeros(32, np.float64)}, r"layers\.0\.bias is float64"),
        ({"vocabulary.512": np.zeros(1, np.float16)}, "column 512 of 512"),
        ({"vocabulary.-1": np.zeros(1, np.float16)}, "a vocabulary belongs to"),
        ({"vocabulary.x": np.zeros(1, np.float16)}, "invalid literal"),
    ],
    ids=["no bias", "no variance", "no last layer", "mean", "width", "type", "column", "negative", "text"],
)
def test_tensors_that_do_not_fit_are_a_weights_error(
    file: Path, changes: dict[str, npt.NDArray[Any] | None], message: str
) -> None:
    tensors = {name: array for name, array in (B32_TENSORS | changes).items() if array is not None}
    save_file(tensors, file)
    with pytest.raises(WeightsError, match=rf"head\.safetensors is not .*{message}"):
        read_head(file)


DAMAGE = st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(1, 255)), min_size=1, max_size=4)


@settings(max_examples=400, deadline=None)
@given(damage=DAMAGE, header=st.booleans())
def test_a_damaged_file_is_a_head_or_a_weights_error(
    file: Path, damage: list[tuple[int, int]], *, header: bool
) -> None:
    content = bytearray(B32_BYTES)
    for place, flip in damage:
        content[place % (1000 if header else len(content))] ^= flip
    file.write_bytes(content)
    try:
        head = read_head(file)
    except WeightsError:
        return
    assert head.layers


LAION = [name for name in built_in_models() if load_card(name).head.library == "laion"]


class Shifted:
    """A network whose scores are wrong by a little."""

    def __init__(self, scores: Vectors, shift: float) -> None:
        self._scores, self._shift = scores, np.float32(shift)

    def scores(self, embeddings: Vectors) -> Vectors:
        assert len(embeddings) == len(self._scores)
        return self._scores + self._shift


@pytest.mark.parametrize("encoding", ["plain", "exact"])
@pytest.mark.parametrize("name", LAION)
def test_the_heads_of_the_built_in_cards_give_their_golden_scores(name: str, encoding: str) -> None:
    content = load_card(name).model_dump()
    content["head"]["head_encoding"] = encoding
    content["other_heads"] = {}
    card = ModelCard.model_validate(content)
    files = locate_weights(card, parts=["head"])
    assert files["head"].sha256 in _GOLDEN, "its golden scores are not known: nothing would be compared"
    load_heads(card, files)


@pytest.mark.parametrize("sha256", _GOLDEN)
def test_other_scores_than_the_golden_ones_are_a_device_error(sha256: str) -> None:
    path = resources.files("nsfw_spark").joinpath("models/laion/golden.npz")
    with path.open("rb") as file, np.load(file) as golden:
        scores = golden[f"{_GOLDEN[sha256]}_scores"]
    assert np.ptp(scores) > 0.7, "scores all over (0, 1) are compared"
    check_golden_scores(Shifted(scores, TOLERANCE / 3), sha256)
    for shift in (3 * TOLERANCE, -3 * TOLERANCE, np.nan):
        with pytest.raises(DeviceError, match=r"gives \[.*expected \[.*numpy"):
            check_golden_scores(Shifted(scores, shift), sha256)


def test_an_unknown_file_has_no_golden_scores() -> None:
    check_golden_scores(Shifted(np.float32([9]), 0), "0" * 64)
