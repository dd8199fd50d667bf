"""What a reader yields: some images on their way to the scorer, and what is known of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from nsfw_spark.errors import ImageError

CHUNK_ROWS: Final = 64
"""Images in a chunk: as few as an Arrow batch of images should hold, as many as cost nothing."""

MOST_BYTES: Final = 1 << 30
"""Of an encoded image where nobody says less: a row of Spark's holds no more than twice that."""


@dataclass(frozen=True)
class Chunk:
    """M encoded images, in order."""

    columns: pa.RecordBatch
    """M rows: `image_id`, and what the source carries along."""
    contents: Iterable[bytes | ImageError]
    """M times the encoded image, or why there is none; taken once, and may be read only then."""


@dataclass(frozen=True)
class VectorChunk:
    """M embeddings that were computed elsewhere, in order."""

    columns: pa.RecordBatch
    """M rows: `image_id`, and what the source carries along."""
    vectors: npt.NDArray[np.float32]
    """float32, shape (M, D), of any length; rows with a problem hold anything."""
    problems: Mapping[int, ImageError] = field(default_factory=dict)
    """By row: why there is no vector of D numbers."""


class Reader(Protocol):
    """Reads what Spark lists. Small and picklable: it travels to the executors."""

    def read(self, listed: Iterator[pa.RecordBatch]) -> Iterator[Chunk]:
        """Yield the images of all that is listed, in order.

        Args:
            listed: With the columns that the source lists, such as `path`, `modificationTime`, `length`.
        """


class VectorReader(Protocol):
    """Reads embeddings that Spark lists: like `Reader`."""

    def read(self, listed: Iterator[pa.RecordBatch]) -> Iterator[VectorChunk]:
        """Yield the embeddings of all that is listed, in order."""
