"""Tries out INPUT and OUT: list, read, write, rename, create once, delete, and the latency of small reads.

In: a session and a URI. Out: findings. What it writes lies in one directory below OUT whose name begins with
`_nsfw_spark_doctor-`. That directory, and each directory that was made for it, are gone at the end, also
after a failure or Ctrl-C.
"""

from __future__ import annotations

import statistics
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import cycle, islice
from typing import Any, Final

import pyarrow as pa
from py4j.protocol import Py4JError, Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

from nsfw_spark.doctor.finding import Finding
from nsfw_spark.errors import ConfigError, ImageError
from nsfw_spark.readers.storage import HADOOP_PREFIXES, Storage
from nsfw_spark.spark import hadoop
from nsfw_spark.spark.jars import no_connector
from nsfw_spark.uris import absolute_uri, in_sql, is_schema, may_be_table

INPUT: Final = "INPUT"
OUT: Final = "OUT"
PREFIX: Final = "_nsfw_spark_doctor-"
_NUM_READS: Final = 50
_READ_BYTES: Final = 4096
_SETTLE_SECONDS: Final = 0.5
_SLOW_SECONDS: Final = 0.5
_CONNECT: Final = "Spark Connect hides its file systems, so it was not probed"
_RIGHTS: Final = "docs/stores.md lists the permissions and settings of each store"


def check_input(spark: SparkSession, source: str) -> list[Finding]:
    """List INPUT, and read the first bytes of some files in a Python worker, as a run does."""
    if may_be_table(source):
        return [_check_table(spark, source)]
    if not hasattr(spark, "_jsc"):
        return [Finding(INPUT, "place", "note", source, "", _CONNECT)]
    uri = absolute_uri(source)
    if problem := _connector_problem(spark, INPUT, uri):
        return [problem]
    started = time.perf_counter()
    try:
        files = list(islice(hadoop.files_below(spark, uri), _NUM_READS))
    except (Py4JError, OSError) as error:
        cure = f"correct INPUT, or give the right to list it: {_RIGHTS}"
        return [Finding(INPUT, "listing", "problem", _reason(error), "a directory with images", "", cure)]
    seconds = time.perf_counter() - started
    if not files:
        cure = "correct INPUT; names that begin with _ or . are left out"
        return [Finding(INPUT, "listing", "problem", f"{uri} has no files", "files", "", cure)]
    more = "or more " if len(files) == _NUM_READS else ""
    listing = Finding(INPUT, "listing", "ok", f"{len(files)} {more}files in {seconds * 1000:,.0f} ms")
    return [listing, _check_reads(spark, INPUT, files)]


def check_output(spark: SparkSession, output: str) -> list[Finding]:
    """Write, read, rename and delete a small file below OUT, and try whether a file is created once."""
    if not hasattr(spark, "_jsc"):
        return [Finding(OUT, "place", "note", output, "", _CONNECT)]
    uri = _directory_of_schema(spark, output) if is_schema(output) else absolute_uri(output)
    if uri is None:
        why = "The catalog hides the place of the schema's tables, so it was not probed"
        return [Finding(OUT, "place", "note", output, "", why)]
    if problem := _connector_problem(spark, OUT, uri):
        return [problem]
    findings: list[Finding] = []
    step = "making a directory"
    try:
        with _probe_directory(spark, uri) as directory:
            for step, check in _STEPS:  # noqa: B007 - `step` is for the message
                findings.append(check(spark, directory))
    except (Py4JError, OSError) as error:
        cure = f"choose another OUT, or give the right: {_RIGHTS}"
        findings.append(Finding(OUT, step, "problem", _reason(error), "success", "", cure))
    return [*findings, _check_deleted(spark, uri)]


