"""WebDataset: the images in a tar, each with the text beside it.

The worker's half of `spark.sources.webdataset`. In: tars that Spark lists, plain or compressed, of any size.
Out: their images in order, in constant memory. A damaged tar gives the images before the damage, and one row
that names the tar and the byte. An entry is an image by its name or first bytes; nothing here decodes it.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Final, NamedTuple

import pyarrow as pa

from nsfw_spark.decode.foreign import is_image
from nsfw_spark.errors import ImageError
from nsfw_spark.formats import IMAGE_EXTENSIONS
from nsfw_spark.readers.archive import Archive
from nsfw_spark.readers.chunk import (
    CHUNK_ROWS,
    FILE_COLUMNS,
    MOST_BYTES,
    TIMESTAMP,
    Chunk,
    length_problem,
)
from nsfw_spark.readers.storage import Storage, unread

SIDECARS: Final = {"txt": "caption", "json": "json", "cls": "cls"}
"""Extension → column of the text beside an image."""

COLUMNS: Final = pa.schema([*FILE_COLUMNS, *((name, pa.string()) for name in SIDECARS.values())])
"""`image_id` is TAR!/ENTRY, `source_file` the tar, `modification_time` the tar's."""

_CHUNK_BYTES: Final = 32 << 20
_MAX_SIDECAR: Final = 1 << 20  # bytes of a text that are kept
_SIGNATURE: Final = 16  # first bytes that tell an image


@dataclass(frozen=True)
class TarReader:
    """Reads the images in each listed tar.

    As in WebDataset, adjacent entries of one directory and base name, up to the first dot, are one sample:
    `a/b.jpg`, `a/b.left.png`, `a/b.json`. All images of a sample get its `.txt`, `.json` and `.cls`.
    """

    storage: Storage
    """Opens the tars."""
    max_bytes: int = MOST_BYTES
    """Longer images are skipped."""

    def read(self, listed: Iterator[pa.RecordBatch]) -> Iterator[Chunk]:
        """Yield the images of tars: see `Reader.read`. A chunk may hold images of several tars."""
        chunk = _OpenChunk()
        for tar in chain.from_iterable(map(_tars, listed)):
            for image in self._read_tar(tar):
                while chunk.is_full:
                    yield chunk.take(image.sample)
                chunk.add(image)
        if chunk.images:
            yield chunk.take(None)

    def _read_tar(self, tar: _Tar) -> Iterator[_Image]:
        """Yield the images of a tar, and a last row with the error if the tar has one."""
        try:
            with self.storage.open_stream(tar.path) as file:
                yield from _read_images(Archive(file), tar, self.max_bytes)
        except FileNotFoundError as error:
            yield _Image(tar.path, unread(error), _Sample(tar))
        except ImageError as error:
            yield _Image(tar.path, error, _Sample(tar))


class _Tar(NamedTuple):
    """A listed tar."""

    path: str
    modified: int
    """Microseconds since 1970, UTC."""


def _tars(listed: pa.RecordBatch) -> Iterator[_Tar]:
    modified = listed.column("modificationTime").cast(TIMESTAMP).cast(pa.int64())
    return map(_Tar, listed.column("path").to_pylist(), modified.to_pylist())


@dataclass(slots=True)
class _Sample:
    """What the images of one key share; its texts are added while its entries are read."""

    tar: _Tar
    key: str | None = None
    texts: dict[str, str] = field(default_factory=dict)
    """By column; the first text of a column counts."""


class _Image(NamedTuple):
    """One row."""

    image_id: str
    content: bytes | ImageError
    sample: _Sample

    @property
    def num_bytes(self) -> int:
        return len(self.content) if isinstance(self.content, bytes) else 0


class _OpenChunk:
    """Images that wait for the rest of their sample's texts, and for a full chunk."""

    def __init__(self) -> None:
        self.images: list[_Image] = []
        self._bytes = 0

    @property
    def is_full(self) -> bool:
        return len(self.images) >= CHUNK_ROWS or self._bytes >= _CHUNK_BYTES

    def add(self, image: _Image) -> None:
        self.images.append(image)
        self._bytes += image.num_bytes

    def take(self, open_sample: _Sample | None) -> Chunk:
        """Return the images of all complete samples.

        A sample that fills the chunk alone is returned with the texts so far, because memory is limited.
        """
        end = len(self.images)
        while end and self.images[end - 1].sample is open_sample:
            end -= 1
        end = end or len(self.images)
        taken, self.images = self.images[:end], self.images[end:]
        self._bytes = sum(image.num_bytes for image in self.images)
        return _chunk(taken)


