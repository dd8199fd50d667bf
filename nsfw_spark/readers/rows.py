"""Images whose bytes Spark has read: rows of a table, or files of an object store."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa

from nsfw_spark.errors import ImageError
from nsfw_spark.readers.chunk import CHUNK_ROWS, Chunk


@dataclass(frozen=True)
class ContentReader:
    """Takes the bytes from the column `content`; all other columns are carried along."""

    def read(self, listed: Iterator[pa.RecordBatch]) -> Iterator[Chunk]:
        """Yield the images of rows: see `Reader.read`."""
        for batch in listed:
            for start in range(0, batch.num_rows, CHUNK_ROWS):
                some = batch.slice(start, CHUNK_ROWS)
                contents = map(_content, some.column("content"))
                yield Chunk(some.drop_columns("content"), contents)


def _content(value: pa.Scalar) -> bytes | ImageError:
    content = value.as_py()
    return ImageError("missing", "the row holds no image: its bytes are null") if content is None else content
