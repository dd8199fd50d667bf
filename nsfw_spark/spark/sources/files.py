"""Lists files with Spark: the part that sources of files share.

Spark's binaryFile format lists a directory and, as a stream, remembers what it has listed. Without its column
`content` it opens no file, so a listed file may be of any size.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Final, TypeVar

from py4j.protocol import Py4JJavaError
from pyspark.sql import DataFrame, Row, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import BinaryType, LongType, StringType, StructField, StructType, TimestampType

from nsfw_spark.errors import ConfigError, ImageError, InputError
from nsfw_spark.readers.chunk import MOST_BYTES
from nsfw_spark.readers.files import ContentReader, LocalFileReader
from nsfw_spark.readers.storage import HADOOP_PREFIXES, Storage
from nsfw_spark.spark.hadoop import file_system, literally, local_path, name_matcher, settings
from nsfw_spark.spark.schema import IMAGE_ID, MODIFICATION_TIME
from nsfw_spark.spark.sources.source import Limit, Source, SourceOptions
from nsfw_spark.uris import absolute_uri

Reader = TypeVar("Reader")

LISTED: Final = ("path", "modificationTime", "length")
"""Columns of what is listed; a reader opens `path`."""

# A stream's schema must be given; this one is fixed by the format.
_BINARY_FILE: Final = StructType(
    [
        StructField("path", StringType()),
        StructField("modificationTime", TimestampType()),
        StructField("length", LongType()),
        StructField("content", BinaryType()),
    ]
)
LISTED_SCHEMA: Final = StructType([_BINARY_FILE[name] for name in LISTED])
_HIDDEN: Final = ("_", ".")  # how names begin of what Spark leaves out
_FILES_TRIED: Final = 10  # to learn the columns from, if the first is damaged


class ListedFiles(Source):
    """A directory of files, with all below it, or one file.

    Spark itself leaves out empty files, and those whose names begin with `_` or `.`.
    """

    holds: ClassVar[str] = "files"
    """What the directory is expected to hold, for messages."""
    suffixes: ClassVar[tuple[str, ...]] = ()
    """What the names of such files end in, in any case; empty: any name."""
    bytes_per_image: ClassVar[int | None] = None
    """About; None where a file is one image."""
    columns_read: ClassVar[tuple[str, ...]] = LISTED

    def __init__(self, spark: SparkSession, options: SourceOptions) -> None:
        self.spark = spark
        self._glob = options.glob or (_ending_in(self.suffixes) if self.suffixes else None)
        self.uri = self._checked(options)

    def stream(self, limit: Limit) -> DataFrame:
        """List what is new: see `Source.stream`."""
        return self.prepared(self.files(limit))

    def stream_without_unreadable(self, limit: Limit) -> DataFrame:
        """List what is new, and pass over files that cannot be read, in place of failing their task."""
        return self.prepared(self.files(limit, skip_unreadable=True))

    def batch(self) -> DataFrame:
        """List all that is there now: see `Source.batch`."""
        return self.prepared(self.files())

    def files(self, limit: Limit | None = None, *, skip_unreadable: bool = False) -> DataFrame:
        """Return binaryFile's columns: of new files, as a stream; without a limit of all that are there."""
        if limit is None:
            return self._load(self.uri)
        reader = (
            self.spark.readStream.format("binaryFile")
            .schema(_BINARY_FILE)
            .options(**self._file_options())
            .options(**self._limit_options(limit))
            # The stream would skip, in silence, files a week older than the newest it has seen.
            .option("maxFileAge", "36500d")
            # A file that is deleted after it was listed would fail its micro-batch for ever.
            .option("ignoreMissingFiles", "true")
            .option("ignoreCorruptFiles", str(skip_unreadable).lower())
        )
        return reader.load(literally(self.uri))

    def listing(self) -> DataFrame:
        """List all files that are there now, and open none: `path`, `modificationTime`, `length`."""
        return self.files().select(*LISTED)

    def listed_again(self, files: list[Row]) -> DataFrame:
        """Return what the reader gets of some files of a listing."""
        return self.prepared(self.spark.createDataFrame(files, LISTED_SCHEMA))

    def prepared(self, files: DataFrame) -> DataFrame:
        """Return what the reader gets of the binaryFile columns."""
        return files.select(*self.columns_read)

    def storage(self) -> Storage:
        """Return what Python workers open files with: the credentials are Spark's."""
        return Storage(settings(self.spark, HADOOP_PREFIXES))

    def learn(self, read: Callable[[str], Reader]) -> Reader:
        """Return what `read` makes of the first file, or of one of the next if that is damaged.

        Raises:
            InputError: All that were tried are damaged.
        """
        problems = []
        for uri in self._first_files(_FILES_TRIED):
            try:
                return read(uri)
            except ImageError as error:
                problems.append(f"{uri}: {error}")
        raise InputError(
            f"input {self.uri}: of its first {len(problems)} files none can be read; the first: {problems[0]}"
        )

    def _checked(self, options: SourceOptions) -> str:
        """Make sure that there is something to list, without listing it all; return the full URI."""
        ending = f" that ends in .{', .'.join(self.suffixes)}" if self.suffixes else ""
        matching = f" that matches {options.glob}" if options.glob else ending
        try:
            files, path = file_system(self.spark, absolute_uri(options.uri))
            files.getFileStatus(path)
        except Py4JJavaError as error:
            said = str(error.java_exception.getMessage()).splitlines()[0]
            raise InputError(f"input {options.uri} cannot be read: {said}. Expected a directory") from None
        self.uri = str(path.toString())
        if next(self._first_files(1), None) is None:
            raise InputError(
                f"input {options.uri} holds no file{matching}; expected a directory with {self.holds}"
            )
        return self.uri

    def _first_files(self, number: int) -> Iterator[str]:
        """Yield the URIs of some files that Spark would list."""
        found = files_below(self.spark, self.uri, self._glob)
        for _, uri in zip(range(number), found, strict=False):
            yield uri

    def _load(self, *uris: str) -> DataFrame:
        reader = self.spark.read.format("binaryFile").options(**self._file_options())
        return reader.schema(_BINARY_FILE).load([literally(uri) for uri in uris])

    def _limit_options(self, limit: Limit) -> dict[str, str]:
        if limit.num_files is not None:
            return {"maxFilesPerTrigger": str(limit.num_files)}
        if self.bytes_per_image is None:
            return {"maxFilesPerTrigger": str(limit.num_images)}
        return {"maxBytesPerTrigger": str(limit.num_images * self.bytes_per_image)}

    def _file_options(self) -> dict[str, str]:
        options = {"recursiveFileLookup": "true"}
        if self._glob is not None:
            options["pathGlobFilter"] = self._glob
        return options


