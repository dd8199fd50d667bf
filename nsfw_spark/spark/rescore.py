"""Scores images again: `--rescore changed`, `--prune`, and the staging table of `--rescore all`.

A job never does so unasked: a changed file keeps its score, and the row of a deleted file stays. Only files
that storage failed to give are tried again, by the next runs, on three nights at most. The first half of this
module compares the files that exist with the rows of image_scores. The second half names the generations of
image_scores: each `--rescore all` writes a staging table, which replaces image_scores in one commit.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from typing import Final

from delta import DeltaTable
from pyspark.sql import Column, DataFrame, Row
from pyspark.sql import functions as F

from nsfw_spark.errors import STORAGE_FAILED, ConfigError, TableError
from nsfw_spark.options import JobOptions
from nsfw_spark.spark import tables
from nsfw_spark.spark.hadoop import delete, exists, in_lists, list_names
from nsfw_spark.spark.runs import may_have_lost_files
from nsfw_spark.spark.sources import Limit, ListedFiles, Source
from nsfw_spark.spark.tables import IMAGE_SCORES, PROPERTY, Output, last_version

_FILES_AT_ONCE: Final = 1_000  # at most: the condition of their commit holds their names
_NIGHTS: Final = tuple(f"{STORAGE_FAILED}{times}: " for times in ("", " twice", " three times"))
"""How the error of a row begins, by the number of runs in which storage failed to give its file."""
_FIRST_GENERATION: Final = "1"
_STAGING: Final = "rescored-"


def check_options(source: Source, options: JobOptions) -> None:
    """Refuse `--rescore changed` and `--prune` for a source that is not a directory of files.

    Raises:
        ConfigError: It is not.
    """
    option = "--prune" if options.prune else "--rescore changed" if options.rescore == "changed" else None
    if option and not (isinstance(source, ListedFiles) and source.file_column is not None):
        raise ConfigError(
            f"{option} compares files with their rows, and {source.uri} is no directory of files; expected "
            "--format files, webdataset, parquet or embeddings in files. For a Delta table: --rescore all"
        )


@dataclass(frozen=True)
class Files:
    """The files of a source, and how to score them."""

    source: ListedFiles
    limit: Limit
    """Of one commit: a killed job resumes after its last one."""
    score: Callable[[DataFrame], DataFrame]
    """Turns listed files into rows of image_scores."""


def follow_changes(output: Output, files: Files, options: JobOptions, run_id: str) -> None:
    """Score again what storage failed to give to earlier runs, and what the options ask for.

    Args:
        output: The job's output.
        files: The files.
        options: `rescore` and `prune` count.
        run_id: Of this run, whose own failures are left to the next run.

    Raises:
        TableError: More rows than `prune_limit` allows would be deleted.
    """
    source = files.source
    if source.file_column is None:
        return
    if options.rescore == "changed":
        _replace(output, files, _changed(output, source))
    elif may_have_lost_files(output, source.uri):
        _retry(output, files, run_id)
    if options.prune:
        num_deleted = _prune(output, source, options.prune_limit)
        sys.stderr.write(f"nsfw-spark: --prune deleted {num_deleted:,} rows of files that are gone\n")


def _retry(output: Output, files: Files, run_id: str) -> None:
    """Score files again that storage failed to give to earlier runs, on three nights at most."""
    source = files.source
    rows = source.rows_of(output.table(IMAGE_SCORES)).filter(F.col("run_id") != run_id)
    failed = rows.filter((F.col("status") == "missing") & F.col("error").startswith(STORAGE_FAILED))
    for now, next_ in reversed(list(pairwise(_NIGHTS))):

        def counted(listed: DataFrame, next_: str = next_) -> DataFrame:
            scored = files.score(listed)
            error = F.when(
                F.col("error").startswith(_NIGHTS[0]), F.replace("error", F.lit(_NIGHTS[0]), F.lit(next_))
            )
            return scored.withColumn("error", F.coalesce(error, "error"))

        lost = failed.filter(F.col("error").startswith(now)).select(F.col("file").alias("path"))
        if not lost.isEmpty():
            listed = source.listing().join(lost.distinct(), "path", "left_semi")
            _replace(output, replace(files, score=counted), listed)


def in_commits(files: Iterable[Row], most_bytes: float) -> Iterator[list[Row]]:
    """Yield files in lists of at most so many bytes; a longer file is alone."""
    chunk: list[Row] = []
    for file in files:
        if chunk and sum(each.length for each in chunk) + file.length > most_bytes:
            yield chunk
            chunk = []
        chunk.append(file)
    if chunk:
        yield chunk


def _replace(output: Output, files: Files, listed: DataFrame) -> None:
    """Score listed files and replace their rows, in commits as large as a micro-batch."""
    source, columns = files.source, output.table(IMAGE_SCORES).schema
    most_bytes = files.limit.num_images * (source.bytes_per_image or math.inf)
    lists = in_lists(listed, files.limit.num_files or _FILES_AT_ONCE)
    for chunk in chain.from_iterable(in_commits(each, most_bytes) for each in lists):
        before = last_version(output, IMAGE_SCORES)
        rows = files.score(source.listed_again(chunk))
        nulls = {
            field.name: F.lit(None).cast(field.dataType)
            for field in columns
            if field.name not in rows.columns
        }
        writer = output.writer(IMAGE_SCORES, rows.withColumns(nulls).select(columns.names))
        is_of_chunk = F.col(str(source.file_column)).isin([file.path for file in chunk])
        writer.overwrite(is_of_chunk)
        if source.file_column != "image_id":
            _keep(output, str(source.file_column), is_of_chunk, before)


def _keep(output: Output, file: str, is_of_chunk: Column, version: int | None) -> None:
    """Add the rows of images again that a version had, and that storage failed to give this time.

    A tar that was read to its half, and on the next night not at all, keeps the rows of that half.
    """
    now = output.table(IMAGE_SCORES).filter(is_of_chunk)
    failed = now.filter((F.col("status") == "missing") & F.col("error").startswith(STORAGE_FAILED))
    if failed.isEmpty():
        return
    earlier = output.table(IMAGE_SCORES, version).filter(is_of_chunk & (F.col("status") != "missing"))
    kept = earlier.join(failed.select(file), file, "left_semi")
    kept = kept.join(now.select("image_id"), "image_id", "left_anti")
    output.writer(IMAGE_SCORES, kept.select(now.columns)).append()


def _prune(output: Output, source: ListedFiles, limit: float) -> int:
    """Delete the rows of files that are gone; return the number of rows.

    Raises:
        TableError: More of the rows than `limit` would be deleted.
    """
    rows = source.rows_of(output.table(IMAGE_SCORES))
    existing = source.listing(is_whole=True).select(F.col("path").alias("file"))
    gone = rows.join(existing, "file", "left_anti").select("file", "image_id", "length")
    # Spark does not list empty files, so these are looked up one by one.
    maybe_empty = gone.filter(F.coalesce("length", F.lit(0)) == 0).select("file").distinct()
    lists = in_lists(maybe_empty, _FILES_AT_ONCE)
    empty = [row.file for rows_ in lists for row in rows_ if exists(output.spark, row.file)]
    gone = gone.filter(~F.col("file").isin(empty)).select("image_id").distinct().persist()
    num_gone, num_rows = gone.count(), rows.count()
    if num_gone > limit * num_rows:
        raise TableError(
            f"--prune would delete {num_gone:,} of {num_rows:,} rows of this input; expected at most the "
            f"share --prune-limit {limit}. If these files are gone for good, raise it"
        )
    if num_gone:
        output.fence.check()
        scores = DeltaTable.forName(output.spark, output.name(IMAGE_SCORES)).alias("rows")
        scores.merge(gone.alias("gone"), "rows.image_id = gone.image_id").whenMatchedDelete().execute()
    gone.unpersist()
    return num_gone


def _changed(output: Output, source: ListedFiles) -> DataFrame:
    """Return files that are new, changed, or could not be read completely last time.

    A file has changed if its modification time or length is not the one in its rows.

    Returns:
        `path`, `modificationTime` and `length` of each file.
    """
    rows, listed = source.rows_of(output.table(IMAGE_SCORES)), source.listing()
    is_of_file = (F.col("image_id") == F.col("file")) | F.col("error").startswith(STORAGE_FAILED)
    unread = rows.filter((F.col("status") == "missing") & is_of_file).select("file")
    rows = rows.join(unread, "file", "left_anti")
    is_same = rows["modification_time"].eqNullSafe(listed["modificationTime"])
    if source.file_column == "image_id":
        # The row of a file that is too long to be read has no length.
        is_same &= rows["length"].eqNullSafe(listed["length"]) | (rows["status"] == "too_large")
    return listed.join(rows, (rows["file"] == listed["path"]) & is_same, "left_anti")


def generation(output: Output) -> str:
    """Return the generation of image_scores: `1`, or `2-FINGERPRINT` after the first `--rescore all`."""
    if not output.exists(IMAGE_SCORES):
        return _FIRST_GENERATION
    return tables.properties(output).get("generation", _FIRST_GENERATION)


def next_generation(output: Output, fingerprint: str) -> str:
    """Return the generation of image_scores after a model has scored all images again."""
    number, _, _ = generation(output).partition("-")
    return f"{int(number) + 1}-{fingerprint}"


def staging(output: Output, generation: str) -> Output:
    """Return the output in which `--rescore all` scores a generation until it is complete."""
    return replace(output, location=f"{output.checkpoints}/{_STAGING}{generation}")


def is_replaced(output: Output, fingerprint: str) -> bool:
    """Whether a run of this model replaced image_scores, and was killed before `delete_staging`."""
    now = generation(output)
    return now.endswith(f"-{fingerprint}") and exists(output.spark, staging(output, now).location)


def replace_image_scores(staging: Output, output: Output, generation: str) -> None:
    """Replace the rows of image_scores by those of the staging table, in one commit."""
    found = tables.properties(staging)
    rows = staging.table(IMAGE_SCORES)
    existing = {name.lower() for name in rows.columns}
    of_users = [column for column in output.table(IMAGE_SCORES).schema if column.name.lower() not in existing]
    rows = rows.withColumns({column.name: F.lit(None).cast(column.dataType) for column in of_users})
    settings = {PROPERTY.format(key): value for key, value in {**found, "generation": generation}.items()}
    tables.replace_table(output, IMAGE_SCORES, rows, settings)
    columns = output.table(IMAGE_SCORES).schema
    tables.ensure_image_scores(output, columns, found["model"], found["model_fingerprint"])


def delete_staging(output: Output, replaced: str | None = None) -> None:
    """Delete all staging tables, complete or not; or that of a generation which replaced image_scores."""
    for name in list_names(output.spark, str(output.checkpoints)):
        if name.startswith(_STAGING) and replaced in (None, name.removeprefix(_STAGING)):
            delete(output.spark, f"{output.checkpoints}/{name}")
