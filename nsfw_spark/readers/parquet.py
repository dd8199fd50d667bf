"""Images in a column of Parquet files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import pyarrow as pa

from nsfw_spark.errors import ImageError
from nsfw_spark.readers.chunk import Chunk
from nsfw_spark.readers.file_parts import RowColumns, file_parts
from nsfw_spark.readers.parquet_rows import PART_BYTES, ParquetColumns, column_type, read_part
from nsfw_spark.readers.storage import Storage

__all__ = ["PART_BYTES", "ParquetReader"]


@dataclass(frozen=True)
class ParquetReader:
    """Reads images from a binary column, or from Hugging Face's struct of `bytes` and `path`."""

    storage: Storage
    content_column: str
    id_column: str | None = None
    """See `RowColumns`, as of all that follows."""
    carried_from: tuple[str, ...] = ()
    carried: pa.Schema = field(default_factory=lambda: pa.schema([]))

    def read(self, listed: Iterator[pa.RecordBatch]) -> Iterator[Chunk]:
        """Yield the images of parts of files: see `Reader.read` and `file_parts`."""
        columns = RowColumns(self.id_column, self.carried_from, self.carried)
        files = ParquetColumns(self.storage, columns, self.content_column)
        for part in file_parts(listed):
            for rows in read_part(files, part, self._check):
                if isinstance(rows.content, ImageError):
                    yield Chunk(rows.columns, [rows.content])
                else:
                    yield Chunk(rows.columns, _images(rows.content))

    def _check(self, found: pa.Schema) -> None:
        type_ = column_type(found, self.content_column)
        if pa.types.is_struct(type_) and type_.get_field_index("bytes") >= 0:
            type_ = type_.field("bytes").type
        if not (pa.types.is_binary(type_) or pa.types.is_large_binary(type_)):
            raise ImageError(
                "unsupported",
                f"column {self.content_column} is {type_}; expected binary, or a struct of binary `bytes`",
            )


def _images(content: pa.Array) -> Iterator[bytes | ImageError]:
    """Yield the encoded images of a column."""
    names = pa.nulls(len(content))
    if pa.types.is_struct(content.type):
        fields = dict(zip((field.name for field in content.type), content.flatten(), strict=True))
        content, names = fields["bytes"], fields.get("path", names)
    for value, name in zip(content, names, strict=True):
        image = value.as_py()
        yield _no_image(name) if image is None else image


def _no_image(name: pa.Scalar) -> ImageError:
    said = "the row holds no image: its bytes are null"
    if name.is_valid and pa.types.is_string(name.type):
        path = name.as_buffer().to_pybytes().decode(errors="replace")  # nobody has checked that it is UTF-8
        said += f", its path names {path}: files beside the table are not read"
    return ImageError("missing", said)
