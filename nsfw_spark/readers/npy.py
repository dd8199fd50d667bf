"""`.npy` files: an open file → blocks of its rows, a matrix of floats.

Knows NumPy's format but not pickle: numpy parses the header, and nothing else in the file is parsed.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from nsfw_spark.errors import ImageError

_READ_HEADER: Final = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
_MAX_ROWS: Final = 1 << 62
_FLOATS: Final = (np.float16, np.float32, np.float64)


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
            OSError: The rows cannot be read.
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
        OSError: The file cannot be read.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy warns about headers that Python 2 wrote
            version = np.lib.format.read_magic(file)
            shape, is_by_column, dtype = _READ_HEADER[version](file)
    except OSError:
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
