"""LAION's archives: what is in them gives the original's scores, and damage is a `WeightsError`."""

from __future__ import annotations

import io
import itertools
import zipfile
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nsfw_spark.errors import WeightsError
from nsfw_spark.laion import LaionNetwork, read_head, read_vocabularies

DATA = Path(__file__).parents[1] / "data"
ARCHIVES = Path(str(resources.files("nsfw_spark") / "models" / "laion"))
L14 = ARCHIVES / "clip_autokeras_binary_nsfw.zip"
B32 = ARCHIVES / "clip_autokeras_nsfw_b32.zip"
INDEX, NUMBERS = "variables/variables.index", "variables/variables.data-00000-of-00001"
GRAPH = "saved_model.pb"

with zipfile.ZipFile(B32) as _archive:
    B32_MEMBERS = {
        part: next(_archive.read(name) for name in _archive.namelist() if name.endswith(part))
        for part in (INDEX, NUMBERS, GRAPH)
    }
B32_BYTES = B32.read_bytes()


def archive(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as written:
        for name, content in members.items():
            written.writestr(name, content)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place for one archive after another."""
    return tmp_path_factory.mktemp("laion") / "head.zip"


# What the vocabulary lookup, which is left out, moves at most: see docs/heads.md.
@pytest.mark.parametrize(("path", "golden", "tolerance"), [(L14, "l14", 5e-5), (B32, "b32", 2e-4)])
def test_scores_are_those_of_the_original_model(path: Path, golden: str, tolerance: float) -> None:
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
    network = LaionNetwork(read_head(path), read_vocabularies(path))
    batches = [embeddings[at : at + batch_size] for at in range(0, len(embeddings), batch_size)]
    scores = np.concatenate([network.scores(batch) for batch in batches])
    assert np.ptp(expected) > 0.9, "scores all over (0, 1) are compared"
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("path", "golden", "least"), [(L14, "l14", 0.05), (B32, "b32", 0.1)])
def test_of_float16_embeddings_plain_scores_are_others(path: Path, golden: str, least: float) -> None:
    """As of every port. Else the test above would show nothing."""
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
)
def test_the_vocabularies_give_tensorflows_indices(path: Path, golden: str, sizes: dict[int, int]) -> None:
    vocabularies = read_vocabularies(path)
    assert {column: len(vocabulary) for column, vocabulary in vocabularies.items()} == sizes
    for vocabulary in vocabularies.values():
        assert list(vocabulary.values()) == list(range(1, len(vocabulary) + 1))
    with np.load(DATA / f"golden-{golden}-f16grid.npz") as vectors:
        embeddings, expected = vectors["embeddings"], vectors["token_index"]
    found = [
        [vocabulary.get(f"{row[column]:f}", 0) for column, vocabulary in vocabularies.items()]
        for row in embeddings
    ]
    assert found == expected.tolist()
    assert (expected > 0).mean() > 0.5, "most are found"


@pytest.mark.parametrize(
    "graph",
    [None, b"", b"garbage", B32_MEMBERS[GRAPH][:60_000], bytes(17 << 20)],
    ids=["absent", "empty", "garbage", "cut", "too-large"],
)
def test_an_archive_without_its_vocabularies_is_a_weights_error(file: Path, graph: bytes | None) -> None:
    file.write_bytes(archive({**B32_MEMBERS, **({GRAPH: graph} if graph is not None else {})}))
    if graph is None:
        file.write_bytes(archive({name: B32_MEMBERS[name] for name in (INDEX, NUMBERS)}))
    assert read_head(file).layers, "the rest is whole"
    with pytest.raises(WeightsError, match=r"head\.zip is not one of LAION's"):
        read_vocabularies(file)


@pytest.mark.parametrize(
    ("path", "widths"), [(L14, [768, 64, 512, 256, 1]), (B32, [512, 32, 32, 1])], ids=["l14", "b32"]
)
def test_the_layers_come_in_their_order(path: Path, widths: list[int]) -> None:
    head = read_head(path)
    assert head.mean.shape == head.variance.shape == (widths[0],)
    assert [kernel.shape for kernel, _ in head.layers] == list(itertools.pairwise(widths))
    assert [bias.shape for _, bias in head.layers] == [(width,) for width in widths[1:]]
    assert head.variance.min() > 0


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"garbage",
        b"PK\x03\x04 garbage",
        B32_BYTES[: len(B32_BYTES) // 2],
        B32_BYTES[:-30],
        archive({"readme.txt": b"another archive"}),
        archive({INDEX: B32_MEMBERS[INDEX]}),
        archive({INDEX: b"", NUMBERS: b""}),
        archive({**B32_MEMBERS, NUMBERS: B32_MEMBERS[NUMBERS][:1000]}),
        archive({**B32_MEMBERS, INDEX: b"\x80" * 100 + B32_MEMBERS[INDEX][-48:]}),
        archive({**B32_MEMBERS, INDEX: bytes(17 << 20)}),
    ],
    ids=[
        "empty",
        "garbage",
        "signature",
        "half",
        "no-directory",
        "other",
        "no-numbers",
        "hollow",
        "short",
        "index",
        "too-large",
    ],
)
def test_what_is_no_such_archive_is_a_weights_error(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    with pytest.raises(WeightsError, match=r"head\.zip"):
        read_head(file)


def test_an_absent_archive_is_a_weights_error(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"absent\.zip"):
        read_head(tmp_path / "absent.zip")


def damaged(content: bytes, damage: list[tuple[int, int]]) -> bytes:
    """Return the content with some bytes flipped: (place, what is flipped in it)."""
    mutable = bytearray(content)
    for place, flip in damage:
        mutable[place % len(mutable)] ^= flip
    return bytes(mutable)


DAMAGE = st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(1, 255)), min_size=1, max_size=4)


def read_damaged(file: Path, content: bytes) -> None:
    """Read an archive that may be whole enough; anything but a `WeightsError` fails the test."""
    file.write_bytes(content)
    try:
        head = read_head(file)
    except WeightsError:
        return
    assert head.layers


@settings(max_examples=400, deadline=None)
@given(damage=DAMAGE)
def test_a_damaged_index_raises_only_weights_errors(file: Path, damage: list[tuple[int, int]]) -> None:
    index = damaged(B32_MEMBERS[INDEX], damage)
    read_damaged(file, archive({**B32_MEMBERS, INDEX: index}))


@settings(max_examples=400, deadline=None)
@given(damage=DAMAGE, directory=st.booleans())
def test_a_damaged_zip_raises_only_weights_errors(
    file: Path, damage: list[tuple[int, int]], *, directory: bool
) -> None:
    tail = 1000 if directory else len(B32_BYTES)  # a zip's directory is at its end
    read_damaged(file, B32_BYTES[:-tail] + damaged(B32_BYTES[-tail:], damage))


def test_a_damaged_compressed_member_is_a_weights_error(file: Path) -> None:
    start = B32_BYTES.index(NUMBERS.encode()) + len(NUMBERS)  # of the deflated bytes
    invalid_block = b"\xff"  # deflate knows no block of type 3
    file.write_bytes(B32_BYTES[:start] + invalid_block + B32_BYTES[start + 1 :])
    with pytest.raises(WeightsError, match=r"head\.zip"):
        read_head(file)


def test_a_layer_without_its_bias_is_a_weights_error(file: Path) -> None:
    index = B32_MEMBERS[INDEX].replace(b"bias", b"BIAS")
    assert index != B32_MEMBERS[INDEX]
    file.write_bytes(archive({**B32_MEMBERS, INDEX: index}))
    with pytest.raises(WeightsError, match="bias"):
        read_head(file)


@settings(max_examples=60, deadline=None)
@given(damage=DAMAGE)
def test_a_damaged_graph_raises_only_weights_errors(file: Path, damage: list[tuple[int, int]]) -> None:
    file.write_bytes(archive({**B32_MEMBERS, GRAPH: damaged(B32_MEMBERS[GRAPH][:80_000], damage)}))
    try:
        assert len(read_vocabularies(file)) == 3
    except WeightsError:
        return


def varint(number: int) -> bytes:
    rest, low = divmod(number, 128)
    return bytes([low | 128]) + varint(rest) if rest else bytes([low])


def test_an_index_that_names_one_block_over_and_over_is_a_weights_error(file: Path) -> None:
    """Few bytes, many entries: five thousand of the same block of one entry without a value."""
    restarts = bytes(4) + (1).to_bytes(4, "little")
    block = bytes([0, 1, 0]) + b"a" + restarts
    places = (bytes([0, 1, 2]) + b"k" + varint(0) + varint(len(block))) * 5000 + restarts
    handles = varint(0) * 2 + varint(len(block) + 5) + varint(len(places))
    table = block + bytes(5) + places + bytes(5) + handles.ljust(40, b"\0") + B32_MEMBERS[INDEX][-8:]
    file.write_bytes(archive({**B32_MEMBERS, INDEX: table}))
    with pytest.raises(WeightsError, match="more than 4096 entries"):
        read_head(file)


@pytest.mark.parametrize("flag", [6, 8], ids=["encrypted", "compression"])
def test_a_zip_of_another_kind_is_a_weights_error(file: Path, flag: int) -> None:
    """Byte 6 of a local header holds flags, bit 0 encryption; byte 8 the compression; so in the directory."""
    content = bytearray(archive(B32_MEMBERS))
    content[flag] ^= 1
    content[content.index(b"PK\x01\x02") + flag + 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(WeightsError, match=r"head\.zip"):
        read_head(file)