def _check_deleted(spark: SparkSession, uri: str) -> Finding:
    left = [name for name in _names(spark, uri) if name.startswith(PREFIX)]
    if not left:
        return Finding(OUT, "deleting", "ok", "the probe is gone")
    why = "Delta Lake and Spark's checkpoints delete files"
    cure = f"give the right to delete, and delete that directory yourself: {_RIGHTS}"
    return Finding(OUT, "deleting", "problem", f"{', '.join(left)} stays in {uri}", "nothing", why, cure)


def _names(spark: SparkSession, uri: str) -> list[str]:
    try:
        return hadoop.list_names(spark, uri)
    except Py4JError:
        return []


@contextmanager
def _probe_directory(spark: SparkSession, uri: str) -> Iterator[str]:
    """Yield the URI of a directory for probes; remove it, and the directories above that it needed."""
    files, path = hadoop.file_system(spark, uri)
    created = []
    while path is not None and not files.exists(path):
        created.append(path)
        path = path.getParent()
    directory = f"{uri.rstrip('/')}/{PREFIX}{uuid.uuid4().hex}"
    _, probe = hadoop.file_system(spark, directory)
    try:
        files.mkdirs(probe)
        files.deleteOnExit(probe)  # under spark-submit, Ctrl-C ends Java before this process
        yield directory
    except BaseException:
        time.sleep(_SETTLE_SECONDS)  # after Ctrl-C Java may still be writing
        raise
    finally:
        with suppress(Py4JError):
            hadoop.delete(spark, directory)
            files.cancelDeleteOnExit(probe)
        for each in created:
            with suppress(Py4JError):
                files.delete(each, False)  # noqa: FBT003 - not if somebody else has written there


def _write(spark: SparkSession, directory: str) -> Finding:
    started = time.perf_counter()
    hadoop.write_text(spark, f"{directory}/probe", "probe" * 200, overwrite=True)
    wrote = time.perf_counter() - started
    text = hadoop.read_text(spark, f"{directory}/probe")
    if text != "probe" * 200:
        raise OSError(f"read {len(text)} characters of 1000 that were written")
    if "probe" not in hadoop.list_names(spark, directory):
        raise OSError("a file that was written is not listed")
    return Finding(OUT, "writing", "ok", f"write {wrote * 1000:,.0f} ms; read and listed as written")


def _rename(spark: SparkSession, directory: str) -> Finding:
    files, path = hadoop.file_system(spark, f"{directory}/probe")
    _, target = hadoop.file_system(spark, f"{directory}/renamed")
    started = time.perf_counter()
    is_done = bool(files.rename(path, target))
    seconds = time.perf_counter() - started
    if not is_done or not files.exists(target) or files.exists(path):
        raise OSError("a rename had no effect")
    return Finding(OUT, "renaming", "ok", f"{seconds * 1000:,.0f} ms")


def _create_once(spark: SparkSession, directory: str) -> Finding:
    """Create one file twice at once without overwriting: the second must fail."""
    files, path = hadoop.file_system(spark, f"{directory}/once")
    name, first = "conditional writes", files.create(path, False)  # noqa: FBT003 - Java has no keywords
    try:
        second = files.create(path, False)  # noqa: FBT003
    except Py4JJavaError:
        first.close()
        return Finding(OUT, name, "ok", "a file is created once: the second writer is refused at the start")
    first.write(bytearray(b"first"))
    first.close()
    second.write(bytearray(b"second"))
    try:
        second.close()
    except Py4JJavaError:
        return Finding(OUT, name, "ok", "a file is created once: the second writer is refused at the end")
    why = (
        "Two writers can create one file here, and the last one wins. The lock of a run checks after writing "
        "whether it is still its own; other programs that write Delta tables here may not"
    )
    return Finding(
        *(OUT, name, "note", "the second writer replaced the first one's file", "a refusal", why),
        "let only one program at a time write to these tables",
    )


def _reads(spark: SparkSession, directory: str) -> Finding:
    return _check_reads(spark, OUT, [f"{directory}/renamed"])


