"""Chunks: a few images or embeddings on their way from a reader to the scorer, with their columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from nsfw_spark.decode import too_long
from nsfw_spark.errors import ImageError

CHUNK_ROWS: Final = 64
"""Images in a chunk: few enough for an Arrow batch of images, enough to make the overhead negligible."""

MOST_BYTES: Final = 1 << 30
"""Longest encoded image that is read by default: a value in a Spark row holds at most 2 GiB."""

FILE_COLUMNS: Final = pa.schema(
    [
        ("image_id", pa.string()),
        ("source_file", pa.string()),
        ("modification_time", pa.timestamp("us", "UTC")),
    ]
)
"""First columns of the chunks of a file that holds many images."""
TIMESTAMP: Final = FILE_COLUMNS.field("modification_time").type


@dataclass(frozen=True)
class Chunk:
    """M encoded images, in order."""

    columns: pa.RecordBatch
    """M rows: `image_id` and the carried columns."""
    contents: Iterable[bytes | ImageError]
    """M encoded images, or the reason why there is none. Iterate once: each image may be read only then."""


@dataclass(frozen=True)
class VectorChunk:
    """M embeddings that another program computed, in order."""

    columns: pa.RecordBatch
    """M rows: `image_id` and the carried columns."""
    vectors: npt.NDArray[np.float32]
    """float32, shape (M, D), of any norm; rows with a problem hold any numbers."""
    problems: Mapping[int, ImageError] = field(default_factory=dict)
    """Row number → the reason why the row has no vector of D numbers."""


class Reader(Protocol):
    """Reads images from rows that Spark lists. Small and picklable: it travels to the executors."""

    def read(self, listed: Iterator[pa.RecordBatch]) -> Iterator[Chunk]:
        """Yield the images of all rows, in order.

        Args:
            listed: The source's listing: `path`, `modificationTime`, `length`, or a table's columns.
        """


class VectorReader(Protocol):
    """Reads embeddings from rows that Spark lists: like `Reader`."""

    def read(self, listed: Iterator[pa.RecordBatch]) -> Iterator[VectorChunk]:
        """Yield the embeddings of all rows, in order."""


def slices(batches: Iterable[pa.RecordBatch], num_rows: int) -> Iterator[pa.RecordBatch]:
    """Yield the rows of batches, at most `num_rows` at once."""
    for batch in batches:
        for start in range(0, batch.num_rows, num_rows):
            yield batch.slice(start, num_rows)


def length_problem(length: int | None, max_bytes: int) -> ImageError | None:
    """Return the error of an encoded image that is longer than `max_bytes`; a null length has none."""
    return too_long(length, max_bytes) if length is not None and length > max_bytes else None
