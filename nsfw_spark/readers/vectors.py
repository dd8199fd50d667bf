"""Embeddings that were computed elsewhere: in tables, and in `.npy` files with a Parquet file beside them.

In: what Spark lists. Out: blocks of float32 vectors; a vector that no head can score says so in its row.
Which encoder made them nobody can tell.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from nsfw_spark.errors import ImageError
from nsfw_spark.readers.chunk import VectorChunk
from nsfw_spark.readers.npy import NpyFile, open_npy
from nsfw_spark.readers.parquet import (
    FilePart,
    OpenParquet,
    ParquetColumns,
    RowColumns,
    Rows,
    column_type,
    file_parts,
    file_problem,
    read_part,
)
from nsfw_spark.readers.storage import Storage

BLOCK_ROWS: Final = 2048
"""Vectors in a chunk: enough that what a chunk costs does not count, few enough for the processor's cache."""

_CLIP_RETRIEVAL: Final = re.compile(r"(.*)/img_emb/img_emb_(\d+)\.npy", re.DOTALL)


@dataclass(frozen=True)
class VectorColumnReader:
    """Takes embeddings from the column `content` of rows that Spark has read; others are carried along."""

    dimension: int
    """D of the model."""

    def read(self, listed: Iterator[pa.RecordBatch]) -> Iterator[VectorChunk]:
        """Yield the embeddings of rows: see `VectorReader.read`."""
        for batch in listed:
            for start in range(0, batch.num_rows, BLOCK_ROWS):
                some = batch.slice(start, BLOCK_ROWS)
                yield _chunk(some.drop_columns("content"), some.column("content"), self.dimension)


@dataclass(frozen=True)
class ParquetVectorReader:
    """Reads embeddings from a column of lists of float16, float32 or float64."""

    storage: Storage
    content_column: str
    dimension: int
    """D of the model."""
    id_column: str | None = None
    """See `RowColumns`, as of all that follows."""
    carried_from: tuple[str, ...] = ()
    carried: pa.Schema = field(default_factory=lambda: pa.schema([]))

    def read(self, listed: Iterator[pa.RecordBatch]) -> Iterator[VectorChunk]:
        """Yield the embeddings of parts of files: see `VectorReader.read` and `file_parts`."""
        columns = RowColumns(self.id_column, self.carried_from, self.carried)
        files = ParquetColumns(self.storage, columns, self.content_column, BLOCK_ROWS)
        for part in file_parts(listed):
            for rows in read_part(files, part, self._check):
                if isinstance(rows.content, ImageError):
                    yield _problem(rows.columns, rows.content, self.dimension)
                else:
                    yield _chunk(rows.columns, rows.content, self.dimension)

    def _check(self, found: pa.Schema) -> None:
        type_ = column_type(found, self.content_column)
        is_list = (
            pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_)
        )
        if not is_list or not pa.types.is_floating(type_.value_type):
            raise ImageError(
                "unsupported",
                f"column {self.content_column} is {type_}; expected a list of float16, float32 or float64",
            )