def _ending_in(suffixes: Iterable[str]) -> str:
    """Return a glob of names that end so, in upper or lower case."""
    in_any_case = (
        "".join(f"[{char}{char.upper()}]" if char.isalpha() else char for char in suffix)
        for suffix in suffixes
    )
    return f"*.{{{','.join(in_any_case)}}}"


def files_below(spark: SparkSession, uri: str, glob: str | None = None) -> Iterator[str]:
    """Yield the URIs of the files that Spark would list, as they are found: not those named `_…` or `.…`."""
    files, path = file_system(spark, uri)
    matcher = None if glob is None else name_matcher(spark, glob)
    if files.getFileStatus(path).isFile():
        found: Iterator[tuple[str, str]] = iter([(path.getName(), str(path.toString()))])
    else:
        local = local_path(spark, uri)
        found = _below(files, path) if local is None else _below_local(local)
    yield from (file for name, file in found if matcher is None or matcher.matches(name))


def _below(files: Any, directory: Any) -> Iterator[tuple[str, str]]:  # noqa: ANN401 - Java objects
    """Yield name and URI of the files in a directory and below."""
    found = files.listStatusIterator(directory)
    while found.hasNext():
        status = found.next()
        path, name = status.getPath(), status.getPath().getName()
        if name.startswith(_HIDDEN):
            continue
        if status.isDirectory():
            yield from _below(files, path)
        else:
            yield name, str(path.toString())


