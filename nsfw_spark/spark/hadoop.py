"""Files of any URI that Spark reads, through Hadoop's FileSystem.

Spark has no public way from Python to its file systems. This file holds all uses of the private one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final

from py4j.protocol import Py4JJavaError
from pyspark.sql import DataFrame, Row, SparkSession

from nsfw_spark.uris import HIDDEN

_PATTERN: Final = re.compile(r"[\\*?\[\]{}^]")  # characters with a meaning in Hadoop's globs


def file_system(spark: SparkSession, uri: str) -> tuple[Any, Any]:
    """Return a URI's FileSystem, and the URI as a Path with scheme and authority."""
    path = spark._jvm.org.apache.hadoop.fs.Path(uri)  # type: ignore[union-attr]  # noqa: SLF001
    files = path.getFileSystem(spark._jsc.hadoopConfiguration())  # noqa: SLF001
    return files, files.makeQualified(path)


def has_file_system(spark: SparkSession, scheme: str) -> bool:
    """Whether Spark's class path has the FileSystem of a scheme."""
    configuration = spark._jsc.hadoopConfiguration()  # noqa: SLF001
    try:
        spark._jvm.org.apache.hadoop.fs.FileSystem.getFileSystemClass(scheme, configuration)  # type: ignore[union-attr]  # noqa: SLF001
    except Py4JJavaError:
        return False
    return True


def exists(spark: SparkSession, uri: str) -> bool:
    """Whether a file or directory exists."""
    files, path = file_system(spark, uri)
    return bool(files.exists(path))


def list_names(spark: SparkSession, uri: str) -> list[str]:
    """Return the names in a directory; none if it does not exist."""
    files, path = file_system(spark, uri)
    if not files.exists(path):
        return []
    return [str(status.getPath().getName()) for status in files.listStatus(path)]


def name_matcher(spark: SparkSession, glob: str) -> Any:  # noqa: ANN401 - org.apache.hadoop.fs.GlobPattern
    """Return the matcher of file names that Spark's pathGlobFilter uses."""
    return spark._jvm.org.apache.hadoop.fs.GlobPattern(glob)  # type: ignore[union-attr]  # noqa: SLF001


def literally(uri: str) -> str:
    """Return a path as Spark's readers take it literally; they read a path as a pattern."""
    return _PATTERN.sub(r"\\\g<0>", uri)


def settings(spark: SparkSession, prefixes: Sequence[str]) -> dict[str, str]:
    """Return Hadoop's settings with one of the name prefixes; references in them are resolved."""
    configuration = spark._jsc.hadoopConfiguration()  # noqa: SLF001
    return {
        prefix + name: str(value)
        for prefix in prefixes
        for name, value in configuration.getPropsWithPrefix(prefix).items()
    }


def delete(spark: SparkSession, uri: str) -> None:
    """Delete a file, or a directory and all in it, if it exists."""
    files, path = file_system(spark, uri)
    files.delete(path, True)  # noqa: FBT003 - Java has no keywords


def local_path(spark: SparkSession, uri: str) -> Path | None:
    """Return a URI's path in the driver's own file system; None if it is elsewhere."""
    _, path = file_system(spark, uri)
    return Path(path.toUri().getPath()) if path.toUri().getScheme() == "file" else None


def read_text(spark: SparkSession, uri: str) -> str:
    """Return the content of a small file, UTF-8; Java raises an error if it cannot be read."""
    files, path = file_system(spark, uri)
    stream = files.open(path)
    try:
        return bytes(stream.readAllBytes()).decode(errors="replace")
    finally:
        stream.close()


def write_text(spark: SparkSession, uri: str, text: str, *, overwrite: bool) -> None:
    """Write a small file, UTF-8; without `overwrite`, Java raises an error if it exists."""
    files, path = file_system(spark, uri)
    stream = files.create(path, overwrite)
    try:
        stream.write(bytearray(text.encode()))
    finally:
        stream.close()


def modified_ms(spark: SparkSession, uri: str) -> int:
    """Return when a file was modified, by its file system's clock: milliseconds since 1970."""
    files, path = file_system(spark, uri)
    return int(files.getFileStatus(path).getModificationTime())


def in_lists(frame: DataFrame, num_rows: int) -> Iterator[list[Row]]:
    """Yield a DataFrame's rows in lists of `num_rows`; Spark computes one partition after the other."""
    # Not DataFrame.toLocalIterator: its jobs start after its query has ended, and the scheduler of Spark 4.2
    # keeps such jobs for ever (DAGScheduler.activeQueryToJobs), each with the tables that it broadcast: 32 MB
    # of the driver's memory a call. Jobs of an RDD belong to no query.
    rows = frame.rdd.toLocalIterator()
    while next_rows := list(islice(rows, num_rows)):
        yield next_rows


def files_below(spark: SparkSession, uri: str, glob: str | None = None) -> Iterator[str]:
    """Yield the URIs of the files that Spark would list, as they are found."""
    files, path = file_system(spark, uri)
    matcher = None if glob is None else name_matcher(spark, glob)
    if files.getFileStatus(path).isFile():
        found: Iterator[tuple[str, str]] = iter([(path.getName(), str(path.toString()))])
    else:
        local = local_path(spark, uri)
        found = _below(files, path) if local is None else _below_local(local)
    yield from (file for name, file in found if matcher is None or matcher.matches(name))


def _below(files: Any, directory: Any) -> Iterator[tuple[str, str]]:  # noqa: ANN401 - Java objects
    """Yield name and URI of all files below a directory."""
    found = files.listStatusIterator(directory)
    while found.hasNext():
        status = found.next()
        path, name = status.getPath(), status.getPath().getName()
        if name.startswith(HIDDEN):
            continue
        if status.isDirectory():
            yield from _below(files, path)
        else:
            yield name, str(path.toString())


def _below_local(directory: Path) -> Iterator[tuple[str, str]]:
    """Like `_below`, with os.scandir: Hadoop stats a whole directory before it yields a file."""
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.name.startswith(HIDDEN):
                continue
            if entry.is_dir():
                yield from _below_local(Path(entry.path))
            else:
                yield entry.name, f"file:{entry.path}"