@dataclass(frozen=True)
class NpyReader:
    """Reads embeddings from `.npy` files, and what is known of their rows from the Parquet file beside each.

    Beside `img_emb/img_emb_0.npy`, as clip-retrieval writes it, that is `metadata/metadata_0.parquet`; beside
    any `x.npy` it is `x.parquet`. Row i of one belongs to row i of the other.
    """

    storage: Storage
    dimension: int
    """D of the model."""
    id_column: str | None = None
    """See `RowColumns`, as of all that follows."""
    carried_from: tuple[str, ...] = ()
    carried: pa.Schema = field(default_factory=lambda: pa.schema([]))

    def read(self, listed: Iterator[pa.RecordBatch]) -> Iterator[VectorChunk]:
        """Yield the embeddings of parts of files: see `VectorReader.read` and `file_parts`."""
        for part in file_parts(listed):
            with ExitStack() as opened:
                try:
                    npy = open_npy(opened.enter_context(self.storage.open_file(part.path)))
                    num_complete = npy.complete_rows
                    metadata = self._open_metadata(part, opened)
                except (ImageError, OSError, pa.ArrowException) as error:
                    if part.part == 0 or isinstance(error, OSError):
                        yield self._lost(part, file_problem(part.path, error))
                    continue
                yield from self._rows(part, npy, num_complete, metadata)

    def _rows(
        self, part: FilePart, npy: NpyFile, num_complete: int, metadata: OpenParquet | None
    ) -> Iterator[VectorChunk]:
        """Yield the rows of a part, and a row for what the file lacks."""
        num_rows = npy.num_rows if metadata is None else min(npy.num_rows, metadata.num_rows)
        wanted = part.share(npy.num_rows)
        there = range(wanted.start, min(wanted.stop, num_rows, num_complete))
        for rows in self._columns(part, there, metadata):
            if isinstance(rows.content, ImageError):
                message = f"by the Parquet file beside it, {rows.content}"
                yield _problem(rows.columns, ImageError("undecodable", message), self.dimension)
                continue
            stop = rows.first + rows.columns.num_rows
            try:
                yield self._block(rows.columns, npy, rows.first, stop)
            except OSError as error:
                yield self._cut(part, rows.first, there.stop, error)
                return
        if num_complete < num_rows and num_complete in wanted:
            yield self._cut(part, num_complete, num_rows, "the file ends there")
        if metadata is not None and metadata.num_rows != npy.num_rows and part.part == 0:
            yield self._lost(part, _unequal(part.path, npy, metadata))

    def _columns(self, part: FilePart, wanted: range, metadata: OpenParquet | None) -> Iterator[Rows]:
        """Yield the columns of rows, in blocks."""
        if metadata is None:
            for first in wanted[::BLOCK_ROWS]:
                num_rows = min(BLOCK_ROWS, wanted.stop - first)
                yield Rows(first, self._wanted.of(part, first, num_rows, None), None)
            return
        for group in metadata.groups:
            if group.stop <= wanted.start or group.first >= wanted.stop:
                continue
            for rows in self._metadata.read(metadata, part, group):
                if isinstance(rows.content, ImageError):
                    if rows.first in wanted:  # else it is the row of another part
                        yield rows
                    continue
                first = max(wanted.start, rows.first)
                num_rows = min(wanted.stop, rows.first + rows.columns.num_rows) - first
                if num_rows > 0:
                    yield Rows(first, rows.columns.slice(first - rows.first, num_rows), rows.content)

    def _open_metadata(self, part: FilePart, opened: ExitStack) -> OpenParquet | None:
        """Open the Parquet file beside a `.npy` file; None where there is none."""
        for path in metadata_paths(part.path):
            try:
                return opened.enter_context(self._metadata.open(path))
            except FileNotFoundError:
                continue
            except OSError as error:
                raise OSError(f"{path} beside it cannot be read: {error}") from error
            except (ImageError, pa.ArrowException) as error:
                raise ImageError("undecodable", f"{path} beside it cannot be read: {error}") from error
        return None

    @property
    def _metadata(self) -> ParquetColumns:
        return ParquetColumns(self.storage, self._wanted, None, BLOCK_ROWS)

    @property
    def _wanted(self) -> RowColumns:
        return RowColumns(self.id_column, self.carried_from, self.carried)

    def _block(self, columns: pa.RecordBatch, npy: NpyFile, start: int, stop: int) -> VectorChunk:
        if npy.num_columns == self.dimension:
            vectors = npy.read(start, stop)
            return VectorChunk(columns, vectors, _not_finite(vectors))
        error = _wrong_dimension(npy.num_columns, self.dimension)
        vectors = np.zeros((stop - start, self.dimension), np.float32)
        return VectorChunk(columns, vectors, dict.fromkeys(range(stop - start), error))

    def _cut(self, part: FilePart, first: int, stop: int, reason: object) -> VectorChunk:
        columns, error = self._wanted.lost(part, first, stop, reason)
        return _problem(columns, error, self.dimension)

    def _lost(self, part: FilePart, error: ImageError) -> VectorChunk:
        return _problem(self._wanted.of_problem(part, part.image_id), error, self.dimension)


