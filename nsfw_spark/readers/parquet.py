"""Parquet: the rows of Parquet files, one part at a time; the worker's half of `spark.sources.parquet`.

In: parts of files that Spark lists; several tasks may share a large file. Out: chunks of images, with the
image_id, the file and the carried columns. A damaged page costs the rest of its row group, a damaged footer
the file. `readers.vectors` reads embeddings with the same functions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nsfw_spark.errors import STORAGE_FAILED, ImageError, Status
from nsfw_spark.readers.chunk import CHUNK_ROWS, FILE_COLUMNS, TIMESTAMP, Chunk
from nsfw_spark.readers.storage import Storage, unread

PART_BYTES: Final = 64 << 20
"""Bytes of a file that one task reads, about: a larger file is listed once for each of its parts."""

IMAGE_NAMES: Final = ("image", "content", "bytes", "img", "jpg", "picture", "photo")
"""Usual names of the column with images; the first that a table has wins over other columns of the type."""

_BUFFER_BYTES: Final = 4 << 20  # for each column; each refill is a request to a store
_BATCH_BYTES: Final = 32 << 20
_DAMAGED: Final = (OSError, pa.ArrowException, UnicodeDecodeError)  # pyarrow's errors for damaged files


@dataclass(frozen=True)
class FilePart:
    """The share of a listed file that one task reads."""

    path: str
    modified: pa.Scalar
    """Modification time of the file: timestamp, microseconds, UTC."""
    part: int
    """Number of the part: 0, 1, …"""
    parts: int

    def share(self, size: int) -> range:
        """Return the bytes or rows, out of `size`, of this part; each belongs to exactly one part."""
        return range(size * self.part // self.parts, size * (self.part + 1) // self.parts)

    @property
    def image_id(self) -> str:
        """The image_id of the row that stands for an unreadable part."""
        return f"{self.path}#part{self.part}" if self.part else self.path

    def reports(self, error: Exception) -> bool:
        """Whether this part gets a row for an error of the whole file.

        All tasks find the same damage, so the first part reports it. A failure of the store, or a
        file that is gone, may hit one task only.
        """
        is_of_store = isinstance(error, FileNotFoundError) or str(error).startswith(STORAGE_FAILED)
        return self.part == 0 or is_of_store


def file_parts(listed: Iterator[pa.RecordBatch]) -> Iterator[FilePart]:
    """Yield the parts in a listing with the columns `path`, `modificationTime`, `part` and `parts`."""
    for batch in listed:
        times = batch.column("modificationTime").cast(TIMESTAMP)
        others = (batch.column(name).to_pylist() for name in ("path", "part", "parts"))
        for (path, part, parts), modified in zip(zip(*others, strict=True), times, strict=True):
            yield FilePart(path, modified, part, parts)


@dataclass(frozen=True)
class RowColumns:
    """The columns that a reader takes from a Parquet file, and the columns of its chunks."""

    content: str | None = None
    """Column with the images or embeddings; None where the file holds neither."""
    id: str | None = None
    """Column with the image_ids. A row whose id is null or absent is called `file#row`."""
    carried: Mapping[str, pa.Field] = field(default_factory=dict)
    """Column in the file → carried column in the chunks; null where a file lacks the column."""

    @property
    def names(self) -> list[str]:
        """The columns to read."""
        return [*self.carried, *(name for name in (self.id, self.content) if name is not None)]

    def check(self, file: pa.Schema) -> None:
        """Raise an ImageError if a column of a file has a type that cannot become the expected one."""
        types = {name: carried.type for name, carried in self.carried.items()}
        if self.id is not None:
            types[self.id] = pa.string()
        for name, expected in types.items():
            if (index := file.get_field_index(name)) < 0:
                continue
            try:
                _cast(pa.nulls(0, file.types[index]), expected)
            except pa.ArrowException:
                message = f"column {name} is {file.types[index]}; expected {expected}, as in other files"
                raise ImageError("undecodable", message) from None

    def content_field(self, file: pa.Schema) -> pa.Field:
        """Return the content column of a file; raise an ImageError if there is none."""
        if (index := file.get_field_index(str(self.content))) < 0:
            message = f"it has no column {self.content}. Its columns: {', '.join(file.names)}"
            raise ImageError("missing", message)
        return file.field(index)

    def of_rows(
        self, part: FilePart, first: int, num_rows: int, rows: pa.RecordBatch | None = None
    ) -> pa.RecordBatch:
        """Return the chunk's columns for rows of a file.

        Args:
            part: The file.
            first: Number of the first row in the file.
            num_rows: Number of rows.
            rows: The file's columns; None if no file has them.

        Raises:
            pyarrow.ArrowException: A value does not fit into the expected type.
        """
        values = {} if rows is None else dict(zip(rows.schema.names, rows.columns, strict=True))
        numbers = pa.array(np.arange(first, first + num_rows)).cast(pa.string())
        ids = pc.binary_join_element_wise(f"{part.path}#", numbers, "")
        if self.id in values:
            ids = pc.coalesce(_cast(values[self.id], pa.string()), ids)
        carried = [
            _cast(values[name], carried.type) if name in values else pa.nulls(num_rows, carried.type)
            for name, carried in self.carried.items()
        ]
        return self._batch(part, ids, carried)

    def of_problem(self, part: FilePart, image_id: str) -> pa.RecordBatch:
        """Return the chunk's columns for the one row that stands for unreadable rows."""
        return self._batch(part, pa.array([image_id]), [pa.nulls(1, f.type) for f in self.carried.values()])

    def lost(
        self, part: FilePart, first: int, stop: int, reason: object
    ) -> tuple[pa.RecordBatch, ImageError]:
        """Return columns and error of the row that stands for the unreadable rows `first` to `stop - 1`."""
        rows = f"rows {first} to {stop - 1} of {part.path} cannot be read"
        return self.of_problem(part, f"{part.path}#{first}"), problem(rows, reason)

    def _batch(self, part: FilePart, ids: pa.Array, carried: Sequence[pa.Array]) -> pa.RecordBatch:
        file = [pa.repeat(pa.scalar(part.path), len(ids)), pa.repeat(part.modified, len(ids))]
        schema = pa.schema([*FILE_COLUMNS, *self.carried.values()])
        return pa.RecordBatch.from_arrays([ids, *file, *carried], schema=schema)


