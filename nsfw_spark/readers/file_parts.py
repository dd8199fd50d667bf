"""Which part of which file a task reads, and what is said of the rows that it finds there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nsfw_spark.errors import ImageError

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
