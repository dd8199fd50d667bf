"""Images whose bytes Spark has read: rows of a table, or files of an object store."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final

import pyarrow as pa

from nsfw_spark.decode import too_long
from nsfw_spark.errors import ImageError
from nsfw_spark.readers.chunk import CHUNK_ROWS, MOST_BYTES, Chunk


@dataclass(frozen=True)
class ContentReader:
    """Takes the bytes from the column `content`; all other columns are carried along."""

    max_bytes: int = MOST_BYTES
    """Of a file; where a row has a greater `length`, nobody has read it."""

    def read(self, listed: Iterator[pa.RecordBatch]) -> Iterator[Chunk]:
        """Yield the images of rows: see `Reader.read`."""
        for batch in listed:
            for start in range(0, batch.num_rows, CHUNK_ROWS):
                some = batch.slice(start, CHUNK_ROWS)
                contents = map(self._content, some.column("content"), _lengths(some))
                yield Chunk(some.drop_columns("content"), contents)

    def _content(self, value: pa.Scalar, length: int | None) -> bytes | ImageError:
        if value.is_valid:
            return bytes(value.as_py())
        if length is not None and length > self.max_bytes:
            return too_long(length, self.max_bytes)
        return ImageError("missing", "the row holds no image: its bytes are null")


def _lengths(batch: pa.RecordBatch) -> list[int | None]:
    """Return the lengths of files; of rows of a table nobody knows them."""
    return batch.column("length").to_pylist() if "length" in batch.schema.names else [None] * batch.num_rows


COLUMNS: Final = pa.schema(
    [("image_id", pa.string()), ("modification_time", pa.timestamp("us", "UTC"))],
)


@dataclass(frozen=True)
class LocalFileReader:
    """Reads each listed file whole, when the scorer asks for it.

    On their way through Spark bytes would be copied several times. From an object store Spark reads them,
    with its own credentials: see `ContentReader`.
    """

    max_bytes: int = MOST_BYTES
    """Of a file; a longer one is not read."""

    def read(self, listed: Iterator[pa.RecordBatch]) -> Iterator[Chunk]:
        """Yield the images of files: see `Reader.read`."""
        read = partial(_read_file, max_bytes=self.max_bytes)
        for batch in listed:
            for start in range(0, batch.num_rows, CHUNK_ROWS):
                some = batch.slice(start, CHUNK_ROWS)
                columns = [some.column("path"), some.column("modificationTime").cast(COLUMNS.types[1])]
                paths = some.column("path").to_pylist()
                yield Chunk(pa.RecordBatch.from_arrays(columns, schema=COLUMNS), map(read, paths))


def _read_file(path: str, max_bytes: int) -> bytes | ImageError:
    """Read a file of this machine, named as Hadoop does (`file:/a b.jpg`)."""
    try:
        with open(path.removeprefix("file:"), "rb") as file:  # noqa: PTH123 - a Path would drop slashes
            length = os.fstat(file.fileno()).st_size
            return too_long(length, max_bytes) if length > max_bytes else file.read()
    except OSError as error:
        return ImageError("missing", f"the file was listed and could not be read ({error.strerror})")
