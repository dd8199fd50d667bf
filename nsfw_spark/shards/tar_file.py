"""A shard in WebDataset's format."""

from __future__ import annotations

import tarfile
from io import BytesIO
from typing import IO, cast

import pyarrow as pa

from nsfw_spark.shards.json_text import as_json
from nsfw_spark.shards.names import NOT_METADATA, file_names
from nsfw_spark.shards.sink import Sink


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
