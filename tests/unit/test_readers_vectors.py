"""Readers of embeddings: each vector comes once, in order, as float32; a bad one has a problem in its row."""

from __future__ import annotations

import itertools
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nsfw_spark.errors import ImageError
from nsfw_spark.readers import VectorReader
from nsfw_spark.readers.parquet import RowColumns
from nsfw_spark.readers.storage import Storage
from nsfw_spark.readers.vectors import (
    BLOCK_ROWS,
    NpyReader,
    ParquetVectorReader,
    VectorColumnReader,
    metadata_paths,
)

D = 8
CAPTION = pa.field("caption", pa.string())
EMB = RowColumns("emb")
Found = list[tuple[dict[str, Any], list[float] | ImageError]]
"""Columns of a row, and its vector or the reason why there is none."""


def listed(*paths: Path, parts: int = 1) -> Iterator[pa.RecordBatch]:
    """Return Spark's listing: each path once for each part."""
    for path in paths:
        yield pa.record_batch(
            {
                "path": [f"file:{path}"] * parts,
                "modificationTime": pa.array([0] * parts, pa.timestamp("us", "UTC")),
                "part": pa.array(range(parts), pa.int64()),
                "parts": pa.array([parts] * parts, pa.int64()),
            }
        )


def read(reader: VectorReader, batches: Iterator[pa.RecordBatch]) -> Found:
    rows: Found = []
    for chunk in reader.read(batches):
        assert chunk.vectors.dtype == np.float32
        assert chunk.vectors.shape == (chunk.columns.num_rows, D)
        vectors = chunk.vectors.tolist()
        contents = [chunk.problems.get(row, vector) for row, vector in enumerate(vectors)]
        rows += zip(chunk.columns.to_pylist(), contents, strict=True)
    return rows


def ids(rows: Found) -> list[str]:
    return [columns["image_id"] for columns, _ in rows]


def vectors_in(rows: Found) -> list[list[float]]:
    return [content for _, content in rows if not isinstance(content, ImageError)]


def problems_in(rows: Found) -> list[tuple[str, str, str]]:
    """Return image_id, status and message of the rows without a vector."""
    return [
        (columns["image_id"], content.status, str(content))
        for columns, content in rows
        if isinstance(content, ImageError)
    ]


def numbers(num_rows: int, dtype: type[np.floating[Any]] = np.float32) -> npt.NDArray[Any]:
    """Return vectors, shape (num_rows, D), that every type holds exactly, no two of 1999 alike."""
    return (np.arange(num_rows * D).reshape(num_rows, D) % 1999 - 999.5).astype(dtype)


def as_column(vectors: npt.NDArray[Any], list_type: Callable[..., pa.DataType] = pa.list_) -> pa.Array:
    flat = pa.array(vectors.reshape(-1))
    lists = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
    return lists.cast(list_type(flat.type)) if list_type in (pa.list_, pa.large_list) else lists


def write(path: Path, column: pa.Array, group: int | None = None, **columns: pa.Array) -> Path:
    pq.write_table(pa.table({"emb": column, **columns}), path, row_group_size=group)
    return path


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("list_type", [pa.list_, pa.large_list, None], ids=["list", "large", "fixed"])
def test_lists_of_every_kind_are_read(
    tmp_path: Path, dtype: type[np.floating[Any]], list_type: Callable[..., pa.DataType]
) -> None:
    vectors = numbers(5, dtype)
    path = write(tmp_path / "x.parquet", as_column(vectors, list_type), 2)
    rows = read(ParquetVectorReader(Storage(), D, EMB), listed(path))
    assert vectors_in(rows) == vectors.tolist()
    assert ids(rows) == [f"file:{path}#{i}" for i in range(5)]


