"""Readers of Parquet files: each row comes once, with its place, whatever part of a file is damaged."""

from __future__ import annotations

import itertools
import os
import pickle
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nsfw_spark.errors import ImageError
from nsfw_spark.readers.parquet import FilePart, ParquetReader, RowColumns
from nsfw_spark.readers.storage import Storage

WHEN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
CARRIED = pa.schema([("caption", pa.string()), ("num", pa.int64())])
CAPTION_AND_NUM = {"text": CARRIED.field("caption"), "num": CARRIED.field("num")}
HUGGING_FACE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def listed(*paths: Path, parts: int = 1) -> Iterator[pa.RecordBatch]:
    """Return Spark's listing: each path once for each part."""
    for path in paths:
        yield pa.record_batch(
            {
                "path": [f"file:{path}"] * parts,
                "modificationTime": pa.array([WHEN] * parts, pa.timestamp("us", "UTC")),
                "length": pa.array([1] * parts, pa.int64()),
                "part": pa.array(range(parts), pa.int64()),
                "parts": pa.array([parts] * parts, pa.int64()),
            }
        )


def reader_of(
    content: str = "image", id_: str | None = None, carried: Mapping[str, pa.Field] | None = None
) -> ParquetReader:
    return ParquetReader(Storage(), RowColumns(content, id_, carried or {}))


def read(reader: ParquetReader, batches: Iterable[pa.RecordBatch]) -> list[tuple[dict[str, Any], Any]]:
    """Return columns and content of all rows."""
    rows = []
    for chunk in reader.read(iter(batches)):
        rows += zip(chunk.columns.to_pylist(), chunk.contents, strict=True)
    return rows


def write(path: Path, content: pa.Array, group: int | None = None, **columns: pa.Array) -> Path:
    """Write a Parquet file without compression, so that a damaged byte is a damaged page."""
    pq.write_table(pa.table({"image": content, **columns}), path, row_group_size=group, compression="none")
    return path


def numbered(num_rows: int, size: int = 4) -> pa.Array:
    """Return contents that hold their row number."""
    return pa.array([str(i).encode().rjust(size, b"0") for i in range(num_rows)])


def test_rows_know_their_place_and_what_is_carried_along(tmp_path: Path) -> None:
    columns = {"text": pa.array(["a", None, "c"], pa.large_string()), "num": pa.array([1, 2, 3], pa.int32())}
    path = write(tmp_path / "a b%20.parquet", numbered(3), 2, **columns)
    reader = reader_of(carried=CAPTION_AND_NUM)
    chunks = list(reader.read(listed(path)))
    assert chunks[0].columns.schema == pa.schema(
        [
            ("image_id", pa.string()),
            ("source_file", pa.string()),
            ("modification_time", pa.timestamp("us", "UTC")),
            *CARRIED,
        ]
    )
    uri = f"file:{path}"
    assert [row for chunk in chunks for row in chunk.columns.to_pylist()] == [
        {
            "image_id": f"{uri}#{i}",
            "source_file": uri,
            "modification_time": WHEN,
            "caption": caption,
            "num": i + 1,
        }
        for i, caption in enumerate(["a", None, "c"])
    ]
    assert [content for chunk in chunks for content in chunk.contents] == [b"0000", b"0001", b"0002"]


