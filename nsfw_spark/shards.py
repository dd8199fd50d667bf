"""Shards: images on their way into training, as tars or as Parquet files.

In: images in the order in which they are to lie, each with the number of its shard. Out: one file a shard,
written under a temporary name and then renamed, and what is in it. The same images give the same bytes, so a
task that is tried again replaces its file by the same one. Knows nothing of Spark, nor of what is safe.

    writer.py        the images of a task, shard by shard
      tar_file.py      WebDataset's samples        json_text.py    what is known of an image, as text
      parquet_file.py  Hugging Face's rows
      sink.py          counts and hashes what is written
      names.py         columns, and the images' file names
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import tarfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from io import BytesIO
from typing import IO, Any, Final, Literal, Protocol, cast

import pyarrow as pa
import pyarrow.parquet as pq

from nsfw_spark.readers.storage import Storage
from nsfw_spark.readers.webdataset import IMAGE_EXTENSIONS

SHARD: Final = "shard_number"
KEY: Final = "image_key"
NOT_METADATA: Final = (SHARD, KEY, "format", "content")
"""Columns of the images that are not written as what they are: all others are."""

_EXTENSIONS: Final = {"JPEG": "jpg", "MPO": "jpg", "TIFF": "tif"}  # else the format's own name


def file_names(images: pa.RecordBatch) -> list[str]:
    """Return `KEY.EXTENSION` of each image."""
    columns = (images.column(name).to_pylist() for name in (KEY, "format", "image_id"))
    return [f"{key}.{_extension(*said)}" for key, *said in zip(*columns, strict=True)]


def _extension(format_: str | None, image_id: str) -> str:
    """Return the extension of an image's format; where that is not known, the one that it had."""
    if format_ is not None:
        return _EXTENSIONS.get(format_, format_.lower())
    extension = image_id.rpartition(".")[2].lower()
    return extension if extension in IMAGE_EXTENSIONS else "img"


def as_json(row: dict[str, Any]) -> bytes:
    """Return what is known of an image, the JSON that came with it as a value of its own."""
    if isinstance(row.get("json"), str):
        row = {**row, "json": _parsed(row["json"])}
    return json.dumps(_plain(row), ensure_ascii=False, sort_keys=True, allow_nan=False).encode(
        errors="replace"
    )


def _parsed(text: str) -> Any:  # noqa: ANN401 - whatever was written
    try:
        return json.loads(text)
    except ValueError:
        return text


def _plain(value: Any) -> Any:  # noqa: ANN401 - of any type that Arrow has
    """Return a value with nothing in it that JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, datetime) and value.tzinfo is not None:
        value = value.astimezone(UTC)
    return value.isoformat() if isinstance(value, date) else str(value)


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


class TarFile:
    """Entries `KEY.jpg`, `KEY.txt` with the caption, `KEY.json`: a sample, as WebDataset has it."""

    def __init__(self, sink: Sink) -> None:
        # Streamed: a tar's blocks are written once, whatever is behind the sink.
        file = cast("IO[bytes]", sink)
        self._tar = tarfile.open(fileobj=file, mode="w|", format=tarfile.USTAR_FORMAT)  # noqa: SIM115

    def add(self, images: pa.RecordBatch) -> None:
        """Write images that all have bytes."""
        contents, names = images.column("content"), file_names(images)
        metadata = images.drop_columns(NOT_METADATA).to_pylist()
        for name, content, row in zip(names, contents, metadata, strict=True):
            key = name.partition(".")[0]
            self._add(name, content.as_py())
            if row.get("caption") is not None:
                self._add(f"{key}.txt", str(row["caption"]).encode())
            self._add(f"{key}.json", as_json(row))

    def close(self) -> None:
        """Write the end of the archive."""
        self._tar.close()

    def _add(self, name: str, content: bytes) -> None:
        entry = tarfile.TarInfo(name)  # of 1970 and nobody's: the same export gives the same bytes
        entry.size = len(content)
        self._tar.addfile(entry, BytesIO(content))


_ROW_GROUP_BYTES: Final = 32 << 20
_IMAGE: Final = pa.field("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())]))


class ParquetFile:
    """Rows with a struct `image` {bytes, path}, as Hugging Face has it, and a column each for all else.

    Source:
        `datasets.Image` and `Features.arrow_schema` in huggingface/datasets 3.
    """

    def __init__(self, sink: Sink, schema: pa.Schema) -> None:
        metadata = [field for field in schema if field.name not in NOT_METADATA]
        features = {"info": {"features": {"image": {"_type": "Image"}}}}
        self._schema = pa.schema([_IMAGE, *metadata], {"huggingface": json.dumps(features)})
        names = self._schema.names
        self._writer = pq.ParquetWriter(
            pa.PythonFile(sink, mode="w"),
            self._schema,
            compression="snappy",
            use_dictionary=[name for name in ("model", "source_file") if name in names],
            write_statistics=[name for name in ("image_id", "nsfw_score") if name in names],  # not of bytes
        )
        self._rows: list[pa.RecordBatch] = []
        self._num_bytes = 0

    def add(self, images: pa.RecordBatch) -> None:
        """Write images that all have bytes."""
        content = images.column("content")
        image = pa.StructArray.from_arrays(
            [content.cast(pa.binary()), pa.array(file_names(images), pa.string())], fields=list(_IMAGE.type)
        )
        metadata = [images.column(name) for name in self._schema.names[1:]]
        self._rows.append(pa.RecordBatch.from_arrays([image, *metadata], schema=self._schema))
        self._num_bytes += content.nbytes
        if self._num_bytes >= _ROW_GROUP_BYTES:
            self._write_rows()

    def close(self) -> None:
        """Write the last rows and the footer."""
        self._write_rows()
        self._writer.close()

    def _write_rows(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_batches(self._rows))
        self._rows, self._num_bytes = [], 0


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
