"""Shards: images for training, as WebDataset tars or as Parquet files.

In: images in order, each with the number of its shard. Out: one file a shard, and a `Shard` that describes
it. A file is written under a temporary name and then renamed. The same images give the same bytes, so a
retried task replaces its files by equal ones. Knows nothing of Spark, nor of safe images.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import tarfile
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from io import BytesIO
from itertools import groupby
from operator import itemgetter
from typing import IO, Any, Final, Literal, cast

import pyarrow as pa
import pyarrow.parquet as pq

from nsfw_spark.formats import IMAGE_EXTENSIONS
from nsfw_spark.readers.storage import Storage

ShardFormat = Literal["webdataset", "parquet"]

SHARD: Final = "shard_number"
KEY: Final = "image_key"
TEMPORARY: Final = "_temporary"
"""Directory, beside the shards, of unfinished files."""

_NOT_METADATA: Final = (SHARD, KEY, "format", "content")
_SUFFIXES: Final = {"webdataset": "tar", "parquet": "parquet"}
_EXTENSIONS: Final = {"JPEG": "jpg", "MPO": "jpg", "TIFF": "tif"}  # other formats: the format's name
_SHOWN: Final = 10  # image_ids of missing images, for each shard
_ROW_GROUP_BYTES: Final = 32 << 20
_IMAGE: Final = pa.field("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())]))


@dataclass(frozen=True)
class Shard:
    """The result of writing one shard."""

    number: int
    name: str | None = None
    """Name of the file; None without a file, because none of the shard's images has bytes."""
    images: int = 0
    bytes: int = 0
    """Length of the file."""
    sha256: str | None = None
    """Hash of the file, hexadecimal."""
    missing: int = 0
    """Images without bytes, which are not in the file."""
    first_missing: list[str] = field(default_factory=list)
    """The image_ids of the first ten of them."""


@dataclass(frozen=True)
class ShardWriter:
    """Writes shards into a directory. Small and picklable: it travels to the executors."""

    storage: Storage
    directory: str
    """URI."""
    format: ShardFormat

    def write(self, batches: Iterator[pa.RecordBatch]) -> Iterator[Shard]:
        """Write the images of one task; yield each shard after its file was renamed.

        Args:
            batches: Ordered by `shard_number`. Columns: `shard_number`; `image_key`, unique; `image_id`;
                `format` as in image_scores; `content`, the encoded images, null if missing; any metadata,
                such as `caption` and `json` text.

        Raises:
            OSError: A file cannot be written.
        """
        for number, slices in groupby(_by_shard(batches), key=itemgetter(0)):
            shard = _OpenShard(self, number)
            for _, images in slices:
                shard.add(images)
            yield shard.close()


