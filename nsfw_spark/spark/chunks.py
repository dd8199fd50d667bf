"""Reads rows of which the driver cannot hold all."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from pyspark.sql import DataFrame, Row


def in_chunks(frame: DataFrame, num_rows: int) -> Iterator[list[Row]]:
    """Yield a frame's rows, so many at a time; Spark computes one partition after the other.

    Args:
        frame: Any.
        num_rows: Of a chunk; the last one may have fewer.
    """
    # Not DataFrame.toLocalIterator: its jobs start after its query has ended, and the scheduler of Spark 4.2
    # keeps such jobs for ever (DAGScheduler.activeQueryToJobs), each with the tables that it broadcast: 32 MB
    # of the driver's memory a call. Jobs of an RDD belong to no query.
    rows = frame.rdd.toLocalIterator()
    while chunk := list(islice(rows, num_rows)):
        yield chunk
