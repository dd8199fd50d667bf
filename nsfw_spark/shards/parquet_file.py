"""A shard as a Parquet file."""

from __future__ import annotations

import json
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from nsfw_spark.shards.names import NOT_METADATA, file_names
from nsfw_spark.shards.sink import Sink

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
