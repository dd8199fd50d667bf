"""Readers of one image a row: local files, and rows with bytes that Spark has read."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa

from nsfw_spark.errors import ImageError
from nsfw_spark.readers import Chunk
from nsfw_spark.readers.chunk import CHUNK_ROWS
from nsfw_spark.readers.files import COLUMNS, ContentReader, FileReader

MODIFIED = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def listed(paths: list[str]) -> pa.RecordBatch:
    times = pa.array([MODIFIED] * len(paths), pa.timestamp("us", "Europe/Berlin"))  # the session's zone
    return pa.RecordBatch.from_pydict(
        {"path": pa.array(paths), "modificationTime": times, "length": pa.array([1] * len(paths), pa.int64())}
    )


def test_a_file_that_is_too_long_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "long.jpg").open("wb") as file:
        file.truncate(1 << 40)  # a sparse file: it takes no disk space
    (tmp_path / "short.jpg").write_bytes(b"abc")
    uris = [f"file:{tmp_path}/{name}.jpg" for name in ("long", "short")]
    (chunk,) = FileReader(max_bytes=3).read(iter([listed(uris)]))
    long, short = chunk.contents
    assert isinstance(long, ImageError)
    assert (long.status, short) == ("too_large", b"abc")
    assert f"{1 << 40} bytes, more than max_bytes = 3 (--max-bytes)" in long.message


def test_files_are_read_by_hadoops_names(tmp_path: Path) -> None:
    (tmp_path / "a b%20#+.jpg").write_bytes(b"bytes")
    (chunk,) = FileReader().read(iter([listed([f"file:{tmp_path}/a b%20#+.jpg"])]))
    assert list(chunk.contents) == [b"bytes"]
    assert chunk.columns.schema == COLUMNS
    assert chunk.columns.to_pylist() == [
        {"image_id": f"file:{tmp_path}/a b%20#+.jpg", "modification_time": MODIFIED}
    ]


def test_a_file_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    (chunk,) = FileReader().read(iter([listed([f"file:{tmp_path}/gone.jpg", f"file:{tmp_path}"])]))
    gone, directory = chunk.contents
    assert isinstance(gone, ImageError)
    assert isinstance(directory, ImageError)
    assert (gone.status, directory.status) == ("missing", "missing")
    assert "No such file" in str(gone)
    assert "directory" in str(directory)


def test_files_are_read_only_when_they_are_wanted(tmp_path: Path) -> None:
    (chunk,) = FileReader().read(iter([listed([f"file:{tmp_path}/later.jpg"])]))
    (tmp_path / "later.jpg").write_bytes(b"now")
    assert list(chunk.contents) == [b"now"]


def test_rows_keep_their_other_columns() -> None:
    rows = pa.RecordBatch.from_pydict(
        {"image_id": ["a", "b"], "content": [b"1", None], "caption": ["x", None]}
    )
    (chunk,) = ContentReader().read(iter([rows]))
    first, second = chunk.contents
    assert first == b"1"
    assert isinstance(second, ImageError)
    assert second.status == "missing"
    assert chunk.columns.to_pylist() == [
        {"image_id": "a", "caption": "x"},
        {"image_id": "b", "caption": None},
    ]


def test_chunks_are_small_whatever_the_arrow_batch() -> None:
    number = 2 * CHUNK_ROWS + 1
    rows = pa.RecordBatch.from_pydict(
        {"image_id": [str(i) for i in range(number)], "content": [b"x"] * number}
    )
    chunks: list[Chunk] = list(ContentReader().read(iter([rows])))
    assert [chunk.columns.num_rows for chunk in chunks] == [CHUNK_ROWS, CHUNK_ROWS, 1]
    ids = [row["image_id"] for chunk in chunks for row in chunk.columns.to_pylist()]
    assert ids == [str(i) for i in range(number)]
