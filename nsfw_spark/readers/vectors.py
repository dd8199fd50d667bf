"""Embeddings that another program computed: in tables, Parquet files, or `.npy` files with their metadata.

In: files or rows that Spark lists. Out: blocks of float32 vectors; a vector that no head can score has a
problem in its row. Nothing here can tell which encoder made them. The driver's half is `spark.sources`.
The last part reads `.npy` files: NumPy's format, but not pickle; numpy parses the header, and nothing else.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from nsfw_spark.errors import ImageError
from nsfw_spark.readers.chunk import VectorChunk, slices
from nsfw_spark.readers.parquet import (
    FilePart,
    OpenParquet,
    RowColumns,
    Rows,
    file_parts,
    file_problem,
    open_parquet,
    problem,
    read_parts,
)
from nsfw_spark.readers.storage import Storage

BLOCK_ROWS: Final = 2048
"""Vectors in a chunk: enough to make the overhead negligible, few enough for the processor's cache."""

IMAGE_FOLDER: Final = "img_emb"
"""Folder in which clip-retrieval writes the embeddings of images."""
METADATA_FOLDER: Final = "metadata"
"""Folder in which clip-retrieval writes their ids and captions, beside `IMAGE_FOLDER`."""
_CLIP_RETRIEVAL: Final = re.compile(rf"(.*)/{IMAGE_FOLDER}/{IMAGE_FOLDER}_(\d+)\.npy", re.DOTALL)
_READ_HEADER: Final = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
_MAX_ROWS: Final = 1 << 62
_FLOATS: Final = (np.float16, np.float32, np.float64)


@dataclass(frozen=True)
class VectorColumnReader:
    """Takes embeddings from the column `content` of rows that Spark has read; carries all other columns."""

    dimension: int
    """D of the model."""

    def read(self, listed: Iterator[pa.RecordBatch]) -> Iterator[VectorChunk]:
        """Yield the embeddings of rows: see `VectorReader.read`."""
        for rows in slices(listed, BLOCK_ROWS):
            yield _chunk(rows.drop_columns("content"), rows.column("content"), self.dimension)


@dataclass(frozen=True)
class ParquetVectorReader:
    """Reads embeddings from a column of lists of float16, float32 or float64."""

    storage: Storage
    dimension: int
    """D of the model."""
    columns: RowColumns

    def read(self, listed: Iterator[pa.RecordBatch]) -> Iterator[VectorChunk]:
        """Yield the embeddings of parts of files: see `VectorReader.read` and `file_parts`."""
        for rows in read_parts(listed, self.storage, self.columns, BLOCK_ROWS, _check_vector_column):
            if isinstance(rows.content, ImageError):
                yield _problem(rows.columns, rows.content, self.dimension)
            else:
                yield _chunk(rows.columns, rows.content, self.dimension)


def _check_vector_column(column: pa.Field) -> None:
    type_ = column.type
    is_list = pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_)
    if not is_list or not pa.types.is_floating(type_.value_type):
        message = f"column {column.name} is {type_}; expected a list of float16, float32 or float64"
        raise ImageError("unsupported", message)