def _below_local(directory: Path) -> Iterator[tuple[str, str]]:
    """Do the same for a local one, of which Hadoop would look at every file before it tells of the first."""
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.name.startswith(_HIDDEN):
                continue
            if entry.is_dir():
                yield from _below_local(Path(entry.path))
            else:
                yield entry.name, f"file:{entry.path}"


class ImageFiles(ListedFiles):
    """Image files of any format; the image_id is the file's URI."""

    holds = "images"
    columns = StructType([IMAGE_ID, MODIFICATION_TIME])
    file_column: str | None = "image_id"

    def __init__(self, spark: SparkSession, options: SourceOptions) -> None:
        super().__init__(spark, options)
        self._is_local = self.uri.startswith("file:")
        self._max_bytes = min(options.max_bytes, MOST_BYTES)  # of what Spark reads
        self.reader = LocalFileReader(options.max_bytes) if self._is_local else ContentReader(self._max_bytes)

    def prepared(self, files: DataFrame) -> DataFrame:
        """Let Spark read the bytes where it has the credentials, and no more than list local files.

        It reads a file whole, which beyond 2 GiB fails the task: so files that are too long are passed over
        before they are opened.
        """
        if self._is_local:
            return files.select(*LISTED)
        return _as_images(files.filter(F.col("length") <= self._max_bytes))

    def listed_again(self, files: list[Row]) -> DataFrame:
        """Return what the reader gets of some files: see `ListedFiles.listed_again`."""
        if self._is_local:
            return super().listed_again(files)
        # Their rows are about to be replaced: those that are too long to be read need theirs here.
        too_long = self.spark.createDataFrame(
            [file for file in files if file.length > self._max_bytes], LISTED_SCHEMA
        )
        rows = _as_images(too_long.withColumn("content", F.lit(None).cast("binary")))
        paths = [file.path for file in files if file.length <= self._max_bytes]
        return self.prepared(self._load(*paths)).unionByName(rows) if paths else rows


def _as_images(files: DataFrame) -> DataFrame:
    """Return binaryFile's columns as `ContentReader` wants them."""
    return files.select(
        F.col("path").alias("image_id"),
        F.col("modificationTime").alias("modification_time"),
        "length",
        "content",
    )


class AutoLoaderFiles(ImageFiles):
    """Like `files`, listed by Auto Loader, whose log of listed files only Databricks reads.

    So files that it passes over, empty or vanished ones, get no row: what `files` looks up afterwards.
    """

    file_column = None

    def __init__(self, spark: SparkSession, options: SourceOptions) -> None:
        if "DATABRICKS_RUNTIME_VERSION" not in os.environ:
            raise ConfigError(
                "--format cloudfiles is Databricks' Auto Loader, and this is not a Databricks cluster (there "
                "is no DATABRICKS_RUNTIME_VERSION); expected --format files, which lists the directory itself"
            )
        super().__init__(spark, options)

    def stream(self, limit: Limit) -> DataFrame:
        """List what is new: see `Source.stream`."""
        reader = self.spark.readStream.format("cloudFiles").options(**self.auto_loader_options(limit))
        return self.prepared(reader.load(literally(self.uri)))

    def auto_loader_options(self, limit: Limit) -> dict[str, str]:
        """Return the options of Auto Loader; the schema of binaryFile it knows itself.

        Source:
            docs.databricks.com, "Auto Loader options" (2026).
        """
        return {
            "cloudFiles.format": "binaryFile",
            "cloudFiles.includeExistingFiles": "true",
            "cloudFiles.maxFilesPerTrigger": str(limit.num_files or limit.num_images),
            # A changed file is not scored again silently: as with `files`.
            "cloudFiles.allowOverwrites": "false",
            **self._file_options(),
        }
