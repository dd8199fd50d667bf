"""Spark's checkpoints: one directory for each input of an output, with the files that Spark has seen.

A checkpoint belongs to one generation of `image_scores`: after `--rescore all` nothing has been seen. The
table must hold all that its checkpoint has noted as written, and a table with rows needs its checkpoint. If
somebody deleted one of them, or a disk lost its last writes, the job stops before it loses images or scores
them twice. `faults.check_holds` compares the other way.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from nsfw_spark.errors import StorageError, TableError
from nsfw_spark.spark.hadoop import exists, list_names, read_text, write_text
from nsfw_spark.spark.sources import ListedFiles, Source, is_below
from nsfw_spark.spark.tables import IMAGE_SCORES, RUNS, Output, history
from nsfw_spark.uris import is_listed_in


def find_checkpoint(output: Output, source: Source, generation: str) -> str:
    """Return the URI of an input's checkpoint, whether or not it exists yet.

    Raises:
        TableError: Images of this input were scored, and their checkpoint is gone, wholly or in part. Or they
            are images of another input too.
    """
    _check_inputs(output, source)
    uri = f"{output.checkpoints}/{_name(source, generation)}"
    missing = _missing_parts(output.spark, uri, source)
    if missing and output.exists(IMAGE_SCORES) and _has_rows(output, source):
        lacks = "" if set(missing) == set(_parts(source)) else f" (it lacks {', '.join(missing)})"
        raise TableError(
            f"{output.name(IMAGE_SCORES)} holds images of {source.uri}, and there is no checkpoint {uri} "
            f"that says which{lacks}: all would be scored twice. Restore it, score all again with --rescore "
            "all, or choose another --output"
        )
    return uri


def _check_inputs(output: Output, source: Source) -> None:
    """Refuse an input that lists files of another input, which has a checkpoint of its own."""
    if not (isinstance(source, ListedFiles) and output.exists(RUNS) and output.exists(IMAGE_SCORES)):
        return
    runs = output.table(RUNS).select("input", "run_id").filter(F.col("input") != source.uri).collect()
    for other in sorted({run.input for run in runs}):
        is_inside, contains = is_listed_in(source.uri, other), is_listed_in(other, source.uri)
        if not (is_inside or contains):
            continue
        run_ids = [run.run_id for run in runs if run.input == other]
        if source.rows_of(output.table(IMAGE_SCORES).filter(F.col("run_id").isin(run_ids)), other).isEmpty():
            continue  # of another format, or an earlier generation
        if is_inside and contains:
            problem, advice = "is the same place as", "Name it so"
        elif is_inside:
            problem, advice = "lies in", "Run that one: it lists these images too"
        else:
            problem, advice = "contains", "Run other directories in it one by one, or all with --rescore all"
        raise TableError(
            f"input {source.uri} {problem} {other}, whose images {output.name(IMAGE_SCORES)} holds: images "
            f"would have two rows. {advice}, or choose another --output"
        )


def is_known(output: Output, source: Source, generation: str) -> bool:
    """Whether an earlier run has listed an input."""
    return not _missing_parts(output.spark, f"{output.checkpoints}/{_name(source, generation)}", source)


def check_still_there(spark: SparkSession, checkpoint: str) -> None:
    """Make sure that nobody deleted a checkpoint while its stream ran; the stream writes `metadata` first.

    Raises:
        StorageError: Somebody deleted it.
    """
    if not exists(spark, f"{checkpoint}/metadata"):
        raise StorageError(
            f"the checkpoint {checkpoint} is gone: somebody deleted it while this run wrote to it. The "
            "scores are in the table, but nothing tells which files were listed. Score all again with "
            "--rescore all"
        )


def checkpoint_id(spark: SparkSession, checkpoint: str) -> str:
    """Return the random id that Spark gave a checkpoint when it created it; a new checkpoint has another."""
    return str(json.loads(read_text(spark, f"{checkpoint}/metadata"))["id"])


def last_batch(spark: SparkSession, checkpoint: str) -> int:
    """Return the number of the last micro-batch in the log of listed files; -1 for none."""
    return _last_number(spark, listed_files_log(checkpoint))


def last_committed_batch(spark: SparkSession, checkpoint: str) -> int:
    """Return the number of the last micro-batch that Spark has noted as written; -1 for none."""
    return _last_number(spark, f"{checkpoint}/commits")


def unwritten_batch(spark: SparkSession, checkpoint: str) -> tuple[int, int] | None:
    """Return the micro-batch that Spark has begun and not noted as written, and its entry in the files' log.

    None if there is no such micro-batch, or if it lists no file.
    """
    number = _last_number(spark, f"{checkpoint}/offsets")
    if number <= last_committed_batch(spark, checkpoint):
        return None
    entry, before = (_log_entry(spark, checkpoint, each) for each in (number, number - 1))
    return (number, entry) if entry > before else None


def begin_empty_batch(spark: SparkSession, checkpoint: str, number: int) -> None:
    """Make Spark go on after a micro-batch that this package has written: the next one lists no new file."""
    offsets = f"{checkpoint}/offsets"
    write_text(spark, f"{offsets}/{number + 1}", read_text(spark, f"{offsets}/{number}"), overwrite=False)


def last_accounted_batch(output: Output, checkpoint: str) -> int:
    """Return the last micro-batch whose files all have rows, by `runs`; -1 for none."""
    if not output.exists(RUNS):
        return -1
    runs = output.table(RUNS).filter(F.col("checkpoint") == checkpoint)
    made = {commit.version: commit.timestamp for commit in history(output, IMAGE_SCORES)}
    # When the row was written, by the clock of the tables' store, as `timestamp` of a commit is.
    written = F.col("_metadata.file_modification_time").alias("written")
    rows = runs.select("last_batch", "image_scores_version", written).collect()
    return max((int(run.last_batch) for run in rows if _is_current(run, made)), default=-1)


def listed_files_log(checkpoint: str) -> str:
    """Return the directory in which a stream over files logs the files that it listed."""
    return f"{checkpoint}/sources/0"


def _is_current(run: Any, made: Mapping[int, datetime]) -> bool:  # noqa: ANN401 - a Row
    """Whether image_scores still has the version that a run left, and not a later commit of that number."""
    version = run.image_scores_version
    if None in (run.last_batch, version) or version > max(made):
        return False
    return version not in made or made[version] <= run.written


def _name(source: Source, generation: str) -> str:
    key = hashlib.sha256(source.uri.encode()).hexdigest()[:12]
    kind = "vectors" if source.has_vectors else "images"
    return f"{IMAGE_SCORES}-{generation}-{kind}-{key}"


def _log_entry(spark: SparkSession, checkpoint: str, batch: int) -> int:
    """Return the last entry of the log of listed files that belongs to a micro-batch; -1 before the first."""
    if batch < 0:
        return -1
    return int(json.loads(read_text(spark, f"{checkpoint}/offsets/{batch}").splitlines()[-1])["logOffset"])


def _last_number(spark: SparkSession, log: str) -> int:
    numbers = [name.removesuffix(".compact") for name in list_names(spark, log)]
    return max((int(number) for number in numbers if number.isdecimal()), default=-1)


def _parts(source: Source) -> list[str]:
    """Return the parts of a checkpoint that cannot be made again; `commits` can."""
    return ["metadata", "offsets", *(["sources/0"] if source.file_column is not None else [])]


def _missing_parts(spark: SparkSession, checkpoint: str, source: Source) -> list[str]:
    def has(part: str) -> bool:
        if part == "metadata":
            return exists(spark, f"{checkpoint}/{part}")
        return _last_number(spark, f"{checkpoint}/{part}") >= 0

    return [part for part in _parts(source) if not has(part)]


def _has_rows(output: Output, source: Source) -> bool:
    """Whether image_scores has rows of a source; if no column names their file, `runs` tells it."""
    scores = output.table(IMAGE_SCORES)
    if source.file_column in scores.columns:
        file = F.col(str(source.file_column))
        return not scores.filter(is_below(file, source.uri)).isEmpty()
    if not output.exists(RUNS):
        return False
    runs = output.table(RUNS).filter((F.col("input") == source.uri) & (F.col("images") > 0))
    return not runs.isEmpty()