@dataclass(frozen=True)
class NpyReader:
    """Reads embeddings from `.npy` files, and ids and carried columns from a Parquet file beside each.

    Row i of one belongs to row i of the other. See `metadata_paths` for the name of the Parquet file.
    """

    storage: Storage
    dimension: int
    """D of the model."""
    columns: RowColumns = field(default_factory=RowColumns)
    """Columns of the Parquet file; `content` is None."""

    def read(self, listed: Iterator[pa.RecordBatch]) -> Iterator[VectorChunk]:
        """Yield the embeddings of parts of files: see `VectorReader.read` and `file_parts`."""
        for part in file_parts(listed):
            with ExitStack() as opened:
                try:
                    npy = open_npy(opened.enter_context(self.storage.open_file(part.path)))
                    num_complete = npy.complete_rows
                    metadata = self._open_metadata(part, opened)
                except (ImageError, OSError, pa.ArrowException) as error:
                    if part.reports(error):
                        yield self._lost(part, file_problem(part.path, error))
                    continue
                yield from self._rows(part, npy, num_complete, metadata)

    def _rows(
        self, part: FilePart, npy: NpyFile, num_complete: int, metadata: OpenParquet | None
    ) -> Iterator[VectorChunk]:
        """Yield the rows of a part, and a row for the rows that the file lacks."""
        num_rows = npy.num_rows if metadata is None else min(npy.num_rows, metadata.num_rows)
        share = part.share(npy.num_rows)
        readable = range(share.start, min(share.stop, num_rows, num_complete))
        for rows in self._columns(part, readable, metadata):
            if isinstance(rows.content, ImageError):
                error = problem("by the Parquet file beside it", rows.content)
                yield _problem(rows.columns, error, self.dimension)
                continue
            try:
                yield self._block(rows, npy)
            except (ImageError, OSError) as failure:
                yield self._cut(part, rows.first, readable.stop, failure)
                return
        if num_complete < num_rows and num_complete in share:
            yield self._cut(part, num_complete, num_rows, "the file ends there")
        if metadata is not None and metadata.num_rows != npy.num_rows and part.part == 0:
            yield self._lost(part, _unequal(part.path, npy, metadata))

    def _columns(self, part: FilePart, wanted: range, metadata: OpenParquet | None) -> Iterator[Rows]:
        """Yield the columns of rows, in blocks."""
        if metadata is None:
            for first in wanted[::BLOCK_ROWS]:
                num_rows = min(BLOCK_ROWS, wanted.stop - first)
                yield Rows(first, self.columns.of_rows(part, first, num_rows), None)
            return
        for group in metadata.groups:
            if group.stop <= wanted.start or group.first >= wanted.stop:
                continue
            for rows in metadata.read(part, group, BLOCK_ROWS):
                if isinstance(rows.content, ImageError):
                    if rows.first in wanted:  # else another part yields this row
                        yield rows
                    continue
                first = max(wanted.start, rows.first)
                num_rows = min(wanted.stop, rows.first + rows.columns.num_rows) - first
                if num_rows > 0:
                    yield Rows(first, rows.columns.slice(first - rows.first, num_rows), None)

    def _open_metadata(self, part: FilePart, opened: ExitStack) -> OpenParquet | None:
        """Open the Parquet file beside a `.npy` file; None if there is no such file."""
        for path in metadata_paths(part.path):
            try:
                return opened.enter_context(open_parquet(self.storage, path, self.columns))
            except FileNotFoundError:
                continue
            except (ImageError, OSError, pa.ArrowException) as error:
                raise problem(f"{path} beside it cannot be read", error) from error
        return None

    def _block(self, rows: Rows, npy: NpyFile) -> VectorChunk:
        num_rows = rows.columns.num_rows
        if npy.num_columns == self.dimension:
            vectors = npy.read(rows.first, rows.first + num_rows)
            return VectorChunk(rows.columns, vectors, _not_finite(vectors))
        error = _wrong_dimension(npy.num_columns, self.dimension)
        vectors = np.zeros((num_rows, self.dimension), np.float32)
        return VectorChunk(rows.columns, vectors, dict.fromkeys(range(num_rows), error))

    def _cut(self, part: FilePart, first: int, stop: int, reason: object) -> VectorChunk:
        return _problem(*self.columns.lost(part, first, stop, reason), self.dimension)

    def _lost(self, part: FilePart, error: ImageError) -> VectorChunk:
        return _problem(self.columns.of_problem(part, part.image_id), error, self.dimension)


def metadata_paths(npy: str) -> list[str]:
    """Return the possible names of the Parquet file beside a `.npy` file, the likeliest first.

    clip-retrieval puts `metadata/metadata_0.parquet` beside `img_emb/img_emb_0.npy`. Beside any other `x.npy`
    lies `x.parquet`.
    """
    beside = [npy.removesuffix(".npy") + ".parquet"]
    match = _CLIP_RETRIEVAL.fullmatch(npy)
    if match is None:
        return beside
    return [f"{match[1]}/{METADATA_FOLDER}/{METADATA_FOLDER}_{match[2]}.parquet", *beside]


def _chunk(columns: pa.RecordBatch, lists: pa.Array, dimension: int) -> VectorChunk:
    """Make a chunk from a column of lists; without a copy if all are float32 of the right length."""
    lengths = pc.fill_null(pc.list_value_length(lists), -1).to_numpy(zero_copy_only=False)
    fitting = lengths == dimension
    is_whole = bool(fitting.all())
    numbers = (lists if is_whole else lists.filter(pa.array(fitting))).flatten()
    values = numbers.to_numpy(zero_copy_only=False)  # a null among the numbers becomes NaN
    with np.errstate(over="ignore"):  # numbers beyond float32 become infinite; `_not_finite` reports them
        vectors = np.asarray(values, np.float32).reshape(-1, dimension)
    if is_whole:
        return VectorChunk(columns, vectors, _not_finite(vectors))
    # Ones: a row without a vector must not get a second problem.
    all_vectors = np.ones((len(lengths), dimension), np.float32)
    all_vectors[fitting] = vectors
    problems = _not_finite(all_vectors)
    for row in np.flatnonzero(~fitting).tolist():
        problems[row] = _wrong_dimension(int(lengths[row]), dimension)
    return VectorChunk(columns, all_vectors, problems)


def _problem(columns: pa.RecordBatch, error: ImageError, dimension: int) -> VectorChunk:
    return VectorChunk(columns, np.zeros((1, dimension), np.float32), {0: error})