def test_an_id_column_names_the_images_and_a_null_id_does_not_lose_its_row(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", numbered(3), key=pa.array([7, None, 9]))
    rows = read(reader_of(id_="key"), listed(path))
    assert [columns["image_id"] for columns, _ in rows] == ["7", f"file:{path}#1", "9"]


def test_hugging_faces_struct_gives_its_bytes_or_says_what_its_path_names(tmp_path: Path) -> None:
    values = [
        {"bytes": b"x", "path": "a"},
        None,
        {"bytes": None, "path": "b.jpg"},
        {"bytes": b"", "path": None},
    ]
    path = write(tmp_path / "x.parquet", pa.array(values, HUGGING_FACE))
    one, null, elsewhere, empty = (content for _, content in read(reader_of(), listed(path)))
    assert (one, empty) == (b"x", b"")
    assert (null.status, elsewhere.status) == ("missing", "missing")
    assert "bytes are null" in str(null)
    assert "b.jpg" in str(elsewhere)
    assert "b.jpg" not in str(null)


def test_a_path_that_is_not_utf_8_is_no_reason_to_fail(tmp_path: Path) -> None:
    names = pa.StringArray.from_buffers(1, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe"))
    struct = pa.StructArray.from_arrays([pa.array([None], pa.binary()), names], ["bytes", "path"])
    path = write(tmp_path / "x.parquet", struct)
    [(_, content)] = read(reader_of(), listed(path))
    assert content.status == "missing"


def test_a_column_that_a_file_lacks_is_null(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", numbered(2), num=pa.array([1.0, None]))
    reader = reader_of(id_="no_such_id", carried=CAPTION_AND_NUM)
    rows = [columns for columns, _ in read(reader, listed(path))]
    assert [(row["caption"], row["num"]) for row in rows] == [(None, 1), (None, None)]
    assert rows[1]["image_id"] == f"file:{path}#1"


def test_nanoseconds_become_microseconds(tmp_path: Path) -> None:
    times = pa.array([1_000_000_001], pa.timestamp("ns", "UTC"))
    path = write(tmp_path / "x.parquet", numbered(1), at=times)
    at = pa.field("at", pa.timestamp("us", "UTC"))
    [(columns, content)] = read(reader_of(carried={"at": at}), listed(path))
    assert (columns["at"], content) == (datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC), b"0000")


def test_a_reader_travels_to_the_executors() -> None:
    reader = reader_of(id_="key", carried=CAPTION_AND_NUM)
    assert pickle.loads(pickle.dumps(reader)) == reader  # noqa: S301 - our own bytes


def test_chunks_of_large_images_are_small(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", numbered(20, size=8 << 20))
    sizes = [chunk.columns.num_rows for chunk in reader_of().read(listed(path))]
    assert sum(sizes) == 20
    assert max(sizes) <= 4


def test_a_file_of_no_rows_has_none(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", pa.array([], pa.binary()))
    assert read(reader_of(), listed(path)) == []


BROKEN = {
    "empty": (lambda _: b"", "undecodable", "0 bytes"),
    "text": (lambda _: b"not a Parquet file", "undecodable", "Parquet"),
    "cut": (lambda whole: whole[: len(whole) // 2], "undecodable", "footer"),
    "footer": (lambda whole: whole[:-60] + b"\xff" * 40 + whole[-20:], "undecodable", "cannot be read"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_damaged_file_is_one_row_and_the_next_file_is_read(tmp_path: Path, name: str) -> None:
    damage, status, said = BROKEN[name]
    good = write(tmp_path / "good.parquet", numbered(2))
    bad = tmp_path / "bad.parquet"
    bad.write_bytes(damage(good.read_bytes()))
    (columns, error), *others = read(reader_of(), listed(bad, good))
    assert (columns["image_id"], columns["source_file"]) == (f"file:{bad}", f"file:{bad}")
    assert isinstance(error, ImageError)
    assert error.status == status
    assert said in str(error)
    assert str(bad) in str(error)
    assert [content for _, content in others] == [b"0000", b"0001"]


def test_a_file_that_vanished_is_missing(tmp_path: Path) -> None:
    [(columns, error)] = read(reader_of(), listed(tmp_path / "gone.parquet"))
    assert columns["image_id"] == f"file:{tmp_path}/gone.parquet"
    assert error.status == "missing"


def test_a_damaged_file_of_many_parts_is_one_row_but_a_vanished_one_cannot_be_silent(tmp_path: Path) -> None:
    bad = tmp_path / "bad.parquet"
    bad.write_bytes(b"x" * 100)
    assert len(read(reader_of(), listed(bad, parts=3))) == 1
    # No task knows whether another one found the file.
    bad.unlink()
    rows = read(reader_of(), listed(bad, parts=3))
    assert [row["image_id"] for row, _ in rows] == [f"file:{bad}{part}" for part in ("", "#part1", "#part2")]


@pytest.mark.parametrize(
    ("content_column", "status", "said"),
    [
        ("picture", "missing", "no column picture. Its columns: image, num"),
        ("num", "unsupported", "num is int64; expected binary"),
    ],
)
def test_a_file_without_the_content_column_is_one_row(
    tmp_path: Path, content_column: str, status: str, said: str
) -> None:
    path = write(tmp_path / "x.parquet", numbered(3), 1, num=pa.array([1, 2, 3]))
    [(columns, error)] = read(reader_of(content_column), listed(path, parts=2))
    assert (columns["image_id"], error.status) == (f"file:{path}", status)
    assert said in str(error)


def test_a_carried_column_of_a_type_that_cannot_be_cast_is_one_row(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", numbered(3), 1, num=pa.array([[1], [2], [3]]))
    reader = reader_of(carried=CAPTION_AND_NUM)
    [(columns, error)] = read(reader, listed(path))
    assert columns["image_id"] == f"file:{path}"
    assert "num is list<" in str(error)
    assert "expected int64" in str(error)


def test_a_carried_value_that_cannot_be_cast_costs_its_row_group(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", numbered(6), 2, num=pa.array(["1", "2", "3", "x", "5", "6"]))
    reader = reader_of(carried=CAPTION_AND_NUM)
    rows = read(reader, listed(path))
    assert [columns["num"] for columns, _ in rows] == [1, 2, None, 5, 6]
    columns, error = rows[2]
    assert columns["image_id"] == f"file:{path}#2"
    assert error.status == "undecodable"
    assert f"rows 2 to 3 of file:{path}" in str(error)


def test_a_damaged_page_costs_the_rest_of_its_row_group(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", numbered(300), 100)
    chunk = pq.read_metadata(path).row_group(1).column(0)
    whole = bytearray(path.read_bytes())
    whole[chunk.data_page_offset : chunk.data_page_offset + 20] = b"\xff" * 20
    path.write_bytes(whole)
    rows = read(reader_of(), listed(path))
    problems = [(columns, error) for columns, error in rows if isinstance(error, ImageError)]
    assert [content for _, content in rows if isinstance(content, bytes)] == [
        *(str(i).encode().rjust(4, b"0") for i in [*range(100), *range(200, 300)])
    ]
    [(columns, error)] = problems
    assert columns["image_id"] == f"file:{path}#100"
    assert error.status == "undecodable"
    assert "rows 100 to 199" in str(error)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.floats(0, 1, exclude_max=True), damage=st.binary(min_size=1, max_size=30))
def test_no_damage_makes_a_reader_raise(tmp_path: Path, at: float, damage: bytes) -> None:
    path = write(tmp_path / "x.parquet", numbered(50), 10, caption=pa.array(["text"] * 50))
    whole = bytearray(path.read_bytes())
    start = int(at * len(whole))
    whole[start : start + len(damage)] = damage
    path.write_bytes(whole)
    reader = reader_of(carried={"caption": CARRIED.field("caption")})
    rows = read(reader, listed(path))
    lost = sum(isinstance(content, ImageError) for _, content in rows)
    assert 1 <= len(rows) - lost + 1 <= 51
    assert len({columns["image_id"] for columns, _ in rows}) == len(rows)
    assert lost or len(rows) == 50


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(length=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_anywhere_is_one_row(tmp_path: Path, length: float) -> None:
    path = write(tmp_path / "x.parquet", numbered(20), 5)
    os.truncate(path, int(length * path.stat().st_size))
    [(_, error)] = read(reader_of(), listed(path))
    assert error.status == "undecodable"


@given(size=st.integers(0, 10**9), parts=st.integers(1, 40))
def test_each_byte_is_of_exactly_one_part_and_all_parts_are_alike(size: int, parts: int) -> None:
    shares = [FilePart("x", pa.scalar(None), part, parts).share(size) for part in range(parts)]
    assert [share.start for share in shares] == [0, *(share.stop for share in shares[:-1])]
    assert shares[-1].stop == size
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.integers(1, 2000), min_size=1, max_size=8), parts=st.integers(1, 10))
def test_tasks_share_row_groups_of_any_size(tmp_path: Path, sizes: list[int], parts: int) -> None:
    path, rows = tmp_path / "x.parquet", pa.schema([("image", pa.binary())])
    with pq.ParquetWriter(path, rows, compression="none", use_dictionary=False) as writer:
        for size in sizes:
            writer.write_batch(pa.record_batch([numbered(1, size)], schema=rows))
    reader = reader_of()
    ids = [columns["image_id"] for columns, _ in read(reader, listed(path, parts=parts))]
    assert ids == [f"file:{path}#{i}" for i in range(len(sizes))]


def test_tasks_share_a_file_evenly(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", numbered(30, size=5000), 3)
    parts = [next(listed(path, parts=3)).slice(part, 1) for part in range(3)]
    reader = reader_of()
    ids = [[columns["image_id"] for columns, _ in read(reader, [part])] for part in parts]
    assert sorted(itertools.chain(*ids)) == sorted(f"file:{path}#{i}" for i in range(30))
    assert [len(of_part) for of_part in ids] == [9, 12, 9]


def test_a_footer_that_contradicts_itself_is_one_row(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", numbered(77), 7)
    whole = path.read_bytes()
    footer = whole.rindex(
        bytes([0x16, 2 * 7])
    )  # the count of rows of the last row group, as thrift encodes it
    path.write_bytes(whole[:footer] + bytes([0x16, 0]) + whole[footer + 2 :])
    [(columns, error)] = read(reader_of(), listed(path, parts=2))
    assert (columns["image_id"], error.status) == (f"file:{path}", "undecodable")
    assert "77 rows in all, 70 in its row groups" in str(error)


def test_damaged_metadata_of_a_column_do_not_end_the_process(tmp_path: Path) -> None:
    """pyarrow 26 aborts if one reads such metadata with histograms of a wrong size."""
    path = write(tmp_path / "x.parquet", numbered(4), caption=pa.array(["text"] * 4))
    whole = bytearray(path.read_bytes())
    length = int.from_bytes(whole[-8:-4], "little")
    for offset in range(len(whole) - 8 - length, len(whole) - 8):
        damaged = bytearray(whole)
        damaged[offset] ^= 0x10
        path.write_bytes(damaged)
        assert read(reader_of(), listed(path))


def test_text_that_is_not_utf_8_is_carried_along_as_far_as_it_is(tmp_path: Path) -> None:
    texts = pa.StringArray.from_buffers(
        2, pa.py_buffer(np.int32([0, 3, 4]).tobytes()), pa.py_buffer(b"a\xffbc")
    )
    path = write(tmp_path / "x.parquet", numbered(2), text=texts, num=pa.array([1, 2]))
    rows = read(reader_of(id_="text", carried=CAPTION_AND_NUM), listed(path))
    assert [(row["caption"], row["image_id"]) for row, _ in rows] == [("a\ufffdb", "a\ufffdb"), ("c", "c")]


def test_rows_without_a_file_of_columns_are_named_and_empty() -> None:
    part = FilePart("file:/x", pa.scalar(WHEN, pa.timestamp("us", "UTC")), 0, 1)
    rows = RowColumns(carried=CAPTION_AND_NUM).of_rows(part, 5, 2).to_pylist()
    assert [(row["image_id"], row["num"]) for row in rows] == [("file:/x#5", None), ("file:/x#6", None)]
