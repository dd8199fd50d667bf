"""Images whose bytes Spark has read: rows of a table, or files of an object store."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

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
