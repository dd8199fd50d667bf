"""WebDataset tars: the images in a tar, each with the text beside it, read as a stream.

In: tars that Spark lists, plain or compressed, of any size. Out: their images in order, in memory that does
not grow with the tar. A tar that is damaged gives what comes before the damage, and one row that names the
tar and the byte. Knows names, not what images are made of: a name or its first bytes make an entry an image.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Final, NamedTuple

import pyarrow as pa

from nsfw_spark.decode import too_long
from nsfw_spark.errors import ImageError
from nsfw_spark.readers.archive import Archive, unreadable
from nsfw_spark.readers.chunk import CHUNK_ROWS, MOST_BYTES, Chunk
from nsfw_spark.readers.storage import Storage

COLUMNS: Final = pa.schema(
    [
        ("image_id", pa.string()),  # TAR!/ENTRY
        ("source_file", pa.string()),  # the tar
        ("modification_time", pa.timestamp("us", "UTC")),  # the tar's
        ("caption", pa.string()),
        ("json", pa.string()),
        ("cls", pa.string()),
    ]
)

# fmt: off
IMAGE_EXTENSIONS: Final = frozenset({
    "jpg", "jpeg", "jpe", "jfif", "pjpeg", "png", "apng", "webp", "gif", "bmp", "dib", "tif", "tiff", "avif",
    "heic", "heif", "hif", "jxl", "jp2", "j2k", "mpo", "ppm", "pgm", "pbm", "pnm", "ico", "psd", "svg", "tga",
})
# fmt: on
"""What makes an entry an image, in any case; those that are not decoded end as `unsupported`."""

_SIDECARS: Final = {"txt": "caption", "json": "json", "cls": "cls"}
"""Extension → column of the text beside an image."""

_CHUNK_BYTES: Final = 32 << 20
_MAX_SIDECAR: Final = 1 << 20  # bytes that are kept


@dataclass(frozen=True)
class TarReader:
    """Reads the images in each listed tar.

    Entries that follow each other and share directory and base name, up to the first dot, are one sample, as
    WebDataset has it: `a/b.jpg`, `a/b.left.png`, `a/b.json`. All its images get its `.txt`, `.json`, `.cls`.
    """

    storage: Storage
    """Opens the tars."""
    max_bytes: int = MOST_BYTES
    """Of an image; a longer one is skipped."""

    def read(self, listed: Iterator[pa.RecordBatch]) -> Iterator[Chunk]:
        """Yield the images of tars: see `Reader.read`; a chunk may hold those of several."""
        chunk = _OpenChunk()
        for tar in chain.from_iterable(map(_tars, listed)):
            for image in self._read_tar(tar):
                while chunk.is_full:
                    yield chunk.take(image.sample)
                chunk.add(image)
        if chunk.images:
            yield chunk.take(None)

    def _read_tar(self, tar: _Tar) -> Iterator[_Image]:
        """Yield the images of a tar, and where something is wrong with it a row that says so."""
        try:
            with self._open(tar.path) as archive:
                yield from _read_images(archive, tar, self.max_bytes)
        except ImageError as error:
            yield _Image(tar.path, error, _Sample(tar))

    def _open(self, path: str) -> Archive:
        try:
            return Archive(self.storage.open_stream(path))
        except OSError as error:
            raise unreadable(error) from None


class _Tar(NamedTuple):
    """A tar as Spark lists it."""

    path: str
    modified: int
    """Microseconds since 1970, UTC."""


def _tars(listed: pa.RecordBatch) -> Iterator[_Tar]:
    modified = listed.column("modificationTime").cast(COLUMNS.field("modification_time").type)
    return map(_Tar, listed.column("path").to_pylist(), modified.cast(pa.int64()).to_pylist())


@dataclass(slots=True)
class _Sample:
    """What the images of one key share; filled while its entries go by."""

    tar: _Tar
    key: str | None = None
    texts: dict[str, str] = field(default_factory=dict)
    """By column; where one comes twice, the first."""


class _Image(NamedTuple):
    """One row."""

    image_id: str
    content: bytes | ImageError
    sample: _Sample


class _OpenChunk:
    """Images that are gathered until their text is known and there are enough of them."""

    def __init__(self) -> None:
        self.images: list[_Image] = []
        self._bytes = 0

    @property
    def is_full(self) -> bool:
        return len(self.images) >= CHUNK_ROWS or self._bytes >= _CHUNK_BYTES

    def add(self, image: _Image) -> None:
        self.images.append(image)
        self._bytes += _length(image)

    def take(self, open_sample: _Sample | None) -> Chunk:
        """Return the images of all samples but the open one; of that too where there is no other.

        So a sample that fills a chunk alone goes on with the text that came so far: memory has an end.
        """
        end = len(self.images)
        while end and self.images[end - 1].sample is open_sample:
            end -= 1
        end = end or len(self.images)
        taken, self.images = self.images[:end], self.images[end:]
        self._bytes = sum(map(_length, self.images))
        return _chunk(taken)


def _length(image: _Image) -> int:
    return len(image.content) if isinstance(image.content, bytes) else 0


def _chunk(images: list[_Image]) -> Chunk:
    columns = {
        "image_id": [image.image_id for image in images],
        "source_file": [image.sample.tar.path for image in images],
        "modification_time": [image.sample.tar.modified for image in images],
        **{name: [image.sample.texts.get(name) for image in images] for name in _SIDECARS.values()},
    }
    return Chunk(pa.RecordBatch.from_pydict(columns, COLUMNS), [image.content for image in images])


class _Names:
    """Gives entries of the same name different ones: `a.jpg`, `a.jpg#2`, `a.jpg#3`.

    Hashes stand for the names because a tar may hold millions: 60 bytes an entry, not hundreds. Should two
    collide, at odds of 2^64, a name bears a number that it need not have; that is all.
    """

    def __init__(self) -> None:
        self._seen: set[int] = set()
        self._times: dict[str, int] = {}  # of names that came again

    def distinct(self, name: str) -> str:
        new = name
        while hash(new) in self._seen:
            self._times[name] = self._times.get(name, 1) + 1
            new = f"{name}#{self._times[name]}"
        self._seen.add(hash(new))
        return new


def _key_and_suffix(name: str) -> tuple[str, str]:
    """Split `a/b.left.PNG` into `a/b` and `left.png`; a dot in front does not count.

    Source:
        `base_plus_ext` in webdataset/tariterators.py, version 0.2.100, which lowers the suffix too.
    """
    dot = name.find(".", name.rfind("/") + 2)
    return (name, "") if dot < 0 else (name[:dot], name[dot + 1 :].lower())


def _read_images(archive: Archive, tar: _Tar, max_bytes: int) -> Iterator[_Image]:
    """Yield the images of a tar, each with its sample, whose text may follow.

    Raises:
        ImageError: `undecodable` or `missing` if the archive is damaged; `unsupported` if it holds none.
    """
    names, sample, num_entries, num_images = _Names(), _Sample(tar), 0, 0
    for entry in archive:
        num_entries += 1
        if _is_no_sample(entry):
            continue
        key, suffix = _key_and_suffix(entry.name)
        if key != sample.key:
            sample = _Sample(tar, key)
        if suffix in _SIDECARS and entry.isreg() and not entry.issparse():
            text = archive.read(min(entry.size, _MAX_SIDECAR)).decode("utf-8", "replace")
            sample.texts.setdefault(_SIDECARS[suffix], text)
        elif (content := _image_content(archive, entry, suffix, max_bytes)) is not None:
            num_images += 1
            yield _Image(f"{tar.path}!/{names.distinct(entry.name)}", content, sample)
    if num_images == 0:
        raise ImageError("unsupported", f"the tar holds no image among its {num_entries} entries")


def _is_no_sample(entry: tarfile.TarInfo) -> bool:
    """Whether an entry is a directory or a device, or `._NAME`, which macOS keeps beside a file."""
    is_file = entry.isreg() or entry.islnk() or entry.issym()
    return not is_file or entry.name.rpartition("/")[2].startswith("._")


def _image_content(
    archive: Archive, entry: tarfile.TarInfo, suffix: str, max_bytes: int
) -> bytes | ImageError | None:
    """Read an entry if it is an image; None if it is not."""
    if not entry.isreg() or entry.issparse():  # no bytes follow that a stream could make an image of
        what = "a sparse file" if entry.isreg() else f"a link to {entry.linkname}"
        error = ImageError(
            "unsupported", f"the entry is {what}, which no stream can read; expected the image itself"
        )
        return error if suffix.rpartition(".")[2] in IMAGE_EXTENSIONS else None
    start = b""
    if suffix.rpartition(".")[2] not in IMAGE_EXTENSIONS:
        start = archive.read(min(entry.size, _SIGNATURE))
        if not _is_image(start):
            return None
    if entry.size > max_bytes:
        archive.skip(entry)
        return too_long(entry.size, max_bytes)
    return start + archive.read(entry.size - len(start)) if start else archive.read(entry.size)


_SIGNATURE: Final = 16  # bytes that tell
_HEIF_BRANDS: Final = frozenset(
    {b"avif", b"avis", b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1"}
)


def _is_image(start: bytes) -> bool:
    """Whether an entry without an image's name begins like one."""
    return (
        start.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*"))
        or (start[:4], start[8:12]) == (b"RIFF", b"WEBP")
        or (start[:2], start[6:10]) == (b"BM", bytes(4))
        or (start[4:8] == b"ftyp" and start[8:12] in _HEIF_BRANDS)
    )
