"""Readers: what Spark lists → images or embeddings, in the Python worker.

Spark lists files and deals them out to tasks; the bytes it does not touch. A reader opens each file of its
task as a stream, in memory that does not grow with the file, and yields chunks for the scorer. A file that is
damaged costs its own rows, never the task. Knows pyarrow, not Spark.
"""

from __future__ import annotations

from nsfw_spark.readers.chunk import Chunk, Reader, VectorChunk, VectorReader

__all__ = ["Chunk", "Reader", "VectorChunk", "VectorReader"]
