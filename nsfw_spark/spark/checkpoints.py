"""Checkpoints: what Spark remembers of each input that it has seen.

One directory for each input of an output, so that an output can have several. They belong to one generation
of `image_scores`: after `--rescore all` nothing has been seen.

A checkpoint and the table say of each other what is done: what the one has noted, the other must hold. Where
they disagree, because somebody deleted one of them or a disk lost its last writes, the job stops: to go on
would lose images, or score them twice.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from nsfw_spark.errors import StorageError, TableError
from nsfw_spark.spark.hadoop import exists, list_names, read_text
from nsfw_spark.spark.sources import Source
from nsfw_spark.spark.tables import IMAGE_SCORES, RUNS, Output, history


def find_checkpoint(output: Output, source: Source, generation: str) -> str:
    """Return the URI of an input's checkpoint, whether or not it is there already.

    Raises:
        TableError: Images of this input were scored, and their checkpoint is gone, or a part of it.
    """
    uri = f"{output.checkpoints}/{checkpoint_name(source, generation)}"
    missing = _missing_parts(output.spark, uri, source)
    if missing and output.exists(IMAGE_SCORES) and _has_rows(output, source):
        lacks = "" if set(missing) == set(_parts(source)) else f" (it lacks {', '.join(missing)})"
        raise TableError(
            f"{output.name(IMAGE_SCORES)} holds images of {source.uri}, and there is no checkpoint {uri} "
            f"that says which{lacks}: all would be scored twice. Restore it, score all again with --rescore "
            "all, or choose another --output"
        )
    return uri


def check_still_there(spark: SparkSession, checkpoint: str) -> None:
    """Make sure that nobody deleted a checkpoint while its stream ran, which writes `metadata` once, first.

    Raises:
        StorageError: Somebody did.
    """
    if not exists(spark, f"{checkpoint}/metadata"):
        raise StorageError(
            f"the checkpoint {checkpoint} is gone: somebody deleted it while this run wrote to it. What was "
            "scored is in the table, but which files were listed nobody knows any more. Score all again with "
            "--rescore all"
        )


def checkpoint_id(spark: SparkSession, checkpoint: str) -> str:
    """Return the random name that Spark gave a checkpoint when it made it; one made anew has another."""
    return str(json.loads(read_text(spark, f"{checkpoint}/metadata"))["id"])


def checkpoint_name(source: Source, generation: str) -> str:
    """Return the name of an input's checkpoint."""
    key = hashlib.sha256(source.uri.encode()).hexdigest()[:12]
    kind = "vectors" if source.has_vectors else "images"
    return f"{IMAGE_SCORES}-{generation}-{kind}-{key}"


def last_batch(spark: SparkSession, checkpoint: str) -> int:
    """Return the number of the last micro-batch that the log of listed files knows; -1 for none."""
    return _last_number(spark, listed_files_log(checkpoint))


def last_committed_batch(spark: SparkSession, checkpoint: str) -> int:
    """Return the number of the last micro-batch that Spark has noted as written; -1 for none."""
    return _last_number(spark, f"{checkpoint}/commits")


def last_accounted_batch(output: Output, checkpoint: str) -> int:
    """Return the last micro-batch of a checkpoint whose files all have rows; -1 for none.

    Args:
        output: Where the tables lie.
        checkpoint: As `runs` names it.
    """
    if not output.exists(RUNS):
        return -1
    runs = output.table(RUNS).filter(F.col("checkpoint") == checkpoint)
    made = {commit.version: commit.timestamp for commit in history(output, IMAGE_SCORES)}
    found = runs.select("last_batch", "image_scores_version", "started_at", "seconds").collect()
    return max((int(run.last_batch) for run in found if _is_there(run, made)), default=-1)


def _is_there(run: Any, made: Mapping[int, datetime]) -> bool:  # noqa: ANN401 - a Row
    """Whether the version of image_scores that a run left is there still, and not another of its number."""
    version = run.image_scores_version
    if None in (run.last_batch, version, run.seconds) or version > max(made):
        return False
    ended = run.started_at + timedelta(seconds=run.seconds)
    return version not in made or made[version] <= ended


def listed_files_log(checkpoint: str) -> str:
    """Return the directory in which a stream over files logs what it has listed."""
    return f"{checkpoint}/sources/0"


def _last_number(spark: SparkSession, log: str) -> int:
    numbers = [name.removesuffix(".compact") for name in list_names(spark, log)]
    return max((int(number) for number in numbers if number.isdecimal()), default=-1)


def _parts(source: Source) -> list[str]:
    """Return what a checkpoint consists of that cannot be made again; `commits` alone can."""
    return ["metadata", "offsets", *(["sources/0"] if source.file_column is not None else [])]


def _missing_parts(spark: SparkSession, checkpoint: str, source: Source) -> list[str]:
    def is_there(part: str) -> bool:
        if part == "metadata":
            return exists(spark, f"{checkpoint}/{part}")
        return _last_number(spark, f"{checkpoint}/{part}") >= 0

    return [part for part in _parts(source) if not is_there(part)]


def _has_rows(output: Output, source: Source) -> bool:
    scores = output.table(IMAGE_SCORES)
    if source.file_column in scores.columns:
        file = F.col(str(source.file_column))
        return not scores.filter(file.startswith(f"{source.uri}/") | (file == source.uri)).isEmpty()
    if not output.exists(RUNS):
        return False
    runs = output.table(RUNS).filter((F.col("input") == source.uri) & (F.col("images") > 0))
    return not runs.isEmpty()
