"""Checks a job before Spark starts: Java, packages, the model's card, a local input and a local output.

In: the options of a command. Out: nothing, or the error that Spark would give ten seconds later. A check
looks at this machine's files only if a Spark that starts here would read them. Imports no Spark.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from nsfw_spark.cascade import model_specs
from nsfw_spark.errors import ConfigError, InputError, TableError
from nsfw_spark.formats import SUFFIXES, glob_pattern, has_suffix
from nsfw_spark.java import check_java
from nsfw_spark.options import JobOptions
from nsfw_spark.uris import HIDDEN, absolute_uri, may_be_table

VERBOSE: Final = "NSFW_SPARK_VERBOSE"
"""Environment variable; if it is set, Spark's start shows everything that it prints."""

_PACKAGES: Final = ("pyspark", "delta", "pandas", "pyarrow")
_MOST_SECONDS: Final = 1.0
"""Time for the search for a file in the input; without a file until then, Spark searches."""
_HOLDS: Final = {"webdataset": "tars", "parquet": "Parquet files"}
_LOOKS_AT_FILES: Final = ("auto", "files", "webdataset", "parquet")


_announced = threading.Event()


def announce() -> None:
    """Print the first sign of life of a command, unless a Spark session runs here already."""
    if not _has_session():
        sys.stderr.write("nsfw-spark: starting Spark…\n")
        sys.stderr.flush()
        _announced.set()


def announce_once() -> None:
    """Print the sign of life when Spark starts, unless the command has printed it."""
    if not _announced.is_set():
        announce()
    _announced.clear()


def show_all() -> None:
    """Let Spark's start show everything that it prints."""
    os.environ[VERBOSE] = "1"


def check_score(options: JobOptions) -> None:
    """Check a command that scores, without Spark.

    Raises:
        ConfigError: An option or the model card is wrong, or there is no Java.
        InputError: The local input is missing or empty.
        ModuleNotFoundError: A package of the extra `spark` is not installed.
        TableError: The local output is no directory, or may not be written to.
    """
    check_options(options)
    _check_start()
    model_specs(options)
    if reads_local_files():
        check_input(options)
        _check_not_empty(options)
        _check_places(options)


def check_filter(options: JobOptions) -> None:
    """Check `filter` without Spark.

    Raises:
        ConfigError: There is no Java.
        ModuleNotFoundError: A package of the extra `spark` is not installed.
        TableError: The local output has no image_scores, or may not be written to.
    """
    _check_start()
    if _has_local_scores(options, "filter", "score"):
        _check_places(options)


def check_report(options: JobOptions) -> None:
    """Check `report` without Spark.

    Raises:
        ConfigError: There is no Java.
        ModuleNotFoundError: A package of the extra `spark` is not installed.
        TableError: The local output has no image_scores.
    """
    _check_start()
    _has_local_scores(options, "report on", "run")


def _has_local_scores(options: JobOptions, purpose: str, first: str) -> bool:
    """Whether the output is a local directory; raise a TableError if it has no image_scores."""
    output = None if options.is_schema else _local(options.output)
    if output is None or not reads_local_files():
        return False
    if not _is_table(table := output / "image_scores"):
        raise TableError(
            f"there is no table {_name(table)} to {purpose}. First: "
            f"nsfw-spark {first} INPUT --output {options.output}"
        )
    return True


def check_export(options: JobOptions, table: str, directory: str) -> None:
    """Check `export` without Spark.

    Args:
        options: `output` is the place of the tables.
        table: Name of the exported table.
        directory: URI of the directory to write.

    Raises:
        ConfigError: There is no Java.
        ModuleNotFoundError: A package of the extra `spark` is not installed.
        TableError: The local output has no such table, or the directory may not be written to.
    """
    _check_start()
    if not reads_local_files():
        return
    output = None if options.is_schema else _local(options.output)
    if output is not None and not _is_table(output / table):
        raise TableError(
            f"there is no table {_name(output / table)}; expected one that shows image_scores under a "
            f"policy. First: nsfw-spark filter {absolute_uri(options.output).rstrip('/')} --threshold T"
        )
    if (place := _local(directory)) is not None:
        _check_writable(place, "another directory")


def check_options(options: JobOptions) -> None:
    """Refuse options that lack what scoring needs.

    Raises:
        ConfigError: There is no input, or a schema has no directory for checkpoints.
    """
    if options.input is None:
        raise ConfigError("got no INPUT; expected the URI of a directory with images")
    if options.is_schema and options.checkpoints is None:
        raise ConfigError(
            f"output {options.output} is a catalog schema; expected --checkpoints URI with it, a directory "
            f"for Spark's checkpoints. (For a directory of that name, write ./{options.output})"
        )


def check_input(options: JobOptions) -> None:
    """Refuse a local input that does not exist; call it only if Spark will read this machine's files.

    Raises:
        InputError: It does not exist.
    """
    source = str(options.input)
    place = _local(source)
    is_name = source.isidentifier() or may_be_table(source)
    if place is not None and not is_name and not place.exists():
        raise InputError(
            f"input {source} does not exist; expected a directory with images, or a table's name"
        )


def reads_local_files() -> bool:
    """Whether a Spark that this process starts would read a path as a file of this machine."""
    return _starts_spark() and "HADOOP_CONF_DIR" not in os.environ and not _has_other_files()


