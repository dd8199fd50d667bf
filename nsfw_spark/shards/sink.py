"""Where the bytes of a shard go."""

from __future__ import annotations

import hashlib

import pyarrow as pa


class Sink:
    """A file that counts and hashes what is written to it."""

    def __init__(self, file: pa.NativeFile) -> None:
        self._file = file
        self.num_bytes, self.sha256 = 0, hashlib.sha256()

    @property
    def closed(self) -> bool:
        """Whether the file is closed."""
        return bool(self._file.closed)

    def write(self, data: bytes) -> int:
        """Write all of it; return its length."""
        self.sha256.update(data)
        self.num_bytes += len(data)
        self._file.write(data)
        return len(data)

    def flush(self) -> None:
        """Do nothing: whole files only are of use."""

    def close(self) -> None:
        """Close the file."""
        self._file.close()