def _by_shard(batches: Iterator[pa.RecordBatch]) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yield the batches, each split where the next shard begins."""
    for batch in batches:
        numbers = batch.column(SHARD).to_pylist()
        start = 0
        for stop in range(1, batch.num_rows + 1):
            if stop == batch.num_rows or numbers[stop] != numbers[start]:
                yield numbers[start], batch.slice(start, stop - start)
                start = stop


class _OpenShard:
    """An unfinished shard; its file begins with the first image that has bytes."""

    def __init__(self, writer: ShardWriter, number: int) -> None:
        self._shard = Shard(number)
        self._writer = writer
        self._name = f"{number:05d}.{_SUFFIXES[writer.format]}"
        self._temporary = f"{writer.directory}/{TEMPORARY}/{uuid.uuid4()}-{self._name}"
        self._sink: _Sink | None = None
        self._file: _TarFile | _ParquetFile

    def add(self, images: pa.RecordBatch) -> None:
        """Write the images that have bytes; count the others."""
        has_bytes = images.column("content").is_valid()
        present, missing = images.filter(has_bytes), images.filter(images.column("content").is_null())
        if present.num_rows:
            if self._sink is None:
                self._sink = _Sink(self._writer.storage.create(self._temporary))
                is_tar = self._writer.format == "webdataset"
                self._file = _TarFile(self._sink) if is_tar else _ParquetFile(self._sink, present.schema)
            self._file.add(present)
        shown = [*self._shard.first_missing, *missing.column("image_id").to_pylist()][:_SHOWN]
        self._shard = replace(
            self._shard,
            images=self._shard.images + present.num_rows,
            missing=self._shard.missing + missing.num_rows,
            first_missing=shown,
        )

    def close(self) -> Shard:
        """Finish and rename the file."""
        if self._sink is None:
            return self._shard
        self._file.close()
        self._sink.close()
        self._writer.storage.move(self._temporary, f"{self._writer.directory}/{self._name}")
        num_bytes, sha256 = self._sink.num_bytes, self._sink.sha256.hexdigest()
        return replace(self._shard, name=self._name, bytes=num_bytes, sha256=sha256)


class _Sink:
    """A file that counts and hashes the bytes written to it."""

    def __init__(self, file: pa.NativeFile) -> None:
        self._file = file
        self.num_bytes, self.sha256 = 0, hashlib.sha256()

    @property
    def closed(self) -> bool:
        return bool(self._file.closed)

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        self.num_bytes += len(data)
        self._file.write(data)
        return len(data)

    def flush(self) -> None:
        """Do nothing: nobody reads an unfinished file."""

    def close(self) -> None:
        self._file.close()


class _TarFile:
    """Writes WebDataset samples: `KEY.jpg`, `KEY.txt` with the caption, `KEY.json` with the metadata."""

    def __init__(self, sink: _Sink) -> None:
        # `w|` writes each block once, so the sink needs no seek.
        file = cast("IO[bytes]", sink)
        self._tar = tarfile.open(fileobj=file, mode="w|", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
        self.close = self._tar.close

    def add(self, images: pa.RecordBatch) -> None:
        contents, names = images.column("content"), _file_names(images)
        metadata = images.drop_columns(_NOT_METADATA).to_pylist()
        for name, content, row in zip(names, contents, metadata, strict=True):
            key = name.partition(".")[0]
            self._add(name, content.as_py())
            if row.get("caption") is not None:
                self._add(f"{key}.txt", str(row["caption"]).encode())
            self._add(f"{key}.json", _as_json(row))

    def _add(self, name: str, content: bytes) -> None:
        entry = tarfile.TarInfo(name)  # no time and no owner, so that equal images give equal bytes
        entry.size = len(content)
        self._tar.addfile(entry, BytesIO(content))


class _ParquetFile:
    """Writes rows with Hugging Face's struct `image` {bytes, path}, and a column for each metadata.

    Source:
        `datasets.Image` and `Features.arrow_schema` in huggingface/datasets 3.
    """

    def __init__(self, sink: _Sink, schema: pa.Schema) -> None:
        metadata = [field for field in schema if field.name not in _NOT_METADATA]
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
        content = images.column("content")
        image = pa.StructArray.from_arrays(
            [content.cast(pa.binary()), pa.array(_file_names(images), pa.string())], fields=list(_IMAGE.type)
        )
        metadata = [images.column(name) for name in self._schema.names[1:]]
        self._rows.append(pa.RecordBatch.from_arrays([image, *metadata], schema=self._schema))
        self._num_bytes += content.nbytes
        if self._num_bytes >= _ROW_GROUP_BYTES:
            self._write_rows()

    def close(self) -> None:
        self._write_rows()
        self._writer.close()

    def _write_rows(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_batches(self._rows))
        self._rows, self._num_bytes = [], 0


def _file_names(images: pa.RecordBatch) -> list[str]:
    """Return `KEY.EXTENSION` of each image."""
    columns = (images.column(name).to_pylist() for name in (KEY, "format", "image_id"))
    return [f"{key}.{_extension(format_, id_)}" for key, format_, id_ in zip(*columns, strict=True)]


def _extension(format_: str | None, image_id: str) -> str:
    """Return the extension of an image's format; if that is unknown, the extension in its image_id."""
    if format_ is not None:
        return _EXTENSIONS.get(format_, format_.lower())
    extension = image_id.rpartition(".")[2].lower()
    return extension if extension in IMAGE_EXTENSIONS else "img"


def _as_json(row: dict[str, Any]) -> bytes:
    """Return an image's metadata as JSON; a column `json` becomes a JSON value if it can be parsed."""
    if isinstance(row.get("json"), str):
        with suppress(ValueError):  # other text stays text
            row = {**row, "json": json.loads(row["json"])}
    return json.dumps(_plain(row), ensure_ascii=False, sort_keys=True, allow_nan=False).encode(
        errors="replace"
    )


def _plain(value: Any) -> Any:  # noqa: ANN401 - any type of Arrow's
    """Return a value as JSON can hold it: bytes as Base64, times as ISO 8601, NaN as null."""
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
