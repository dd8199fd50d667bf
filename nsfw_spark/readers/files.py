"""Image files, and images in rows: the worker's half of `spark.sources.files` and `spark.sources.delta`.

In: files that Spark lists, or rows with bytes that Spark has read. Out: one image a file or row.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from typing import Final

import pyarrow as pa

from nsfw_spark.errors import ImageError, storage_failed
from nsfw_spark.readers.chunk import CHUNK_ROWS, FILE_COLUMNS, MOST_BYTES, Chunk, length_problem, slices
from nsfw_spark.readers.storage import Storage, unread

_READS_AT_ONCE: Final = 16  # of a task; a store takes tens of milliseconds for each
_BYTES_AHEAD: Final = 32 << 20
COLUMNS: Final = FILE_COLUMNS.remove(FILE_COLUMNS.get_field_index("source_file"))


@dataclass(frozen=True)
class FileReader:
    """Reads each listed file whole: from this machine when the scorer takes it, from a store ahead of it.

    Spark would copy the bytes several times, and read one file after the other: a store takes 30 ms for each.
    """

    storage: Storage | None = None
    """Opens the files of a store; None for local files."""
    max_bytes: int = MOST_BYTES
    """Longer files are not read."""

    def read(self, listed: Iterator[pa.RecordBatch]) -> Iterator[Chunk]:
        """Yield the images of files: see `Reader.read`."""
        with ThreadPoolExecutor(_READS_AT_ONCE) as threads:
            for files in slices(listed, CHUNK_ROWS):
                times = files.column("modificationTime").cast(COLUMNS.field("modification_time").type)
                columns = pa.RecordBatch.from_arrays([files.column("path"), times], schema=COLUMNS)
                paths = columns.column("image_id").to_pylist()
                if self.storage is None:
                    yield Chunk(columns, map(self._read_local, paths))
                else:
                    lengths = files.column("length").to_pylist()
                    yield Chunk(columns, self._ahead(threads, self.storage, zip(paths, lengths, strict=True)))

    def _ahead(
        self, threads: ThreadPoolExecutor, storage: Storage, files: Iterable[tuple[str, int]]
    ) -> Iterator[bytes | ImageError]:
        """Yield the files' contents in order; threads read the next ones."""
        reads: deque[tuple[int, Future[bytes | ImageError]]] = deque()
        for path, length in files:
            while reads and sum(each for each, _ in reads) + length > _BYTES_AHEAD:
                yield reads.popleft()[1].result()
            reads.append((length, threads.submit(self._read_stored, storage, path, length)))
        while reads:
            yield reads.popleft()[1].result()

    def _read_stored(self, storage: Storage, path: str, length: int) -> bytes | ImageError:
        if problem := length_problem(length, self.max_bytes):
            return problem
        try:
            with storage.open_stream(path) as file:
                return file.read()
        except FileNotFoundError as error:
            return unread(error)
        except ImageError as error:
            return error

    def _read_local(self, path: str) -> bytes | ImageError:
        """Read a local file by its Hadoop name (`file:/a b.jpg`)."""
        try:
            with open(path.removeprefix("file:"), "rb") as file:  # noqa: PTH123 - a Path would drop slashes
                return length_problem(os.fstat(file.fileno()).st_size, self.max_bytes) or file.read()
        except OSError as error:
            return unread(error)


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
        if length is None:
            return ImageError("missing", "the row holds no image: its bytes are null")
        return length_problem(length, self.max_bytes) or storage_failed("Spark read no byte of it")