def _starts_spark() -> bool:
    """Whether this process starts its Spark itself: not spark-submit, and not a notebook."""
    is_elsewhere = any(name in os.environ for name in ("PYSPARK_GATEWAY_PORT", "DATABRICKS_RUNTIME_VERSION"))
    return not is_elsewhere and not _has_session()


def _has_session() -> bool:
    sql = sys.modules.get("pyspark.sql")
    if sql is None:
        return False
    with suppress(RuntimeError):  # pyspark's error for no session
        return bool(sql.SparkSession.active())
    return False


def _has_other_files() -> bool:
    """Whether Spark's configuration may name another file system for paths without a scheme."""
    if "fs.default" in os.environ.get("PYSPARK_SUBMIT_ARGS", ""):
        return True
    home = os.environ.get("SPARK_HOME")
    found = None if home else find_spec("pyspark")
    folders = [home] if home else [] if found is None else list(found.submodule_search_locations or [])
    conf = os.environ.get("SPARK_CONF_DIR") or (f"{folders[0]}/conf" if folders else None)
    if conf is None:
        return False
    with suppress(OSError):
        if "fs.default" in Path(conf, "spark-defaults.conf").read_text(encoding="utf-8", errors="replace"):
            return True
    return Path(conf, "core-site.xml").exists()


def _check_start() -> None:
    """Check the packages, and Java if this process starts Spark."""
    for name in _PACKAGES:
        if find_spec(name) is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    if _starts_spark():
        check_java()


def _local(location: str) -> Path | None:
    """Return the path of a location on this machine; None for a store."""
    uri = absolute_uri(location)
    return Path("/" + uri.removeprefix("file:").lstrip("/")) if uri.startswith(("/", "file:/")) else None


def _name(table: Path) -> str:
    """Return the name of a table in SQL, as Spark's messages have it."""
    return f"delta.`{str(table).replace('`', '``')}`"


def _is_table(directory: Path) -> bool:
    return (directory / "_delta_log").is_dir()


def _check_not_empty(options: JobOptions) -> None:
    """Refuse a new local input without a file; an input that a run has listed may have become empty."""
    source, place = str(options.input), _local(str(options.input))
    is_looked_at = place is not None and place.is_dir() and options.format in _LOOKS_AT_FILES
    if place is None or not is_looked_at or _is_table(place) or _may_know_input(options):
        return
    in_glob = glob_pattern(options.glob).fullmatch if options.glob else None
    suffixes = SUFFIXES.get(options.format, ())

    def matches(name: str) -> bool:
        if in_glob is not None:
            return in_glob(name) is not None
        return not suffixes or has_suffix(name, options.format)

    if _may_hold(place, matches):
        return
    ending = f" that ends in .{', .'.join(suffixes)}" if suffixes else ""
    raise InputError(
        f"input {source} holds no file{f' that matches {options.glob}' if options.glob else ending}; "
        f"expected a directory with {_HOLDS.get(options.format, 'images')}"
    )


def _may_know_input(options: JobOptions) -> bool:
    """Whether an earlier run may have listed the input; then all its files may be gone."""
    output = None if options.is_schema else _local(options.output)
    if options.rescore == "all":  # needs images, known or not
        return False
    if options.checkpoints is not None or output is None:
        return True
    return any((output / name).exists() for name in ("_checkpoints", "image_scores"))


def _may_hold(root: Path, matches: Callable[[str], bool]) -> bool:
    """Whether a directory holds a matching file that is not hidden; True too if the search takes long."""
    with suppress(OSError):  # the search took long, or Spark says why the directory cannot be listed
        return any(map(matches, _names_below(str(root), time.monotonic() + _MOST_SECONDS)))
    return True


def _names_below(root: str, deadline: float) -> Iterator[str]:
    """Yield the names of the files below a directory.

    Raises:
        TimeoutError: The deadline has passed; links may lead in circles.
    """
    directories = [root]
    while directories:
        with os.scandir(directories.pop()) as entries:
            for entry in entries:
                if time.monotonic() > deadline:
                    raise TimeoutError
                if entry.name.startswith(HIDDEN):
                    continue
                if entry.is_dir():
                    directories.append(entry.path)
                else:
                    yield entry.name


def _check_places(options: JobOptions) -> None:
    """Refuse a local output or directory of checkpoints that cannot be written."""
    output = None if options.is_schema else _local(options.output)
    checkpoints = None if options.checkpoints is None else _local(options.checkpoints)
    if output is not None:
        _check_writable(output, "another --output")
    if checkpoints is not None:
        _check_writable(checkpoints, "other --checkpoints")


def _check_writable(directory: Path, other: str) -> None:
    """Refuse a directory that cannot be made, or in which this user may not write.

    Raises:
        TableError: It is no directory, lies below a file, or is not writable.
    """
    place = directory
    while not os.path.lexists(place):
        place = place.parent
    if not place.is_dir():
        reason = "it is no directory" if place == directory else f"{place} is no directory"
    elif not os.access(place, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
        reason = f"no right to write in {place}"
    else:
        return
    raise TableError(
        f"cannot write {directory} ({reason}); expected an output that is a directory, and that this user "
        f"may write to. Choose {other}, or give the right to write there"
    )
