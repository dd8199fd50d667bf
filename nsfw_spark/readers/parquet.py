"""Which part of which file a task reads, and what is said of the rows that it finds there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nsfw_spark.errors import ImageError, Status
from nsfw_spark.readers.chunk import CHUNK_ROWS, Chunk
from nsfw_spark.readers.storage import Storage

_TIMESTAMP: Final = pa.timestamp("us", "UTC")
_FILE_COLUMNS: Final = (
    pa.field("image_id", pa.string()),
    pa.field("source_file", pa.string()),
    pa.field("modification_time", _TIMESTAMP),
)


@dataclass(frozen=True)
class FilePart:
    """What one task reads of a listed file."""

    path: str
    modified: pa.Scalar
    """Timestamp, microseconds, UTC."""
    part: int
    """0, 1, …"""
    parts: int

    def share(self, size: int) -> range:
        """Return which of so many bytes or rows are of this part; each is of exactly one."""
        return range(size * self.part // self.parts, size * (self.part + 1) // self.parts)

    @property
    def image_id(self) -> str:
        """Of the row that stands for all of this part."""
        return f"{self.path}#part{self.part}" if self.part else self.path


def file_parts(listed: Iterator[pa.RecordBatch]) -> Iterator[FilePart]:
    """Yield what is listed: columns `path`, `modificationTime`, `part` and `parts`."""
    for batch in listed:
        times = batch.column("modificationTime").cast(_TIMESTAMP)
        others = (batch.column(name).to_pylist() for name in ("path", "part", "parts"))
        for (path, part, parts), modified in zip(zip(*others, strict=True), times, strict=True):
            yield FilePart(path, modified, part, parts)


@dataclass(frozen=True)
class RowColumns:
    """What chunks say of the rows of a file, besides their content."""

    id_column: str | None = None
    """Whose values are the image_ids; where it is null, and where there is none, `file#row` is."""
    carried_from: tuple[str, ...] = ()
    """Names in the files of the columns that are carried along; what a file lacks is null."""
    carried: pa.Schema = field(default_factory=lambda: pa.schema([]))
    """Names and types of the same columns in the chunks."""

    @property
    def names(self) -> list[str]:
        """Return the columns to read."""
        return [*self.carried_from, *([] if self.id_column is None else [self.id_column])]

    def check(self, found: pa.Schema) -> None:
        """Raise an ImageError if a column of a file is of a type that cannot become the wanted one."""
        types = dict(zip(self.carried_from, self.carried.types, strict=True))
        if self.id_column is not None:
            types[self.id_column] = pa.string()
        for name, wanted in types.items():
            if (index := found.get_field_index(name)) < 0:
                continue
            try:
                _cast(pa.nulls(0, found.types[index]), wanted)
            except pa.ArrowException:
                raise ImageError(
                    "undecodable",
                    f"column {name} is {found.types[index]}; expected {wanted}, as in other files",
                ) from None

    def of(self, part: FilePart, first: int, num_rows: int, rows: pa.RecordBatch | None) -> pa.RecordBatch:
        """Return the columns of some rows.

        Args:
            part: The file.
            first: Number of the first row in the file.
            num_rows: How many.
            rows: The columns of the file; None where there are none.

        Raises:
            pyarrow.ArrowException: A value does not fit into the wanted type.
        """
        found = {} if rows is None else dict(zip(rows.schema.names, rows.columns, strict=True))
        numbers = pa.array(np.arange(first, first + num_rows)).cast(pa.string())
        ids = pc.binary_join_element_wise(f"{part.path}#", numbers, "")
        if self.id_column in found:
            ids = pc.coalesce(_cast(found[self.id_column], pa.string()), ids)
        carried = [
            _cast(found[name], type_) if name in found else pa.nulls(num_rows, type_)
            for name, type_ in zip(self.carried_from, self.carried.types, strict=True)
        ]
        return self._batch(part, ids, carried)

    def of_problem(self, part: FilePart, image_id: str) -> pa.RecordBatch:
        """Return the columns of the one row that stands for what cannot be read."""
        return self._batch(part, pa.array([image_id]), [pa.nulls(1, type_) for type_ in self.carried.types])

    def lost(
        self, part: FilePart, first: int, stop: int, reason: object
    ) -> tuple[pa.RecordBatch, ImageError]:
        """Return the row that stands for rows `first` to `stop - 1`, which cannot be read."""
        message = f"rows {first} to {stop - 1} of {part.path} cannot be read: {one_line(reason)}"
        return self.of_problem(part, f"{part.path}#{first}"), ImageError("undecodable", message)

    def _batch(self, part: FilePart, ids: pa.Array, carried: Sequence[pa.Array]) -> pa.RecordBatch:
        file = [pa.repeat(pa.scalar(part.path), len(ids)), pa.repeat(part.modified, len(ids))]
        return pa.RecordBatch.from_arrays(
            [ids, *file, *carried], schema=pa.schema([*_FILE_COLUMNS, *self.carried])
        )


def one_line(reason: object) -> str:
    """Return what was said, without line breaks."""
    return " ".join(str(reason).split())


def _cast(column: pa.Array, type_: pa.DataType) -> pa.Array:
    # Nanoseconds, as pandas writes them, become Spark's microseconds.
    options = pc.CastOptions(type_, allow_time_truncate=True)
    column = column if column.type == type_ else pc.cast(column, options=options)
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        if type_ != pa.string():
            raise
        return pa.array([_text(value) for value in column], type_)
    return column


def _text(value: pa.Scalar) -> str | None:
    """Return a string that nobody has checked: not all that is written as text is UTF-8."""
    return value.as_buffer().to_pybytes().decode(errors="replace") if value.is_valid else None


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


@dataclass(frozen=True)
class ParquetReader:
    """Reads images from a binary column, or from Hugging Face's struct of `bytes` and `path`."""

    storage: Storage
    content_column: str
    id_column: str | None = None
    """See `RowColumns`, as of all that follows."""
    carried_from: tuple[str, ...] = ()
    carried: pa.Schema = field(default_factory=lambda: pa.schema([]))

    def read(self, listed: Iterator[pa.RecordBatch]) -> Iterator[Chunk]:
        """Yield the images of parts of files: see `Reader.read` and `file_parts`."""
        columns = RowColumns(self.id_column, self.carried_from, self.carried)
        files = ParquetColumns(self.storage, columns, self.content_column)
        for part in file_parts(listed):
            for rows in read_part(files, part, self._check):
                if isinstance(rows.content, ImageError):
                    yield Chunk(rows.columns, [rows.content])
                else:
                    yield Chunk(rows.columns, _images(rows.content))

    def _check(self, found: pa.Schema) -> None:
        type_ = column_type(found, self.content_column)
        if pa.types.is_struct(type_) and type_.get_field_index("bytes") >= 0:
            type_ = type_.field("bytes").type
        if not (pa.types.is_binary(type_) or pa.types.is_large_binary(type_)):
            raise ImageError(
                "unsupported",
                f"column {self.content_column} is {type_}; expected binary, or a struct of binary `bytes`",
            )


def _images(content: pa.Array) -> Iterator[bytes | ImageError]:
    """Yield the encoded images of a column."""
    names = pa.nulls(len(content))
    if pa.types.is_struct(content.type):
        fields = dict(zip((field.name for field in content.type), content.flatten(), strict=True))
        content, names = fields["bytes"], fields.get("path", names)
    for value, name in zip(content, names, strict=True):
        image = value.as_py()
        yield _no_image(name) if image is None else image


def _no_image(name: pa.Scalar) -> ImageError:
    said = "the row holds no image: its bytes are null"
    if name.is_valid and pa.types.is_string(name.type):
        path = name.as_buffer().to_pybytes().decode(errors="replace")  # nobody has checked that it is UTF-8
        said += f", its path names {path}: files beside the table are not read"
    return ImageError("missing", said)