def tar_images(
    file: io.BufferedReader, uri: str, max_bytes: int = MOST_BYTES
) -> Iterator[tuple[str, bytes | ImageError]]:
    """Yield image_id and content of the images in an open tar, as they are read.

    Raises:
        ImageError: As `_read_images`.
    """
    images = _read_images(Archive(file), _Tar(uri, 0), max_bytes)
    return ((image.image_id, image.content) for image in images)


def _chunk(images: list[_Image]) -> Chunk:
    columns = {
        "image_id": [image.image_id for image in images],
        "source_file": [image.sample.tar.path for image in images],
        "modification_time": [image.sample.tar.modified for image in images],
        **{name: [image.sample.texts.get(name) for image in images] for name in SIDECARS.values()},
    }
    return Chunk(pa.RecordBatch.from_pydict(columns, COLUMNS), [image.content for image in images])


def _read_images(archive: Archive, tar: _Tar, max_bytes: int) -> Iterator[_Image]:
    """Yield the images of a tar, each with its sample, whose texts may follow.

    Raises:
        ImageError: `undecodable` or `missing` if the archive is damaged; `unsupported` without any image.
    """
    names, sample, num_entries, num_images = _Names(), _Sample(tar), 0, 0
    for entry in archive:
        num_entries += 1
        if _is_no_sample(entry):
            continue
        key, suffix = _key_and_suffix(entry.name)
        if key != sample.key:
            sample = _Sample(tar, key)
        if suffix in SIDECARS and entry.isreg() and not entry.issparse():
            text = archive.read(min(entry.size, _MAX_SIDECAR)).decode("utf-8", "replace")
            sample.texts.setdefault(SIDECARS[suffix], text)
        elif (content := _image_content(archive, entry, suffix, max_bytes)) is not None:
            num_images += 1
            yield _Image(f"{tar.path}!/{names.distinct(entry.name)}", content, sample)
    if num_images == 0:
        raise ImageError("unsupported", f"the tar holds no image among its {num_entries} entries")


def _is_no_sample(entry: tarfile.TarInfo) -> bool:
    """Whether an entry is a directory, a device, or a file `._NAME` of macOS."""
    is_file = entry.isreg() or entry.islnk() or entry.issym()
    return not is_file or entry.name.rpartition("/")[2].startswith("._")


def _key_and_suffix(name: str) -> tuple[str, str]:
    """Split `a/b.left.PNG` into `a/b` and `left.png`; a leading dot does not count.

    Source:
        `base_plus_ext` in webdataset/tariterators.py, version 0.2.100, which lowers the suffix too.
    """
    dot = name.find(".", name.rfind("/") + 2)
    return (name, "") if dot < 0 else (name[:dot], name[dot + 1 :].lower())


def _image_content(
    archive: Archive, entry: tarfile.TarInfo, suffix: str, max_bytes: int
) -> bytes | ImageError | None:
    """Read an entry if it is an image; else return None."""
    is_image_name = suffix.rpartition(".")[2] in IMAGE_EXTENSIONS
    if not entry.isreg() or entry.issparse():  # a stream cannot read the bytes of such an entry
        kind = "a sparse file" if entry.isreg() else f"a link to {entry.linkname}"
        message = f"the entry is {kind}, which no stream can read; expected the image itself"
        return ImageError("unsupported", message) if is_image_name else None
    start = b""
    if not is_image_name:
        start = archive.read(min(entry.size, _SIGNATURE))
        if not is_image(start):
            return None
    if problem := length_problem(entry.size, max_bytes):
        archive.skip(entry)
        return problem
    return start + archive.read(entry.size - len(start))


class _Names:
    """Makes the names of a tar's entries distinct: `a.jpg`, `a.jpg#2`, `a.jpg#3`.

    It keeps hashes, not names: a tar may hold millions, and a hash takes 60 bytes. If two hashes collide, at
    odds of 2^64, a name gets a number that it does not need.
    """

    def __init__(self) -> None:
        self._seen: set[int] = set()
        self._times: dict[str, int] = {}  # of repeated names

    def distinct(self, name: str) -> str:
        new = name
        while hash(new) in self._seen:
            self._times[name] = self._times.get(name, 1) + 1
            new = f"{name}#{self._times[name]}"
        self._seen.add(hash(new))
        return new
