"""Readers: files or rows that Spark lists → images or embeddings, in the Python workers.

Spark lists files and deals them out to tasks; it does not read their bytes. A reader opens each file as a
stream, in constant memory, and yields chunks for the scorer. A damaged file costs its own rows, never the
task. Readers know pyarrow, not Spark; `nsfw_spark.spark.sources` is the driver's side.
"""

from __future__ import annotations

from nsfw_spark.readers.chunk import Chunk, Reader, VectorChunk, VectorReader

__all__ = ["Chunk", "Reader", "VectorChunk", "VectorReader"]
