"""One run at a time on one output.

Two runs at once would each count the other's images as an interrupted run's, and write filtered tables from
different versions of image_scores. So each run holds a lock that lies beside the tables; the second stops
before it writes anything.

On a file system of the driver's own machine it is the kernel's (`flock`): it goes when the process goes,
however that ends. Elsewhere it is a lease: a small file that its holder writes anew every 15 s. One that was
not renewed for 90 s, or whose process is known to be gone, is nobody's. These 90 s are the difference of two
modification times that the same file system gave: no two clocks are compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from pyspark.sql import SparkSession

from nsfw_spark.spark.hadoop import local_path
from nsfw_spark.spark.lock.flock import has_flock, locked_file
from nsfw_spark.spark.lock.holder import Holder
from nsfw_spark.spark.lock.lease import Lease
from nsfw_spark.spark.output import Output

__all__ = ["Holder", "Lease", "locked_file", "one_run_at_a_time"]

_NAME: Final = "run.lock"


@contextmanager
def one_run_at_a_time(spark: SparkSession, output: Output) -> Iterator[bool]:
    """Hold the output for this run.

    Yields:
        Whether it is held. A catalog schema without a directory for checkpoints, as `filter` may be given,
        has no place for a lock.

    Raises:
        TableError: Another run holds it, or has taken it over while this process was suspended.
    """
    uri = _uri(output)
    if uri is None:
        yield False
        return
    path = local_path(spark, uri)
    lock = locked_file(path) if path is not None and has_flock(path) else Lease(spark, uri).held()
    with lock:
        yield True


def _uri(output: Output) -> str | None:
    """Return where an output's lock lies: for a directory the same, wherever its checkpoints are."""
    directory = output.checkpoints if output.is_schema else f"{output.location}/_checkpoints"
    return None if directory is None else f"{directory}/{_NAME}"
