"""Keeps image_scores true to files that changed or went: `--rescore changed`, `--prune`.

A job never does so by itself: a file that changed keeps its score until it is asked for, and the row of a
file that was deleted stays. What is here compares the files that are there with the rows of image_scores.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from delta import DeltaTable
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from nsfw_spark.errors import ConfigError
from nsfw_spark.spark import tables
from nsfw_spark.spark.hadoop import delete, exists, in_chunks, list_names
from nsfw_spark.spark.sources import ListedFiles, Source
from nsfw_spark.spark.tables import IMAGE_SCORES, PROPERTY, Output

_FILES_AT_ONCE: Final = 1_000  # replaced in one commit; their names are part of its condition


def check_comparable(source: Source, option: str) -> ListedFiles:
    """Make sure that a source's files can be compared with the rows.

    Raises:
        ConfigError: Spark does not list files there.
    """
    if isinstance(source, ListedFiles) and source.file_column is not None:
        return source
    raise ConfigError(
        f"{option} compares files with their rows, and {source.uri} is no directory of files; expected "
        "--format files, webdataset, parquet or embeddings in files. For a Delta table: --rescore all"
    )


def changed_files(output: Output, source: ListedFiles) -> DataFrame:
    """Return those files whose modification time or length is not that of their rows, or that have none.

    And those that could not be read, or not to their end, which might be otherwise now.

    Returns:
        `path`, `modificationTime` and `length` of each.
    """
    rows = _rows_of_files(output, source)
    unread = rows.filter((F.col("status") == "missing") & (F.col("image_id") == F.col("file"))).select("file")
    rows = rows.join(unread, "file", "left_anti")
    listed = source.listing()
    is_same = rows["modification_time"].eqNullSafe(listed["modificationTime"])
    if source.file_column == "image_id":
        is_same &= rows["length"].eqNullSafe(listed["length"])
    return listed.join(rows, (rows["file"] == listed["path"]) & is_same, "left_anti")


def rescore_changed(
    output: Output,
    source: ListedFiles,
    score: Callable[[DataFrame], DataFrame],
    user_metadata: str,
) -> int:
    """Score the files again that changed, and put their new rows in place of the old ones.

    Args:
        output: Where image_scores lies.
        source: Of the files.
        score: Turns what the source lists into rows of image_scores.
        user_metadata: What the commits say of their run.

    Returns:
        How many files that were. A thousand are replaced in one commit; a killed job goes on after them.
    """
    num_changed = 0
    for files in in_chunks(changed_files(output, source), _FILES_AT_ONCE):
        listed = source.listed_again(files)
        names = [file.path for file in files]
        writer = score(listed).writeTo(output.name(IMAGE_SCORES)).option("userMetadata", user_metadata)
        writer.overwrite(_file(source).isin(names))
        num_changed += len(files)
    return num_changed


def prune(output: Output, source: ListedFiles) -> int:
    """Delete the rows of files that are gone; return how many rows that were."""
    there = source.listing().select(F.col("path").alias("file"))
    rows = _rows_of_files(output, source)
    gone = rows.join(there, "file", "left_anti").select("file", "image_id", "length")
    # Spark lists no empty files: these are looked up one by one.
    maybe_empty = gone.filter(F.coalesce("length", F.lit(0)) == 0).select("file").distinct()
    chunks = in_chunks(maybe_empty, _FILES_AT_ONCE)
    empty = [row.file for chunk in chunks for row in chunk if exists(output.spark, row.file)]
    gone = gone.filter(~F.col("file").isin(empty)).select("image_id").distinct().persist()
    num_gone = gone.count()
    if num_gone:
        scores = DeltaTable.forName(output.spark, output.name(IMAGE_SCORES)).alias("rows")
        scores.merge(gone.alias("gone"), "rows.image_id = gone.image_id").whenMatchedDelete().execute()
    gone.unpersist()
    return num_gone


def _file(source: ListedFiles) -> Column:
    return F.col(str(source.file_column))


def _rows_of_files(output: Output, source: ListedFiles) -> DataFrame:
    """Return the rows of a source's files, and the `file` of each."""
    file = _file(source)
    of_source = file.startswith(f"{source.uri}/") | (file == source.uri)
    return output.table(IMAGE_SCORES).filter(of_source).withColumn("file", file)


_FIRST: Final = "1"


def generation(output: Output) -> str:
    """Return the name of what image_scores is now: `1`, or `2-FINGERPRINT` after it was rescored."""
    if not output.exists(IMAGE_SCORES):
        return _FIRST
    return tables.properties(output).get("generation", _FIRST)


def next_generation(output: Output, fingerprint: str) -> str:
    """Return the name of what image_scores will be when a model has scored all again."""
    number, _, _ = generation(output).partition("-")
    return f"{int(number) + 1}-{fingerprint}"


def apart(output: Output, generation: str) -> Output:
    """Return where a generation is scored until it is whole."""
    return Output(output.spark, f"{output.checkpoints}/rescored-{generation}", output.checkpoints)


def is_adopted(output: Output, fingerprint: str) -> bool:
    """Whether a killed run of this model has put its rows in place, and had no time to say so."""
    now = generation(output)
    return now.endswith(f"-{fingerprint}") and exists(output.spark, apart(output, now).location)


def adopt(source: Output, output: Output, generation: str) -> None:
    """Put the rows of a table apart in place of those of image_scores, in one commit."""
    found = tables.properties(source)
    writer = source.table(IMAGE_SCORES).writeTo(output.name(IMAGE_SCORES)).using("delta")
    for key, value in {**found, "generation": generation}.items():
        writer = writer.tableProperty(PROPERTY.format(key), value)
    writer.createOrReplace()
    columns = output.table(IMAGE_SCORES).schema
    tables.ensure_image_scores(output, columns, found["model"], found["model_fingerprint"])


def forget(output: Output) -> None:
    """Delete all that was scored apart, whole or not."""
    for name in list_names(output.spark, str(output.checkpoints)):
        if name.startswith("rescored-"):
            delete(output.spark, f"{output.checkpoints}/{name}")
