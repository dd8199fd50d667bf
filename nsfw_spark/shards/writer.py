"""Writes the images of a task, shard by shard."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Final, Literal, Protocol

import pyarrow as pa

from nsfw_spark.readers.storage import Storage
from nsfw_spark.shards.names import SHARD
from nsfw_spark.shards.parquet_file import ParquetFile
from nsfw_spark.shards.sink import Sink
from nsfw_spark.shards.tar_file import TarFile

ShardFormat = Literal["webdataset", "parquet"]

TEMPORARY: Final = "_temporary"
"""Directory beside the shards, of those that are not whole yet."""

_SUFFIXES: Final = {"webdataset": "tar", "parquet": "parquet"}
_SHOWN: Final = 10  # image_ids of missing images, of each shard


@dataclass(frozen=True)
class Shard:
    """What has become of the images of one shard."""

    number: int
    name: str | None = None
    """Of the file; None where there is none, because no image of it has bytes."""
    images: int = 0
    bytes: int = 0
    """Of the file."""
    sha256: str | None = None
    """Of the file, hexadecimal."""
    missing: int = 0
    """Images that are not in the file, because their bytes were not found."""
    first_missing: list[str] = field(default_factory=list)
    """The image_ids of some of them."""


@dataclass(frozen=True)
class ShardWriter:
    """Writes shards into a directory. Small and picklable: it travels to the executors."""

    storage: Storage
    directory: str
    """URI."""
    format: ShardFormat

    def write(self, batches: Iterator[pa.RecordBatch]) -> Iterator[Shard]:
        """Write the images of one task, and yield each shard when its file has its name.

        Args:
            batches: Columns `shard_number`, by which they are ordered; `image_key`, unique; `image_id`;
                `format` as in image_scores; `content`, the encoded images, null where there is none; and
                metadata: a `caption`, `json` text, any others.

        Raises:
            OSError: A file cannot be written.
        """
        shard: _OpenShard | None = None
        for number, images in _by_shard(batches):
            if shard is not None and shard.number != number:
                yield shard.close()
                shard = None
            shard = shard or _OpenShard(self, number)
            shard.add(images)
        if shard is not None:
            yield shard.close()


def _by_shard(batches: Iterator[pa.RecordBatch]) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yield the batches, each cut where the next shard begins."""
    for batch in batches:
        numbers = batch.column(SHARD).to_pylist()
        start = 0
        for stop in range(1, batch.num_rows + 1):
            if stop == batch.num_rows or numbers[stop] != numbers[start]:
                yield numbers[start], batch.slice(start, stop - start)
                start = stop


class _OpenShard:
    """A shard that is being written; its file begins with the first image that has bytes."""

    def __init__(self, writer: ShardWriter, number: int) -> None:
        self.number = number
        self._writer = writer
        self._name = f"{number:05d}.{_SUFFIXES[writer.format]}"
        self._temporary = f"{writer.directory}/{TEMPORARY}/{uuid.uuid4()}-{self._name}"
        self._missing: list[str] = []
        self._images = self._num_missing = 0
        self._sink: Sink | None = None
        self._file: _ImageFile

    def add(self, images: pa.RecordBatch) -> None:
        """Write those images that have bytes."""
        is_there = images.column("content").is_valid()
        there = images.filter(is_there)
        if there.num_rows < images.num_rows:
            ids = images.filter(images.column("content").is_null()).column("image_id").to_pylist()
            self._num_missing += len(ids)
            self._missing = [*self._missing, *ids][:_SHOWN]
        if there.num_rows:
            self._open(there.schema)
            self._file.add(there)
            self._images += there.num_rows

    def close(self) -> Shard:
        """Give the file its name; return what is in it."""
        shard = Shard(self.number, missing=self._num_missing, first_missing=self._missing)
        if self._sink is None:
            return shard
        self._file.close()
        self._sink.close()
        self._writer.storage.move(self._temporary, f"{self._writer.directory}/{self._name}")
        num_bytes, sha256 = self._sink.num_bytes, self._sink.sha256.hexdigest()
        return replace(shard, name=self._name, images=self._images, bytes=num_bytes, sha256=sha256)

    def _open(self, schema: pa.Schema) -> None:
        if self._sink is None:
            self._sink = Sink(self._writer.storage.create(self._temporary))
            is_tar = self._writer.format == "webdataset"
            self._file = TarFile(self._sink) if is_tar else ParquetFile(self._sink, schema)


class _ImageFile(Protocol):
    """A file in one of the formats."""

    def add(self, images: pa.RecordBatch) -> None:
        """Write images that all have bytes."""

    def close(self) -> None:
        """Write the end, and leave the sink open."""
