"""The rows of `.npy` files: a matrix of floats, a block of rows at a time.

Knows NumPy's format and no pickle: of what is in a file only its header is parsed, and by numpy.
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
    """An open file whose header was read."""

    file: pa.NativeFile
    dtype: np.dtype[Any]
    """A float of 16, 32 or 64 bits, in any byte order."""
    num_rows: int
    """N, by the header."""
    num_columns: int
    """D."""
    is_by_column: bool
    """Fortran's order: all of a column lies together."""
    header_bytes: int

    @property
    def row_bytes(self) -> int:
        """Of one row."""
        return self.num_columns * self.dtype.itemsize

    @property
    def complete_rows(self) -> int:
        """How many rows the file really holds; fewer than `num_rows` where it was cut."""
        there = int(self.file.size()) - self.header_bytes
        if self.is_by_column:
            return self.num_rows if there >= self.num_rows * self.row_bytes else 0
        return min(self.num_rows, there // max(1, self.row_bytes))

    def read(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Return rows `start` to `stop - 1`: float32, shape (stop - start, D).

        Raises:
            OSError: They cannot be read.
        """
        if self.is_by_column:
            size = self.dtype.itemsize
            first = self.header_bytes + start * size
            step = self.num_rows * size
            columns = [self._numbers(first + i * step, stop - start) for i in range(self.num_columns)]
            values = np.stack(columns, axis=1)
        else:
            count, offset = (stop - start) * self.num_columns, self.header_bytes + start * self.row_bytes
            values = self._numbers(offset, count).reshape(-1, self.num_columns)
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is found out later
            return np.ascontiguousarray(values, np.float32)

    def _numbers(self, offset: int, count: int) -> npt.NDArray[Any]:
        self.file.seek(offset)
        buffer = self.file.read_buffer(count * self.dtype.itemsize)
        if buffer.size < count * self.dtype.itemsize:
            raise OSError(f"it ends at byte {offset + buffer.size}")
        return np.frombuffer(buffer, self.dtype)


def open_npy(file: pa.NativeFile) -> NpyFile:
    """Read the header of a file.

    Raises:
        ImageError: It is no `.npy` file, or does not hold a matrix of floats.
        OSError: It cannot be read.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy warns of headers that Python 2 wrote
            version = np.lib.format.read_magic(file)
            shape, is_by_column, dtype = _READ_HEADER[version](file)
    except OSError:
        raise
    # numpy's parser raises anything on damaged headers.
    except Exception as error:
        raise ImageError("undecodable", f"it is no .npy file: {error}") from error
    if max(shape, default=0) > _MAX_ROWS:  # before it is written down: Python refuses to print such numbers
        raise ImageError(
            "undecodable", "it is no .npy file: its header claims more than 2^62 rows or columns"
        )
    # No columns: any number of rows would need no byte at all.
    if dtype.type not in _FLOATS or len(shape) != 2 or shape[0] < 0 or shape[1] < 1:  # noqa: PLR2004 - N, D
        raise ImageError(
            "unsupported",
            f"it holds {dtype} of shape {shape}; expected float16, float32 or float64 of shape (N, D)",
        )
    return NpyFile(file, dtype, shape[0], shape[1], is_by_column, file.tell())
