"""Files as the cluster sees them: any URI that Spark reads, through Hadoop's FileSystem.

Spark has no public way from Python to its file systems; all use of the private one is in this file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final

from pyspark.sql import DataFrame, Row, SparkSession

_PATTERN: Final = re.compile(r"[\\*?\[\]{}^]")  # what Hadoop's globs do not take for itself


def file_system(spark: SparkSession, uri: str) -> tuple[Any, Any]:
    """Return the FileSystem of a URI, and the URI as its Path, with scheme and authority."""
    path = spark._jvm.org.apache.hadoop.fs.Path(uri)  # type: ignore[union-attr]  # noqa: SLF001
    files = path.getFileSystem(spark._jsc.hadoopConfiguration())  # noqa: SLF001
    return files, files.makeQualified(path)


def exists(spark: SparkSession, uri: str) -> bool:
    """Whether there is a file or directory."""
    files, path = file_system(spark, uri)
    return bool(files.exists(path))


def list_names(spark: SparkSession, uri: str) -> list[str]:
    """Return the names in a directory; none where it is not there."""
    files, path = file_system(spark, uri)
    if not files.exists(path):
        return []
    return [str(status.getPath().getName()) for status in files.listStatus(path)]


def name_matcher(spark: SparkSession, glob: str) -> Any:  # noqa: ANN401 - org.apache.hadoop.fs.GlobPattern
    """Return what Spark's pathGlobFilter matches file names with."""
    return spark._jvm.org.apache.hadoop.fs.GlobPattern(glob)  # type: ignore[union-attr]  # noqa: SLF001


def literally(uri: str) -> str:
    """Return what Spark's readers, which take a path for a pattern, take for this path and no other."""
    return _PATTERN.sub(r"\\\g<0>", uri)


def settings(spark: SparkSession, prefixes: Sequence[str]) -> dict[str, str]:
    """Return Hadoop's settings whose names begin with one of the prefixes, references in them resolved."""
    configuration = spark._jsc.hadoopConfiguration()  # noqa: SLF001
    return {
        prefix + name: str(value)
        for prefix in prefixes
        for name, value in configuration.getPropsWithPrefix(prefix).items()
    }


def delete(spark: SparkSession, uri: str) -> None:
    """Delete a file, or a directory and all in it, if it is there."""
    files, path = file_system(spark, uri)
    files.delete(path, True)  # noqa: FBT003 - Java has no keywords


def local_path(spark: SparkSession, uri: str) -> Path | None:
    """Return where a URI lies in the driver's own file system; None where it lies elsewhere."""
    _, path = file_system(spark, uri)
    return Path(path.toUri().getPath()) if path.toUri().getScheme() == "file" else None


def read_text(spark: SparkSession, uri: str) -> str:
    """Return the content of a small file, UTF-8.

    Raises:
        Py4JJavaError: It is not there, or cannot be read.
    """
    files, path = file_system(spark, uri)
    stream = files.open(path)
    try:
        return bytes(stream.readAllBytes()).decode(errors="replace")
    finally:
        stream.close()


def write_text(spark: SparkSession, uri: str, text: str, *, overwrite: bool) -> None:
    """Write a small file, UTF-8.

    Raises:
        Py4JJavaError: It is there already and `overwrite` is not set, or it cannot be written.
    """
    files, path = file_system(spark, uri)
    stream = files.create(path, overwrite)
    try:
        stream.write(bytearray(text.encode()))
    finally:
        stream.close()


def modified_ms(spark: SparkSession, uri: str) -> int:
    """Return when a file was modified, by the clock of its file system: milliseconds since 1970.

    Raises:
        Py4JJavaError: It is not there.
    """
    files, path = file_system(spark, uri)
    return int(files.getFileStatus(path).getModificationTime())


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