def _not_finite(vectors: npt.NDArray[np.float32]) -> dict[int, ImageError]:
    """Return the errors of vectors, shape (M, D), that have no direction, by row."""
    with np.errstate(over="ignore", invalid="ignore"):
        squares = np.vecdot(vectors, vectors)  # (M,)
    # The square of a very long or short vector leaves float32's range: each such vector is checked again.
    problems = {}
    for row in np.flatnonzero(~(np.isfinite(squares) & (squares > 0))).tolist():
        vector = vectors[row]
        if num_bad := int(np.count_nonzero(~np.isfinite(vector))):
            message = f"the embedding has {num_bad} numbers of {vector.size} that are not finite"
        elif vector.any():
            continue
        else:
            message = f"the embedding is {vector.size} zeros: it has no direction"
        problems[row] = ImageError("not_finite", message)
    return problems


def _wrong_dimension(got: int, dimension: int) -> ImageError:
    if got < 0:
        return ImageError("missing", "the row holds no embedding: it is null")
    message = f"the embedding has {got} numbers, the model's have {dimension}: another encoder made it"
    return ImageError("unsupported", f"{message}. Name the model that made it: --model")


def _unequal(path: str, npy: NpyFile, metadata: OpenParquet) -> ImageError:
    num_vectors, num_rows = npy.num_rows, metadata.num_rows
    message = f"{path} has {num_vectors} rows and the Parquet file beside it {num_rows}; expected as many"
    if num_vectors > num_rows:
        message += f"; rows {num_rows} to {num_vectors - 1} have no metadata and are not scored"
    return ImageError("undecodable", message)


@dataclass(frozen=True)
class NpyFile:
    """An open file and its header."""

    file: pa.NativeFile
    dtype: np.dtype[Any]
    """A float of 16, 32 or 64 bits, in any byte order."""
    num_rows: int
    """N, by the header."""
    num_columns: int
    """D."""
    is_by_column: bool
    """Fortran order: the numbers of a column are adjacent."""
    header_bytes: int

    @property
    def complete_rows(self) -> int:
        """Number of rows that the file really holds: less than `num_rows` in a truncated file."""
        row_bytes = self.num_columns * self.dtype.itemsize
        num_bytes = int(self.file.size()) - self.header_bytes
        if self.is_by_column:
            return self.num_rows if num_bytes >= self.num_rows * row_bytes else 0
        return min(self.num_rows, num_bytes // row_bytes)

    def read(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Return rows `start` to `stop - 1`: float32, shape (stop - start, D).

        Raises:
            ImageError: The store failed.
            OSError: The file ends before the last of them.
        """
        if self.is_by_column:
            columns = [
                self._numbers(i * self.num_rows + start, stop - start) for i in range(self.num_columns)
            ]
            values = np.stack(columns, axis=1)
        else:
            count = (stop - start) * self.num_columns
            values = self._numbers(start * self.num_columns, count).reshape(-1, self.num_columns)
        with np.errstate(over="ignore"):  # numbers beyond float32 become infinite; the reader reports them
            return np.ascontiguousarray(values, np.float32)

    def _numbers(self, first: int, count: int) -> npt.NDArray[Any]:
        offset, num_bytes = self.header_bytes + first * self.dtype.itemsize, count * self.dtype.itemsize
        self.file.seek(offset)
        buffer = self.file.read_buffer(num_bytes)
        if buffer.size < num_bytes:
            raise OSError(f"it ends at byte {offset + buffer.size}")
        return np.frombuffer(buffer, self.dtype)


def open_npy(file: pa.NativeFile) -> NpyFile:
    """Read the header of a file.

    Raises:
        ImageError: The file is not a `.npy` file, or does not hold a matrix of floats.
        OSError: The file ends within the header.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy warns about headers that Python 2 wrote
            version = np.lib.format.read_magic(file)
            shape, is_by_column, dtype = _READ_HEADER[version](file)
    except (ImageError, OSError):
        raise
    except Exception as error:  # numpy's parser raises any exception on damaged headers
        raise ImageError("undecodable", f"it is no .npy file: {error}") from error
    if max(shape, default=0) > _MAX_ROWS:  # checked before the shape is printed: Python refuses such numbers
        message = "it is no .npy file: its header claims more than 2^62 rows or columns"
        raise ImageError("undecodable", message)
    # Rows without columns take no byte, so a header could claim any number of them.
    if dtype.type not in _FLOATS or len(shape) != 2 or shape[0] < 0 or shape[1] < 1:  # noqa: PLR2004 - N, D
        message = f"it holds {dtype} of shape {shape}; expected float16, float32 or float64 of shape (N, D)"
        raise ImageError("unsupported", message)
    return NpyFile(file, dtype, shape[0], shape[1], is_by_column, file.tell())
