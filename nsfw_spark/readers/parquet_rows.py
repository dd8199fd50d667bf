"""The rows of Parquet files: what readers of images and of embeddings share.

In: the listed parts of files. Out: rows, in memory for a few pages of each column. Each row knows its place,
`file#row`. A damaged row group costs its own rows: one row stands for those that are lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from nsfw_spark.errors import ImageError, Status
from nsfw_spark.readers.chunk import CHUNK_ROWS
from nsfw_spark.readers.file_parts import FilePart, RowColumns, one_line
from nsfw_spark.readers.storage import Storage

PART_BYTES: Final = 64 << 20
"""About what one task reads of a file, bytes: large files are listed once for each part."""

_BUFFER_BYTES: Final = 4 << 20  # of each column; each refill is a request where the file is in a cloud
_BATCH_BYTES: Final = 32 << 20
_DAMAGED: Final = (OSError, pa.ArrowException, UnicodeDecodeError)  # what pyarrow raises on damaged files


@dataclass(frozen=True)
class Rows:
    """Some rows of a file, or the one that stands for those that cannot be read."""

    first: int
    """Number in the file."""
    columns: pa.RecordBatch
    content: pa.Array | ImageError | None
    """The further column, if one was asked for; or why the rows cannot be read."""


@dataclass(frozen=True)
class RowGroup:
    """Where the rows of a row group are in their file."""

    index: int
    first: int
    """Number of its first row."""
    stop: int
    """Number of the row after its last one."""
    start_byte: int
    """How many bytes the row groups before it hold, uncompressed."""
    num_bytes: int
    """Uncompressed."""


def row_groups(metadata: pq.FileMetaData) -> list[RowGroup]:
    """Return the row groups of a file, in order.

    Raises:
        ImageError: The footer contradicts itself.
    """
    groups, row, byte = [], 0, 0
    for index in range(metadata.num_row_groups):
        # No more is asked of it: of a column's metadata that are damaged, pyarrow ends the process (26.0).
        group = metadata.row_group(index)
        num_rows, num_bytes = max(0, group.num_rows), max(0, group.total_byte_size)
        groups.append(RowGroup(index, row, row + num_rows, byte, num_bytes))
        row, byte = row + num_rows, byte + num_bytes
    if row != metadata.num_rows:
        raise ImageError(
            "undecodable", f"its footer is damaged: {metadata.num_rows} rows in all, {row} in its row groups"
        )
    return groups


@dataclass(frozen=True)
class OpenParquet:
    """An open file whose footer was read."""

    file: pq.ParquetFile
    groups: list[RowGroup]

    @property
    def num_rows(self) -> int:
        """Of the whole file."""
        return self.groups[-1].stop if self.groups else 0

    def groups_of(self, part: FilePart) -> list[RowGroup]:
        """Return the row groups whose middle byte a part has, as Spark deals them out."""
        share = part.share(sum(group.num_bytes for group in self.groups) + 1)
        return [group for group in self.groups if group.start_byte + group.num_bytes // 2 in share]


@dataclass(frozen=True)
class ParquetColumns:
    """Reads the columns of Parquet files in constant memory."""

    storage: Storage
    columns: RowColumns
    content: str | None = None
    """A further column to read."""
    max_rows: int = CHUNK_ROWS
    """At once."""

    @contextmanager
    def open(self, path: str) -> Iterator[OpenParquet]:
        """Open a file.

        Raises:
            OSError: It cannot be read.
            pyarrow.ArrowInvalid: It is no Parquet file, or is cut.
            ImageError: One of its columns is of a type that cannot become the wanted one; or its footer
                contradicts itself.
        """
        with self.storage.open_file(path) as source:
            # Column after column is read through a buffer: whole row groups may not fit into memory.
            file = pq.ParquetFile(
                source, pre_buffer=False, buffer_size=_BUFFER_BYTES, page_checksum_verification=True
            )
            self.columns.check(file.schema_arrow)
            yield OpenParquet(file, row_groups(file.metadata))

    def read(self, opened: OpenParquet, part: FilePart, group: RowGroup) -> Iterator[Rows]:
        """Yield the rows of a row group; where it is damaged, what can be read, and one row for the rest."""
        names = [*self.columns.names, *([] if self.content is None else [self.content])]
        bytes_per_row = group.num_bytes // max(1, group.stop - group.first)
        row, size = group.first, max(1, min(self.max_rows, _BATCH_BYTES // max(1, bytes_per_row)))
        try:
            batches = opened.file.iter_batches(
                size, row_groups=[group.index], columns=names, use_threads=False
            )
            for batch in batches:
                columns = self.columns.of(part, row, batch.num_rows, batch)
                yield Rows(row, columns, None if self.content is None else batch.column(self.content))
                row += batch.num_rows
            if row < group.stop:
                raise OSError("its pages hold fewer rows than its footer says")
        except _DAMAGED as error:
            yield Rows(row, *self.columns.lost(part, row, group.stop, error))


def read_part(files: ParquetColumns, part: FilePart, check: Callable[[pa.Schema], None]) -> Iterator[Rows]:
    """Yield the rows of one part of a file.

    A file that cannot be read at all is one row, of the task that has its first part. Where the others cannot
    know that it found the same, because reading failed and not what was read, they have a row as well.

    Args:
        files: How to read.
        part: Which of its row groups: see `OpenParquet.groups_of`.
        check: Raises an ImageError if a file's columns are not those that are expected.
    """
    try:
        with files.open(part.path) as opened:
            check(opened.file.schema_arrow)
            for group in opened.groups_of(part):
                yield from files.read(opened, part, group)
    except (ImageError, *_DAMAGED) as error:
        if part.part == 0 or isinstance(error, OSError):
            yield Rows(0, files.columns.of_problem(part, part.image_id), file_problem(part.path, error))


def file_problem(path: str, error: Exception) -> ImageError:
    """Say of a whole file why it cannot be read."""
    status: Status = "undecodable"
    if isinstance(error, ImageError):
        status = error.status
    elif isinstance(error, FileNotFoundError | PermissionError):
        status = "missing"
    return ImageError(status, f"{path} was listed and cannot be read: {one_line(error)}")


def column_type(found: pa.Schema, name: str) -> pa.DataType:
    """Return the type of a column.

    Raises:
        ImageError: There is no such column.
    """
    if (index := found.get_field_index(name)) < 0:
        raise ImageError("missing", f"it has no column {name}. Its columns: {', '.join(found.names)}")
    return found.types[index]
