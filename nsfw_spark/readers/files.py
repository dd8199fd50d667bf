"""Image files, and images in rows: the worker's half of `spark.sources.files` and `spark.sources.delta`.

In: files that Spark lists, or rows with bytes that Spark has read. Out: one image a file or row.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from typing import Final

import pyarrow as pa

from nsfw_spark.errors import ImageError
from nsfw_spark.readers.chunk import CHUNK_ROWS, FILE_COLUMNS, MOST_BYTES, Chunk, length_problem, slices

COLUMNS: Final = FILE_COLUMNS.remove(FILE_COLUMNS.get_field_index("source_file"))


@dataclass(frozen=True)
class LocalFileReader:
    """Reads each listed local file whole, when the scorer takes it.

    Spark would copy the bytes several times. It reads the files of an object store only, with its own
    credentials: see `ContentReader`.
    """

    max_bytes: int = MOST_BYTES
    """Longer files are not read."""

    def read(self, listed: Iterator[pa.RecordBatch]) -> Iterator[Chunk]:
        """Yield the images of files: see `Reader.read`."""
        read = partial(_read_file, max_bytes=self.max_bytes)
        for files in slices(listed, CHUNK_ROWS):
            times = files.column("modificationTime").cast(COLUMNS.field("modification_time").type)
            columns = pa.RecordBatch.from_arrays([files.column("path"), times], schema=COLUMNS)
            yield Chunk(columns, map(read, columns.column("image_id").to_pylist()))


@dataclass(frozen=True)
class ContentReader:
    """Takes the bytes from the column `content`; carries all other columns."""

    max_bytes: int = MOST_BYTES
    """A file of a greater `length` was not read."""

    def read(self, listed: Iterator[pa.RecordBatch]) -> Iterator[Chunk]:
        """Yield the images of rows: see `Reader.read`."""
        for rows in slices(listed, CHUNK_ROWS):
            has_length = "length" in rows.schema.names  # files have one, rows of a table have none
            lengths = rows.column("length").to_pylist() if has_length else repeat(None)
            yield Chunk(rows.drop_columns("content"), map(self._content, rows.column("content"), lengths))

    def _content(self, value: pa.Scalar, length: int | None) -> bytes | ImageError:
        if value.is_valid:
            return bytes(value.as_py())
        null = ImageError("missing", "the row holds no image: its bytes are null")
        return length_problem(length, self.max_bytes) or null


def _read_file(path: str, max_bytes: int) -> bytes | ImageError:
    """Read a local file by its Hadoop name (`file:/a b.jpg`)."""
    try:
        with open(path.removeprefix("file:"), "rb") as file:  # noqa: PTH123 - a Path would drop slashes
            return length_problem(os.fstat(file.fileno()).st_size, max_bytes) or file.read()
    except OSError as error:
        return ImageError("missing", f"the file was listed and could not be read ({error.strerror})")
