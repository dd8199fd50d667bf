"""LAION's archives: the numbers in them give the original's scores, and damage is a `WeightsError`."""

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

from nsfw_spark.encoders import Encoded
from nsfw_spark.errors import WeightsError
from nsfw_spark.heads import DenseHead
from nsfw_spark.laion import read_head

DATA = Path(__file__).parents[1] / "data"
ARCHIVES = Path(str(resources.files("nsfw_spark") / "models" / "laion"))
L14 = ARCHIVES / "clip_autokeras_binary_nsfw.zip"
B32 = ARCHIVES / "clip_autokeras_nsfw_b32.zip"
INDEX, NUMBERS = "variables/variables.index", "variables/variables.data-00000-of-00001"

with zipfile.ZipFile(B32) as _archive:
    B32_MEMBERS = {
        part: next(_archive.read(name) for name in _archive.namelist() if name.endswith(part))
        for part in (INDEX, NUMBERS)
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


# What the vocabulary lookup, which is left out, moves at most: see `DenseHead`.
@pytest.mark.parametrize(("path", "golden", "tolerance"), [(L14, "l14", 5e-5), (B32, "b32", 2e-4)])
def test_scores_are_those_of_the_original_model(path: Path, golden: str, tolerance: float) -> None:
    with np.load(DATA / f"golden-{golden}.npz") as vectors:
        embeddings, expected = vectors["embeddings"], vectors["scores"]
    scores = DenseHead(read_head(path)).score(Encoded(embeddings)).nsfw_scores
    assert scores.dtype == np.float32
    assert np.ptp(expected) > 0.9, "scores all over (0, 1) are compared"
    np.testing.assert_allclose(scores, expected, rtol=0, atol=tolerance)


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


@pytest.mark.parametrize("flag", [6, 8], ids=["encrypted", "compression"])
def test_a_zip_of_another_kind_is_a_weights_error(file: Path, flag: int) -> None:
    """Byte 6 of a local header holds flags, bit 0 encryption; byte 8 the compression; so in the directory."""
    content = bytearray(archive(B32_MEMBERS))
    content[flag] ^= 1
    content[content.index(b"PK\x01\x02") + flag + 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(WeightsError, match=r"head\.zip"):
        read_head(file)
