"""Archives: the entries of a tar, read as a stream; any damage is an error that names the byte.

In: an open tar, plain or compressed with gzip, bzip2 or xz. Out: its entries in order, each read or skipped
before the next. The standard library's tarfile alone takes a truncated file or an invalid header for the end
of the archive, keeps all headers in memory, and ignores gzip's checksum. Knows neither images nor samples.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Final, Self, cast

from nsfw_spark.errors import ImageError

_BUFFER: Final = 1 << 20  # bytes
_MAX_HEADER: Final = 1 << 20  # bytes; a damaged header can claim any length
_BLOCK: Final = tarfile.BLOCKSIZE

_COMPRESSED: Final[dict[bytes, Callable[[IO[bytes]], IO[bytes]]]] = {
    b"\x1f\x8b": lambda file: cast("IO[bytes]", gzip.GzipFile(fileobj=file)),
    b"BZh": lambda file: cast("IO[bytes]", bz2.BZ2File(file)),
    b"\xfd7zXZ\x00": lambda file: cast("IO[bytes]", lzma.LZMAFile(file)),  # noqa: SIM115 - closed with `file`
}
"""First bytes → decompressor, which verifies checksums and reads concatenated streams."""


class Archive:
    """The entries of a tar that is open.

    Iterating and reading raise an `ImageError` with the last readable byte of the uncompressed tar. Its
    status is `undecodable` for a damaged tar, and `missing` if storage fails.
    """

    def __init__(self, file: io.BufferedReader) -> None:
        start = file.peek(8)
        openers = [opener for magic, opener in _COMPRESSED.items() if start.startswith(magic)]
        self._source = _Source(openers[0](file) if openers else file)

    def __iter__(self) -> Iterator[tarfile.TarInfo]:
        source = cast("IO[bytes]", self._source)  # it has all methods that tarfile calls
        # backslashreplace keeps names that are not UTF-8 distinct and printable.
        errors = "backslashreplace"
        tar = tarfile.TarFile(fileobj=source, tarinfo=_Header, encoding="utf-8", errors=errors)
        while (entry := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]  # tarfile would keep all headers
            yield entry
        self._source.check_end()

    def read(self, size: int) -> bytes:
        """Read exactly `size` more bytes of the entry."""
        return self._source.take(size)

    def skip(self, entry: tarfile.TarInfo) -> None:
        """Go to the end of the entry, in constant memory."""
        self._source.seek(entry.offset_data + entry.size)


class _Source:
    """The file that tarfile reads: it moves forward only, and raises an ImageError for missing bytes."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._position = 0  # bytes of the uncompressed tar

    def tell(self) -> int:
        return self._position

    def read(self, size: int) -> bytes:
        """Read a header, or the rest of one, for tarfile."""
        if not 0 <= size <= _MAX_HEADER:
            raise self.damage(f"a header there asks for {size} bytes")
        return self.take(size)

    def take(self, size: int) -> bytes:
        content = self._read(size)
        if len(content) < size:
            ends = "it ends there, without an end-of-archive marker"
            raise self.damage(ends if self._position else "it is empty (0 bytes)")
        return content

    def seek(self, position: int) -> None:
        """Read on to a position without keeping the bytes."""
        if position < self._position:
            raise self.damage("its next entry begins before that")
        while self._position < position:
            self.take(min(position - self._position, _BUFFER))

    def check_end(self) -> None:
        """Read past the end-of-archive marker: to a compressor's checksum, and to any appended archive."""
        while block := self._read(_BLOCK):
            if _is_header(block):
                self._position -= _BLOCK
                raise self.damage("another archive was appended there, and is not read; split them")

    def damage(self, reason: str, position: int | None = None) -> ImageError:
        position = self._position if position is None else position
        return ImageError("undecodable", f"the tar is readable up to byte {position}: {reason}")

    def _read(self, size: int) -> bytes:
        try:
            content = self._stream.read(size)
        except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
            raise self.damage(f"its compression is damaged there ({error})") from None
        self._position += len(content)
        return content


class _Header(tarfile.TarInfo):
    """A TarInfo that raises ImageError on an invalid header, where tarfile would report the end."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> Self:
        source = cast("_Source", tar.fileobj)
        try:
            header = super().fromtarfile(tar)
        except (ImageError, tarfile.EOFHeaderError):  # type: ignore[attr-defined]
            raise
        except Exception as error:  # noqa: BLE001 - tarfile raises any exception on damaged headers
            expected = "expected one, plain or compressed with gzip, bzip2 or xz"
            no_tar = f"it is no tar ({error}); {expected}"
            raise source.damage(
                f"no entry begins there ({error})" if tar.offset else no_tar, tar.offset
            ) from None
        if header.size < 0:
            raise source.damage("its next entry has a negative size")
        return header


def _is_header(block: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "replace")
    except tarfile.HeaderError:
        return False
    return True
