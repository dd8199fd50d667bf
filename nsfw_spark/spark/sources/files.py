"""Files on the driver: lists files with Spark; `readers.files` is the worker's half, which reads images.

Spark's binaryFile format lists a directory and, as a stream, remembers the listed files. It opens no file as
long as nobody selects its column `content`, so a listed file may be of any size.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from itertools import islice
from typing import ClassVar, Final

from py4j.protocol import Py4JJavaError
from pyspark.sql import Column, DataFrame, Row, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import BinaryType, LongType, StringType, StructField, StructType, TimestampType

from nsfw_spark.errors import ImageError, InputError
from nsfw_spark.readers.chunk import MOST_BYTES
from nsfw_spark.readers.files import ContentReader, FileReader
from nsfw_spark.readers.storage import OPENED_ANYWHERE
from nsfw_spark.spark.hadoop import file_system, files_below, literally, name_matcher
from nsfw_spark.spark.schema import IMAGE_ID, MODIFICATION_TIME
from nsfw_spark.spark.sources.source import Limit, Source, SourceOptions
from nsfw_spark.uris import absolute_uri

LISTED: Final = ("path", "modificationTime", "length")
"""Columns of a listing; a reader opens `path`."""

# A stream's schema must be given; the format has this one.
_BINARY_FILE: Final = StructType(
    [
        StructField("path", StringType()),
        StructField("modificationTime", TimestampType()),
        StructField("length", LongType()),
        StructField("content", BinaryType()),
    ]
)
_LISTED_SCHEMA: Final = StructType([_BINARY_FILE[name] for name in LISTED])
_FILES_TRIED: Final = 10  # for the schema, while the files before are damaged
_LAST_LETTER: Final = re.compile(r"([A-Za-z0-9])([^A-Za-z0-9]*)$")
_WITHOUT_DIRECTORIES: Final = ("s3:", "s3a:", "s3n:", "gs:", "abfs:", "abfss:")
"""Stores in which a directory without files does not exist."""


class ListedFiles(Source):
    """One file, or a directory of files with all directories below it.

    Spark skips empty files, and names that begin with `_` or `.`.
    """

    holds: ClassVar[str] = "files"
    """The files that the directory should hold, for messages."""
    suffixes: ClassVar[tuple[str, ...]] = ()
    """Suffixes of the files, in any case; empty means any name."""
    bytes_per_image: int | None = None
    """Estimate; None if a file is one image."""
    is_read_by_spark: bool = False
    """Whether Spark reads the files, because Python has no client for their file system."""

    def __init__(self, spark: SparkSession, options: SourceOptions) -> None:
        self.spark = spark
        self.max_bytes = min(options.max_bytes, MOST_BYTES)
        self.glob = options.glob or (_ending_in(self.suffixes) if self.suffixes else None)
        self.uri = self._full_uri(options)
        if self.lack is None and next(files_below(spark, self.uri, self.glob), None) is None:
            ending = f" that ends in .{', .'.join(self.suffixes)}" if self.suffixes else ""
            self.lack = (
                f"input {options.uri} holds no file"
                f"{f' that matches {options.glob}' if options.glob else ending}; expected a directory with "
                f"{self.holds}"
            )
            if not options.may_be_empty:
                raise InputError(self.lack)

    def stream(self, limit: Limit) -> DataFrame:
        """List new files: see `Source.stream`."""
        return self.prepared(self.files(limit))

    def batch(self) -> DataFrame:
        """List all files: see `Source.batch`."""
        return self.prepared(self.files())

    def listing(self, *, is_whole: bool = False) -> DataFrame:
        """List files without opening one.

        Files that are gone are skipped. So are refused ones, unless `is_whole`: then they are an error.
        """
        skips = {"ignoreMissingFiles": "true", "ignoreCorruptFiles": str(not is_whole).lower()}
        return (self.files() if self.lack else self._load(self.uri, **skips)).select(*LISTED)

    def listed_again(self, files: list[Row]) -> DataFrame:
        """Return the reader's input for some files of a listing."""
        return self.prepared(self.spark.createDataFrame(files, _LISTED_SCHEMA))

    def rows_of(self, scores: DataFrame, directory: str | None = None) -> DataFrame:
        """Return the rows of image_scores that this source could have made, with their file as `file`.

        Rows of files that another format or `--glob` reads below the same directory are not among them. With
        another directory, return the rows that this source would make there.
        """
        name = self.file_column or "image_id"
        if name not in scores.columns:
            return scores.withColumn("file", F.col("image_id")).limit(0)
        file = F.col(name)
        rows = scores.filter(is_below(file, directory or self.uri)).withColumn("file", file)
        if name == "image_id" and "source_file" in scores.columns:
            rows = rows.filter(F.col("source_file").isNull())
        if self.glob is None:
            return rows
        pattern = name_matcher(self.spark, self.glob).compiled().pattern()
        return rows.filter(F.substring_index("file", "/", -1).rlike(pattern))

    def prepared(self, files: DataFrame) -> DataFrame:
        """Turn binaryFile's columns into the reader's input."""
        return files.select(*LISTED)

    def files(self, limit: Limit | None = None) -> DataFrame:
        """Return binaryFile's columns of all files, or with a limit of new files, as a stream."""
        if limit is None:
            return self.spark.createDataFrame([], _BINARY_FILE) if self.lack else self._load(self.uri)
        reader = (
            self.spark.readStream.format("binaryFile")
            .schema(_BINARY_FILE)
            .options(**self._file_options())
            .options(**self._limit_options(limit))
            # By default the stream skips files a week older than the newest file that it has seen.
            .option("maxFileAge", "36500d")
            # A file that is deleted after it was listed would fail its micro-batch again and again.
            .option("ignoreMissingFiles", "true")
        )
        pattern = literally(self.uri)
        if self.lack:  # Spark checks that a path exists, but not a pattern
            pattern = _LAST_LETTER.sub(r"[\1]\2", pattern)
        return reader.load(pattern)

    def learn(self, read: Callable[[str], StructType]) -> StructType:
        """Return the schema that `read` finds in the first undamaged file.

        Raises:
            InputError: The first ten files are damaged.
        """
        problems = []
        for uri in islice(files_below(self.spark, self.uri, self.glob), _FILES_TRIED):
            try:
                return read(uri)
            except ImageError as error:
                problems.append(f"{uri}: {error}")
        raise InputError(
            f"input {self.uri}: none of its first {len(problems)} files can be read; expected an undamaged "
            f"one. The first: {problems[0]}"
        )

    def _full_uri(self, options: SourceOptions) -> str:
        uri = absolute_uri(options.uri)
        try:
            files, path = file_system(self.spark, uri)
            files.getFileStatus(path)
        except Py4JJavaError as error:
            reason = str(error.java_exception.getMessage()).splitlines()[0]
            self.lack = f"input {options.uri} cannot be read: {reason}. Expected a directory"
            is_absent = error.java_exception.getClass().getSimpleName() == "FileNotFoundException"
            if not (is_absent and options.may_be_empty and uri.startswith(_WITHOUT_DIRECTORIES)):
                raise InputError(self.lack) from None
        return str(path.toString())

    def _load(self, *uris: str, **options: str) -> DataFrame:
        reader = self.spark.read.format("binaryFile").options(**self._file_options(), **options)
        return reader.schema(_BINARY_FILE).load([literally(uri) for uri in uris])

    def _limit_options(self, limit: Limit) -> dict[str, str]:
        if limit.num_files is not None:
            return {"maxFilesPerTrigger": str(limit.num_files)}
        if self.bytes_per_image is None:
            return {"maxFilesPerTrigger": str(limit.num_images)}
        return {"maxBytesPerTrigger": str(limit.num_images * self.bytes_per_image)}

    def _file_options(self) -> dict[str, str]:
        glob = {} if self.glob is None else {"pathGlobFilter": self.glob}
        return {"recursiveFileLookup": "true", **glob}


