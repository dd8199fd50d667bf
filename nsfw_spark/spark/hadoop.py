"""Files as the cluster sees them: any URI that Spark reads, through Hadoop's FileSystem.

Spark has no public way from Python to its file systems; all use of the private one is in this file.
"""

from __future__ import annotations

from typing import Any

from pyspark.sql import SparkSession


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