_STEPS: Final = (
    ("writing", _write),
    ("renaming", _rename),
    ("conditional writes", _create_once),
    ("small reads", _reads),
)


def _check_reads(spark: SparkSession, group: str, files: Sequence[str]) -> Finding:
    """Read the first bytes of files 50 times in one Python worker, which uses pyarrow, not Hadoop."""
    storage = Storage(hadoop.settings(spark, HADOOP_PREFIXES))
    uris = list(islice(cycle(files), _NUM_READS))

    def read(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for _ in batches:
            seconds, problem = _read_all(storage, uris)
            yield pa.RecordBatch.from_pydict({"seconds": [seconds], "problem": [problem]}, schema=_ANSWER)

    name = "small reads"
    frame = spark.range(0, 1, 1, 1).mapInArrow(read, "seconds array<double>, problem string")
    try:
        (row,) = frame.collect()
    except PySparkException as error:
        cure = "see Executors: Python tasks must run there"
        return Finding(group, name, "problem", _reason(error), "50 reads by a Python worker", "", cure)
    if row.problem:
        why = (
            "Spark lists files through Hadoop; Python workers read them through pyarrow, by the same settings"
        )
        return Finding(
            *(group, name, "problem", row.problem, "reads by a Python worker", why),
            f"give Python workers the same credentials: {_RIGHTS}",
        )
    median, worst = statistics.median(row.seconds), max(row.seconds)
    value = f"{_NUM_READS} in a Python worker: median {median * 1000:.3g} ms, slowest {worst * 1000:.3g} ms"
    if median > _SLOW_SECONDS:
        why = "Each image of a directory is one read; tars need fewer. Above 0.5 s is slow, a rule of thumb"
        cure = "run in the store's own region, or use --format webdataset"
        return Finding(group, name, "note", value, "less than 500 ms", why, cure)
    return Finding(group, name, "ok", value)


_ANSWER: Final = pa.schema([("seconds", pa.list_(pa.float64())), ("problem", pa.string())])


def _read_all(storage: Storage, uris: Sequence[str]) -> tuple[list[float], str | None]:
    """Return the seconds of each read; and why one failed, which ends the reads."""
    seconds: list[float] = []
    for uri in uris:
        started = time.perf_counter()
        try:
            with storage.open_file(uri) as file:
                file.read(_READ_BYTES)
        except (OSError, ImageError, ConfigError) as error:
            return seconds, f"{uri}: {error}"
        seconds.append(time.perf_counter() - started)
    return seconds, None


def _check_table(spark: SparkSession, name: str) -> Finding:
    try:
        columns = spark.table(in_sql(name)).columns
    except PySparkException as error:
        cure = "correct INPUT; a directory of that name is ./" + name
        return Finding(INPUT, "table", "problem", _reason(error), "a table", "", cure)
    return Finding(INPUT, "table", "ok", f"{name} with {len(columns)} columns; its files were not probed")


def _directory_of_schema(spark: SparkSession, schema: str) -> str | None:
    try:
        described = spark.sql(f"DESCRIBE SCHEMA {in_sql(schema)}").collect()
    except PySparkException:
        return None
    location = dict(map(tuple, described)).get("Location")
    return str(location) if location else None


def _connector_problem(spark: SparkSession, group: str, uri: str) -> Finding | None:
    scheme, separator, _ = uri.partition(":/")
    if not separator or hadoop.has_file_system(spark, scheme):
        return None
    problem, _, cure = str(no_connector(scheme, uri)).partition("; ")
    return Finding(group, "connector", "problem", problem, "a connector", "", cure or _RIGHTS)


def _reason(error: BaseException) -> str:
    """Return an error's message without Java's stack."""
    if isinstance(error, Py4JJavaError):
        java: Any = error.java_exception
        return f"{java.getClass().getSimpleName()}: {java.getMessage()}"[:400]
    return (str(error).strip() or type(error).__name__).splitlines()[0][:400]