class ImageFiles(ListedFiles):
    """Image files of any format; the image_id is the file's URI."""

    holds = "images"
    columns = StructType([IMAGE_ID, MODIFICATION_TIME])
    has_image_files = True
    file_column: str | None = "image_id"

    def __init__(self, spark: SparkSession, options: SourceOptions) -> None:
        super().__init__(spark, options)
        options.check_named(self.columns.names)
        scheme = self.uri.partition(":")[0]
        self.is_read_by_spark = scheme not in OPENED_ANYWHERE
        storage = None if scheme == "file" else self.storage()
        reader = FileReader(storage, self.max_bytes)
        self.reader = ContentReader(self.max_bytes) if self.is_read_by_spark else reader

    def images(self, limit: Limit | None = None) -> DataFrame:
        """Return binaryFile's columns and `image_id`: see `Source.images`."""
        return self.files(limit).withColumn("image_id", F.col("path"))

    def prepared(self, files: DataFrame) -> DataFrame:
        """List files; let Spark read the bytes where Python has no client for the file system, as for HDFS.

        Spark reads a file whole, and a file beyond 2 GiB fails its task. So too long files are skipped before
        Spark opens them.
        """
        if not self.is_read_by_spark:
            return files.select(*LISTED)
        return _as_images(files.filter(F.col("length") <= self.max_bytes))

    def listed_again(self, files: list[Row]) -> DataFrame:
        """Return the reader's input for some files: see `ListedFiles.listed_again`."""
        if not self.is_read_by_spark:
            return super().listed_again(files)
        # A file that Spark cannot read, or that is too long to be read, keeps its row without bytes.
        paths = [file.path for file in files if file.length <= self.max_bytes]
        listed = self.spark.createDataFrame(files, _LISTED_SCHEMA)
        if not paths:
            return _as_images(listed.withColumn("content", F.lit(None).cast("binary")))
        contents = self._load(*paths, ignoreMissingFiles="true", ignoreCorruptFiles="true")
        return _as_images(listed.join(contents.select("path", "content"), "path", "left"))


def _as_images(files: DataFrame) -> DataFrame:
    """Turn binaryFile's columns into the input of `ContentReader`."""
    modified = F.col("modificationTime").alias("modification_time")
    return files.select(F.col("path").alias("image_id"), modified, "length", "content")


def is_below(file: Column, directory: str) -> Column:
    """Whether a file is a directory's, or the file of that name; a bucket's root ends in a slash."""
    return file.startswith(f"{directory.rstrip('/')}/") | (file == directory)


def _ending_in(suffixes: Iterable[str]) -> str:
    """Return a glob for names with one of the suffixes, in any case."""
    in_any_case = (
        "".join(f"[{char}{char.upper()}]" if char.isalpha() else char for char in suffix)
        for suffix in suffixes
    )
    return f"*.{{{','.join(in_any_case)}}}"