def test_ids_and_columns_come_along_in_blocks(tmp_path: Path) -> None:
    num_rows = 2 * BLOCK_ROWS + 10
    names = pa.array([f"u{i}" for i in range(num_rows)])
    path = write(tmp_path / "x.parquet", as_column(numbers(num_rows)), key=names, text=names)
    reader = ParquetVectorReader(Storage(), D, RowColumns("emb", "key", {"text": CAPTION}))
    sizes = [len(chunk.vectors) for chunk in reader.read(listed(path))]
    assert sizes == [BLOCK_ROWS, BLOCK_ROWS, 10]
    rows = read(reader, listed(path))
    assert ids(rows) == names.to_pylist() == [columns["caption"] for columns, _ in rows]
    assert vectors_in(rows) == numbers(num_rows).tolist()


BAD: dict[str, tuple[list[float | None] | None, str, str]] = {
    "null": (None, "missing", "it is null"),
    "short": ([1.0] * (D - 1), "unsupported", f"has {D - 1} numbers, the model's have {D}"),
    "long": ([1.0] * 2 * D, "unsupported", f"has {2 * D} numbers"),
    "empty": ([], "unsupported", "has 0 numbers"),
    "zeros": ([0.0] * D, "not_finite", "zeros"),
    "nan": ([1.0] * (D - 1) + [float("nan")], "not_finite", "1 numbers"),
    "infinite": ([float("inf")] * D, "not_finite", f"{D} numbers"),
    "with a null": ([1.0] * (D - 1) + [None], "not_finite", "1 numbers"),
    "too large for float32": ([1e300] * D, "not_finite", "not finite"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_vector_says_why_and_the_others_are_as_they_were(tmp_path: Path, name: str) -> None:
    bad, status, said = BAD[name]
    good = numbers(3, np.float64).tolist()
    column = pa.array([good[0], bad, *good[1:]], pa.list_(pa.float64()))
    path = write(tmp_path / "x.parquet", column)
    rows = read(ParquetVectorReader(Storage(), D, EMB), listed(path))
    assert vectors_in(rows) == good
    [(image_id, got, message)] = problems_in(rows)
    assert (image_id, got) == (f"file:{path}#1", status)
    assert said in message


def test_bad_vectors_of_a_fixed_size_list_say_why(tmp_path: Path) -> None:
    column = pa.array([[1.0] * D, None, [0.0] * D], pa.list_(pa.float32(), D))
    rows = read(ParquetVectorReader(Storage(), D, EMB), listed(write(tmp_path / "x.parquet", column)))
    assert [status for _, status, _ in problems_in(rows)] == ["missing", "not_finite"]
    assert vectors_in(rows) == [[1.0] * D]


@pytest.mark.parametrize("length", [1e-25, 1e25])
def test_very_long_and_very_short_vectors_have_a_direction(tmp_path: Path, length: float) -> None:
    np.save(tmp_path / "x.npy", np.full((1, D), length, np.float32))
    assert problems_in(read(NpyReader(Storage(), D), listed(tmp_path / "x.npy"))) == []


def test_a_column_that_holds_no_floats_is_one_row(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", pa.array([[1, 2], [3, 4]]), 1)
    rows = read(ParquetVectorReader(Storage(), D, EMB), listed(path, parts=2))
    [(image_id, status, message)] = problems_in(rows)
    assert (image_id, status, len(rows)) == (f"file:{path}", "unsupported", 1)
    assert "expected a list of float16, float32 or float64" in message


def test_rows_that_spark_has_read_keep_their_columns() -> None:
    vectors = numbers(BLOCK_ROWS + 1)
    names = pa.array([str(i) for i in range(len(vectors))])
    batch = pa.record_batch({"image_id": names, "content": as_column(vectors), "caption": names})
    rows = read(VectorColumnReader(D), iter([batch.slice(0, 5), batch.slice(5)]))
    assert vectors_in(rows) == vectors.tolist()
    assert [(row["image_id"], row["caption"]) for row, _ in rows] == [(n, n) for n in names.to_pylist()]
    assert "content" not in rows[0][0]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_files_of_every_kind_are_read(tmp_path: Path, dtype: str, order: Any) -> None:  # noqa: ANN401
    vectors = numbers(BLOCK_ROWS + 7)
    np.save(tmp_path / "x.npy", np.asarray(vectors, dtype, order=order))
    rows = read(NpyReader(Storage(), D), listed(tmp_path / "x.npy"))
    assert vectors_in(rows) == vectors.tolist()
    assert ids(rows) == [f"file:{tmp_path}/x.npy#{i}" for i in range(len(vectors))]


@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
def test_npy_headers_of_both_versions_are_read(tmp_path: Path, version: tuple[int, int]) -> None:
    with (tmp_path / "x.npy").open("wb") as file:
        np.lib.format.write_array(file, numbers(3), version)
    assert len(vectors_in(read(NpyReader(Storage(), D), listed(tmp_path / "x.npy")))) == 3


def clip_retrieval(folder: Path, num_vectors: int, num_metadata: int, group: int | None = None) -> Path:
    """Write a folder as clip-retrieval does; return the .npy file."""
    (folder / "img_emb").mkdir()
    (folder / "metadata").mkdir()
    np.save(folder / "img_emb" / "img_emb_0.npy", numbers(num_vectors))
    names = pa.array([f"u{i}" for i in range(num_metadata)])
    table = pa.table({"image_path": names, "caption": names})
    pq.write_table(table, folder / "metadata" / "metadata_0.parquet", row_group_size=group)
    return folder / "img_emb" / "img_emb_0.npy"


METADATA_READER = NpyReader(Storage(), D, RowColumns(None, "image_path", {"caption": CAPTION}))


def test_the_metadata_of_clip_retrieval_gives_ids_and_captions(tmp_path: Path) -> None:
    num_rows = BLOCK_ROWS + 50
    path = clip_retrieval(tmp_path, num_rows, num_rows, 700)
    rows = read(METADATA_READER, listed(path))
    assert ids(rows) == [f"u{i}" for i in range(num_rows)] == [columns["caption"] for columns, _ in rows]
    assert vectors_in(rows) == numbers(num_rows).tolist()
    assert {columns["source_file"] for columns, _ in rows} == {f"file:{path}"}


def test_a_parquet_file_of_the_same_name_is_metadata_too(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", numbers(2))
    pq.write_table(pa.table({"image_path": ["a", "b"]}), tmp_path / "x.parquet")
    rows = read(METADATA_READER, listed(tmp_path / "x.npy"))
    assert [(row["image_id"], row["caption"]) for row, _ in rows] == [("a", None), ("b", None)]


def test_without_metadata_rows_are_named_by_their_place(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", numbers(2))
    rows = read(METADATA_READER, listed(tmp_path / "x.npy"))
    assert [(row["image_id"], row["caption"]) for row, _ in rows] == [
        (f"file:{tmp_path}/x.npy#{i}", None) for i in range(2)
    ]


@pytest.mark.parametrize(("num_vectors", "num_metadata"), [(5, 3), (3, 5)])
def test_as_many_rows_are_read_as_both_files_have(
    tmp_path: Path, num_vectors: int, num_metadata: int
) -> None:
    path = clip_retrieval(tmp_path, num_vectors, num_metadata)
    rows = read(METADATA_READER, listed(path, parts=2))
    assert vectors_in(rows) == numbers(3).tolist()
    assert [image_id for image_id in ids(rows) if image_id != f"file:{path}"] == ["u0", "u1", "u2"]
    [(image_id, status, message)] = problems_in(rows)
    assert (image_id, status) == (f"file:{path}", "undecodable")
    assert f"has {num_vectors} rows and the Parquet file beside it {num_metadata}" in message
    assert ("rows 3 to 4 have no metadata" in message) == (num_vectors == 5)


def test_damaged_metadata_is_one_row(tmp_path: Path) -> None:
    path = clip_retrieval(tmp_path, 3, 3)
    (tmp_path / "metadata" / "metadata_0.parquet").write_bytes(b"damaged")
    [(image_id, status, message)] = problems_in(read(METADATA_READER, listed(path, parts=2)))
    assert (image_id, status) == (f"file:{path}", "undecodable")
    assert "metadata_0.parquet beside it cannot be read" in message


def test_a_damaged_page_of_the_metadata_costs_its_row_group(tmp_path: Path) -> None:
    path = clip_retrieval(tmp_path, 30, 30, 10)
    beside = tmp_path / "metadata" / "metadata_0.parquet"
    start = pq.read_metadata(beside).row_group(1).column(0).dictionary_page_offset
    whole = bytearray(beside.read_bytes())
    whole[start : start + 20] = b"\xff" * 20
    beside.write_bytes(whole)
    rows = read(METADATA_READER, listed(path))
    assert vectors_in(rows) == [*numbers(30)[:10].tolist(), *numbers(30)[20:].tolist()]
    [(image_id, _, message)] = problems_in(rows)
    assert image_id == f"file:{path}#10"
    assert "beside it: rows 10 to 19" in message


def test_every_row_of_another_dimension_says_so(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((BLOCK_ROWS + 3, D + 1), np.float32))
    problems = problems_in(read(NpyReader(Storage(), D), listed(tmp_path / "x.npy")))
    assert [image_id for image_id, _, _ in problems] == [
        f"file:{tmp_path}/x.npy#{i}" for i in range(BLOCK_ROWS + 3)
    ]
    assert {status for _, status, _ in problems} == {"unsupported"}
    assert f"has {D + 1} numbers, the model's have {D}" in problems[0][2]


def test_bad_vectors_of_a_npy_file_say_why(tmp_path: Path) -> None:
    vectors = numbers(4)
    vectors[1], vectors[2, 3] = 0, np.nan
    np.save(tmp_path / "x.npy", vectors)
    rows = read(NpyReader(Storage(), D), listed(tmp_path / "x.npy"))
    assert [(image_id[-2:], status) for image_id, status, _ in problems_in(rows)] == [
        ("#1", "not_finite"),
        ("#2", "not_finite"),
    ]
    assert vectors_in(rows) == vectors[[0, 3]].tolist()


NO_MATRIX: dict[str, tuple[npt.NDArray[Any], str]] = {
    "integers": (np.ones((2, D), np.int8), "holds int8 of shape (2, 8)"),
    "one vector": (np.ones(D, np.float32), "of shape (8,)"),
    "a cube": (np.ones((2, 2, D), np.float32), "of shape (2, 2, 8)"),
    "pickles": (np.array([[print]]), "holds object"),
}


@pytest.mark.parametrize("name", NO_MATRIX)
def test_what_is_no_matrix_of_floats_is_one_row(tmp_path: Path, name: str) -> None:
    values, said = NO_MATRIX[name]
    np.save(tmp_path / "x.npy", values)
    [(image_id, status, message)] = problems_in(
        read(NpyReader(Storage(), D), listed(tmp_path / "x.npy", parts=2))
    )
    assert (image_id, status) == (f"file:{tmp_path}/x.npy", "unsupported")
    assert said in message


@pytest.mark.parametrize(
    ("content", "status"), [(b"", "undecodable"), (b"text", "undecodable"), (None, "missing")]
)
def test_what_is_no_npy_file_is_one_row(tmp_path: Path, content: bytes | None, status: str) -> None:
    path = tmp_path / "x.npy"
    if content is not None:
        path.write_bytes(content)
    [(image_id, got, message)] = problems_in(read(NpyReader(Storage(), D), listed(path)))
    assert (image_id, got) == (f"file:{path}", status)
    assert str(path) in message


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(length=st.integers(0, 128 + 20 * D * 4 - 1), parts=st.integers(1, 3))
def test_a_npy_file_cut_anywhere_gives_what_is_left_and_one_row(
    tmp_path: Path, length: int, parts: int
) -> None:
    path = tmp_path / "x.npy"
    np.save(path, numbers(20))
    os.truncate(path, length)
    rows = read(NpyReader(Storage(), D), listed(path, parts=parts))
    num_left = max(0, length - 128) // (D * 4)
    assert vectors_in(rows) == numbers(20)[:num_left].tolist()
    [(image_id, status, message)] = problems_in(rows)
    assert status == "undecodable"
    if length >= 128:
        assert image_id == f"file:{path}#{num_left}"
        assert f"rows {num_left} to 19" in message


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 127), damage=st.binary(min_size=1, max_size=30))
def test_no_damage_of_its_header_makes_a_reader_raise(tmp_path: Path, at: int, damage: bytes) -> None:
    path = tmp_path / "x.npy"
    np.save(path, numbers(20))
    whole = bytearray(path.read_bytes())
    whole[at : at + len(damage)] = damage
    path.write_bytes(whole)
    assert read(NpyReader(Storage(), D), listed(path))


def test_a_cut_file_that_lies_by_column_has_no_complete_row(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.asfortranarray(numbers(20)))
    os.truncate(path, path.stat().st_size - 1)
    [(image_id, _, message)] = problems_in(read(NpyReader(Storage(), D), listed(path)))
    assert image_id == f"file:{path}#0"
    assert "rows 0 to 19" in message


@pytest.mark.parametrize("parts", [1, 3, 7])
def test_tasks_share_a_npy_file_with_its_metadata(tmp_path: Path, parts: int) -> None:
    path = clip_retrieval(tmp_path, 5000, 5000, 700)
    whole = next(listed(path, parts=parts))
    found = [read(METADATA_READER, iter([whole.slice(part, 1)])) for part in range(parts)]
    rows = list(itertools.chain(*found))
    assert min(map(len, found)) >= 5000 // parts
    assert ids(rows) == [f"u{i}" for i in range(5000)]
    assert vectors_in(rows) == numbers(5000).tolist()


def test_what_is_lost_is_one_row_however_many_tasks_share_the_file(tmp_path: Path) -> None:
    path = clip_retrieval(tmp_path, 30, 30, 30)
    beside = tmp_path / "metadata" / "metadata_0.parquet"
    start = pq.read_metadata(beside).row_group(0).column(0).dictionary_page_offset
    whole = beside.read_bytes()
    beside.write_bytes(whole[:start] + b"\xff" * 20 + whole[start + 20 :])
    rows = read(METADATA_READER, listed(path, parts=3))
    assert [image_id for image_id, _, _ in problems_in(rows)] == [f"file:{path}#0"]
    assert len(rows) == 1


@pytest.mark.parametrize("parts", [1, 3])
def test_a_cut_file_is_one_row_however_many_tasks_share_it(tmp_path: Path, parts: int) -> None:
    np.save(tmp_path / "x.npy", numbers(30))
    os.truncate(tmp_path / "x.npy", 128 + 15 * D * 4)  # in the middle part
    rows = read(NpyReader(Storage(), D), listed(tmp_path / "x.npy", parts=parts))
    assert [image_id[-3:] for image_id, _, _ in problems_in(rows)] == ["#15"]
    assert len(rows) == 16


def test_metadata_is_looked_for_where_clip_retrieval_puts_it_then_beside() -> None:
    assert metadata_paths("s3a://b/out/img_emb/img_emb_12.npy") == [
        "s3a://b/out/metadata/metadata_12.parquet",
        "s3a://b/out/img_emb/img_emb_12.parquet",
    ]
    assert metadata_paths("file:/a b/x.npy") == ["file:/a b/x.parquet"]


@pytest.mark.parametrize(
    "reader", [METADATA_READER, ParquetVectorReader(Storage(), D, EMB), VectorColumnReader(D)]
)
def test_a_reader_travels_to_the_executors(reader: VectorReader) -> None:
    assert pickle.loads(pickle.dumps(reader)) == reader  # noqa: S301 - our own bytes
