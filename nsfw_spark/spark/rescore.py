"""Scores images again: `--rescore changed`, `--prune`, and the staging table of `--rescore all`.

A job never does so unasked: a changed file keeps its score, and the row of a deleted file stays. The first
half compares the files that exist with the rows of image_scores. The second half names the generations of
image_scores: each `--rescore all` writes a staging table, which replaces image_scores in one commit.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Final

from delta import DeltaTable
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from nsfw_spark.errors import ConfigError
from nsfw_spark.options import JobOptions
from nsfw_spark.spark import tables
from nsfw_spark.spark.hadoop import delete, exists, in_lists, list_names
from nsfw_spark.spark.sources import ListedFiles, Source
from nsfw_spark.spark.tables import IMAGE_SCORES, PROPERTY, Output

_FILES_AT_ONCE: Final = 1_000  # replaced by one commit, whose condition holds their names
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


def follow_changes(
    output: Output, source: Source, options: JobOptions, score: Callable[[DataFrame], DataFrame]
) -> bool:
    """Score changed files again, and delete the rows of deleted files, as the options say.

    Args:
        output: The job's output.
        source: The files.
        options: `rescore` and `prune` count.
        score: Turns listed files into rows of image_scores.

    Returns:
        Whether rows were scored.
    """
    if not isinstance(source, ListedFiles):  # see `check_options`
        return False
    num_changed = _rescore_changed(output, source, score) if options.rescore == "changed" else 0
    if options.prune:
        num_deleted = _prune(output, source)
        sys.stderr.write(f"nsfw-spark: --prune deleted {num_deleted:,} rows of files that are gone\n")
    return num_changed > 0


def _rescore_changed(output: Output, source: ListedFiles, score: Callable[[DataFrame], DataFrame]) -> int:
    """Score changed files again and replace their rows; return the number of files.

    One commit replaces a thousand files; a killed job resumes after its last commit.
    """
    num_changed, columns = 0, output.table(IMAGE_SCORES).schema
    for files in in_lists(_changed_files(output, source), _FILES_AT_ONCE):
        rows = score(source.listed_again(files))
        nulls = {
            field.name: F.lit(None).cast(field.dataType)
            for field in columns
            if field.name not in rows.columns
        }
        writer = rows.withColumns(nulls).select(columns.names).writeTo(output.name(IMAGE_SCORES))
        writer.overwrite(F.col(str(source.file_column)).isin([file.path for file in files]))
        num_changed += len(files)
    return num_changed


def _prune(output: Output, source: ListedFiles) -> int:
    """Delete the rows of files that are gone; return the number of rows."""
    existing = source.listing().select(F.col("path").alias("file"))
    rows = _rows_of_files(output, source)
    gone = rows.join(existing, "file", "left_anti").select("file", "image_id", "length")
    # Spark does not list empty files, so these are looked up one by one.
    maybe_empty = gone.filter(F.coalesce("length", F.lit(0)) == 0).select("file").distinct()
    lists = in_lists(maybe_empty, _FILES_AT_ONCE)
    empty = [row.file for rows_ in lists for row in rows_ if exists(output.spark, row.file)]
    gone = gone.filter(~F.col("file").isin(empty)).select("image_id").distinct().persist()
    num_gone = gone.count()
    if num_gone:
        scores = DeltaTable.forName(output.spark, output.name(IMAGE_SCORES)).alias("rows")
        scores.merge(gone.alias("gone"), "rows.image_id = gone.image_id").whenMatchedDelete().execute()
    gone.unpersist()
    return num_gone


def _changed_files(output: Output, source: ListedFiles) -> DataFrame:
    """Return files that are new, changed, or could not be read completely last time.

    A file has changed if its modification time or length is not the one in its rows.

    Returns:
        `path`, `modificationTime` and `length` of each file.
    """
    rows = _rows_of_files(output, source)
    unread = rows.filter((F.col("status") == "missing") & (F.col("image_id") == F.col("file"))).select("file")
    rows = rows.join(unread, "file", "left_anti")
    listed = source.listing()
    is_same = rows["modification_time"].eqNullSafe(listed["modificationTime"])
    if source.file_column == "image_id":
        is_same &= rows["length"].eqNullSafe(listed["length"])
    return listed.join(rows, (rows["file"] == listed["path"]) & is_same, "left_anti")


def _rows_of_files(output: Output, source: ListedFiles) -> DataFrame:
    """Return the rows of a source's files, with their file as the column `file`."""
    file = F.col(str(source.file_column))
    of_source = file.startswith(f"{source.uri}/") | (file == source.uri)
    return output.table(IMAGE_SCORES).filter(of_source).withColumn("file", file)


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
    return Output(output.spark, f"{output.checkpoints}/{_STAGING}{generation}", output.checkpoints)


def is_replaced(output: Output, fingerprint: str) -> bool:
    """Whether a run of this model replaced image_scores, and was killed before `delete_staging`."""
    now = generation(output)
    return now.endswith(f"-{fingerprint}") and exists(output.spark, staging(output, now).location)


def replace_image_scores(staging: Output, output: Output, generation: str) -> None:
    """Replace the rows of image_scores by those of the staging table, in one commit."""
    found = tables.properties(staging)
    writer = staging.table(IMAGE_SCORES).writeTo(output.name(IMAGE_SCORES)).using("delta")
    for key, value in {**found, "generation": generation}.items():
        writer = writer.tableProperty(PROPERTY.format(key), value)
    writer.createOrReplace()
    columns = output.table(IMAGE_SCORES).schema
    tables.ensure_image_scores(output, columns, found["model"], found["model_fingerprint"])


def delete_staging(output: Output) -> None:
    """Delete all staging tables, complete or not."""
    for name in list_names(output.spark, str(output.checkpoints)):
        if name.startswith(_STAGING):
            delete(output.spark, f"{output.checkpoints}/{name}")