def metadata_paths(npy: str) -> list[str]:
    """Return where the Parquet file beside a `.npy` file may be, the likeliest first."""
    beside = [npy.removesuffix(".npy") + ".parquet"]
    match = _CLIP_RETRIEVAL.fullmatch(npy)
    return [f"{match[1]}/metadata/metadata_{match[2]}.parquet", *beside] if match else beside


def _chunk(columns: pa.RecordBatch, lists: pa.Array, dimension: int) -> VectorChunk:
    """Make a chunk of a column of lists; without a copy where all are well and float32."""
    lengths = pc.fill_null(pc.list_value_length(lists), -1).to_numpy(zero_copy_only=False)
    fitting = lengths == dimension
    is_whole = bool(fitting.all())
    numbers = (lists if is_whole else lists.filter(pa.array(fitting))).flatten()
    values = numbers.to_numpy(zero_copy_only=False)  # a null among the numbers becomes NaN
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is found out
        vectors = np.asarray(values, np.float32).reshape(-1, dimension)
    if is_whole:
        return VectorChunk(columns, vectors, _not_finite(vectors))
    # Rows without a vector hold anything that is not a second problem.
    all_vectors = np.ones((len(lengths), dimension), np.float32)
    all_vectors[fitting] = vectors
    problems = _not_finite(all_vectors)
    for row in np.flatnonzero(~fitting).tolist():
        problems[row] = _wrong_dimension(int(lengths[row]), dimension)
    return VectorChunk(columns, all_vectors, problems)


def _problem(columns: pa.RecordBatch, error: ImageError, dimension: int) -> VectorChunk:
    return VectorChunk(columns, np.zeros((1, dimension), np.float32), {0: error})


def _not_finite(vectors: npt.NDArray[np.float32]) -> dict[int, ImageError]:
    """Say which vectors, shape (M, D), have no direction, by row."""
    with np.errstate(over="ignore", invalid="ignore"):
        squares = np.vecdot(vectors, vectors)  # (M,)
    # Very long and very short ones leave float32's range here: each is looked at again.
    suspects = np.flatnonzero(~(np.isfinite(squares) & (squares > 0))).tolist()
    found = {row: _direction_error(vectors[row]) for row in suspects}
    return {row: error for row, error in found.items() if error is not None}


def _direction_error(vector: npt.NDArray[np.float32]) -> ImageError | None:
    num_bad = int(np.count_nonzero(~np.isfinite(vector)))
    if num_bad:
        return ImageError(
            "not_finite", f"the embedding has {num_bad} numbers of {vector.size} that are not finite"
        )
    if not vector.any():
        return ImageError("not_finite", f"the embedding is {vector.size} zeros: it has no direction")
    return None


def _wrong_dimension(got: int, dimension: int) -> ImageError:
    if got < 0:
        return ImageError("missing", "the row holds no embedding: it is null")
    return ImageError(
        "unsupported",
        f"the embedding has {got} numbers, the model's have {dimension}: another encoder made it. Name the "
        "model that it is of: --model",
    )


def _unequal(path: str, npy: NpyFile, metadata: OpenParquet) -> ImageError:
    found, num_rows = npy.num_rows, metadata.num_rows
    least = min(found, num_rows)
    left = f"; rows {least} to {found - 1} have no metadata and are not scored" if found > least else ""
    return ImageError(
        "undecodable",
        f"{path} has {found} rows and the Parquet file beside it {num_rows}; expected as many{left}",
    )