class Rows(NamedTuple):
    """Rows of a file, or the one row that stands for unreadable rows."""

    first: int
    """Number of the first row in the file."""
    columns: pa.RecordBatch
    content: pa.Array | ImageError | None
    """`RowColumns.content`; or the reason why the rows cannot be read."""


@dataclass(frozen=True)
class RowGroup:
    """The place of a row group in its file: rows `first` to `stop - 1`, and its uncompressed bytes."""

    index: int
    first: int
    stop: int
    start_byte: int
    num_bytes: int


@dataclass(frozen=True)
class OpenParquet:
    """An open file and its footer."""

    file: pq.ParquetFile
    columns: RowColumns
    groups: Sequence[RowGroup]

    @property
    def num_rows(self) -> int:
        """Rows of the whole file."""
        return self.groups[-1].stop if self.groups else 0

    def groups_of(self, part: FilePart) -> list[RowGroup]:
        """Return the row groups whose middle byte lies in a part, as Spark deals them out."""
        share = part.share(sum(group.num_bytes for group in self.groups) + 1)
        return [group for group in self.groups if group.start_byte + group.num_bytes // 2 in share]

    def read(self, part: FilePart, group: RowGroup, max_rows: int) -> Iterator[Rows]:
        """Yield a row group, at most `max_rows` at once; after damage, one row for the rest of the group."""
        bytes_per_row = group.num_bytes // max(1, group.stop - group.first)
        row, size = group.first, max(1, min(max_rows, _BATCH_BYTES // max(1, bytes_per_row)))
        content, names = self.columns.content, self.columns.names
        try:
            for batch in self.file.iter_batches(
                size, row_groups=[group.index], columns=names, use_threads=False
            ):
                columns = self.columns.of_rows(part, row, batch.num_rows, batch)
                yield Rows(row, columns, None if content is None else batch.column(content))
                row += batch.num_rows
            if row < group.stop:
                raise OSError("its pages hold fewer rows than its footer says")
        except (ImageError, *_DAMAGED) as error:
            yield Rows(row, *self.columns.lost(part, row, group.stop, error))


@contextmanager
def open_parquet(storage: Storage, path: str, columns: RowColumns) -> Iterator[OpenParquet]:
    """Open a file.

    Raises:
        FileNotFoundError: There is no such file.
        pyarrow.ArrowInvalid: The file is not Parquet, or is truncated.
        ImageError: The store failed, a column has another type than expected, or the footer contradicts
            itself.
    """
    with storage.open_file(path) as source:
        # Each column is read through a buffer: a whole row group may not fit into memory.
        file = pq.ParquetFile(
            source, pre_buffer=False, buffer_size=_BUFFER_BYTES, page_checksum_verification=True
        )
        columns.check(file.schema_arrow)
        yield OpenParquet(file, columns, _row_groups(file.metadata))


def _row_groups(metadata: pq.FileMetaData) -> list[RowGroup]:
    groups, row, byte = [], 0, 0
    for index in range(metadata.num_row_groups):
        # Only these two numbers: on damaged metadata of a column, pyarrow ends the process (26.0).
        group = metadata.row_group(index)
        num_rows, num_bytes = max(0, group.num_rows), max(0, group.total_byte_size)
        groups.append(RowGroup(index, row, row + num_rows, byte, num_bytes))
        row, byte = row + num_rows, byte + num_bytes
    if row != metadata.num_rows:
        raise ImageError(
            "undecodable", f"its footer is damaged: {metadata.num_rows} rows in all, {row} in its row groups"
        )
    return groups


def read_parts(
    listed: Iterator[pa.RecordBatch],
    storage: Storage,
    columns: RowColumns,
    max_rows: int,
    check: Callable[[pa.Field], None],
) -> Iterator[Rows]:
    """Yield the rows of all listed parts, at most `max_rows` at once; see `file_parts` for the listing.

    `check` raises an ImageError if the content column has another type than expected. An unreadable file is
    one row: see `FilePart.reports`.
    """
    for part in file_parts(listed):
        try:
            with open_parquet(storage, part.path, columns) as opened:
                check(columns.content_field(opened.file.schema_arrow))
                for group in opened.groups_of(part):
                    yield from opened.read(part, group, max_rows)
        except (ImageError, *_DAMAGED) as error:
            if part.reports(error):
                yield Rows(0, columns.of_problem(part, part.image_id), file_problem(part.path, error))


def file_problem(path: str, error: Exception) -> ImageError:
    """Return the error of the row that stands for an unreadable file."""
    gone = unread(error) if isinstance(error, FileNotFoundError) else error
    return problem(f"{path} was listed and cannot be read", gone)


def problem(what: str, reason: object) -> ImageError:
    """Return the error of rows that cannot be read; the message of a store's failure keeps its beginning."""
    status: Status = reason.status if isinstance(reason, ImageError) else "undecodable"
    text = _one_line(reason)
    begins = f"{STORAGE_FAILED}: "
    start = begins if text.startswith(begins) else ""
    return ImageError(status, f"{start}{what}: {text.removeprefix(begins)}")


@dataclass(frozen=True)
class ParquetReader:
    """Reads images from a binary column, or from Hugging Face's struct of `bytes` and `path`."""

    storage: Storage
    columns: RowColumns

    def read(self, listed: Iterator[pa.RecordBatch]) -> Iterator[Chunk]:
        """Yield the images of parts of files: see `Reader.read` and `file_parts`."""
        for rows in read_parts(listed, self.storage, self.columns, CHUNK_ROWS, check_image_column):
            content = rows.content
            yield Chunk(rows.columns, [content] if isinstance(content, ImageError) else images(content))


def check_image_column(column: pa.Field) -> None:
    """Raise an ImageError if a column has another type than that of images."""
    type_ = column.type
    if pa.types.is_struct(type_) and type_.get_field_index("bytes") >= 0:
        type_ = type_.field("bytes").type
    if not (pa.types.is_binary(type_) or pa.types.is_large_binary(type_)):
        message = f"column {column.name} is {type_}; expected binary, or a struct of binary `bytes`"
        raise ImageError("unsupported", message)


def images(content: pa.Array) -> Iterator[bytes | ImageError]:
    """Yield the encoded images in a column."""
    paths = pa.nulls(len(content))
    if pa.types.is_struct(content.type):
        fields = dict(zip((field.name for field in content.type), content.flatten(), strict=True))
        content, paths = fields["bytes"], fields.get("path", paths)
    for value, path in zip(content, paths, strict=True):
        image = value.as_py()
        yield _no_image(path) if image is None else image


def _no_image(path: pa.Scalar) -> ImageError:
    message = "the row holds no image: its bytes are null"
    if path.is_valid and pa.types.is_string(path.type):
        message += f", its path names {_text(path)}: files beside the table are not read"
    return ImageError("missing", message)


def _cast(column: pa.Array, type_: pa.DataType) -> pa.Array:
    # pandas writes nanoseconds; Spark has microseconds.
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
    """Decode a string of a file, which may not be UTF-8."""
    return value.as_buffer().to_pybytes().decode(errors="replace") if value.is_valid else None


def _one_line(reason: object) -> str:
    return " ".join(str(reason).split())
