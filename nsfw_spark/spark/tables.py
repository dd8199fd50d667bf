"""Where the Delta tables of a job lie, and what they are called."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from delta import DeltaTable
from pyspark.errors import AnalysisException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.types import DataType, StructField, StructType

from nsfw_spark.errors import TableError
from nsfw_spark.options import JobOptions
from nsfw_spark.self_check import SelfCheck
from nsfw_spark.spark import schema
from nsfw_spark.spark.hadoop import list_names
from nsfw_spark.uris import absolute_uri, is_schema

IMAGE_SCORES: Final = "image_scores"
FILTERED: Final = ("safe_images", "flagged_images", "quarantined_images")
RUNS: Final = "runs"


@dataclass(frozen=True)
class Output:
    """Where a job's tables lie: in a directory, or in a catalog schema."""

    spark: SparkSession = field(repr=False, compare=False)
    location: str
    """URI of the directory, or `catalog.schema`."""
    checkpoints: str | None
    """URI of the directory for Spark's checkpoints; a catalog schema has no place of its own for them."""

    @classmethod
    def of(cls, spark: SparkSession, options: JobOptions) -> Output:
        """Return the output that the options name."""
        location = options.output if options.is_schema else absolute_uri(options.output).rstrip("/")
        if options.checkpoints is not None:
            return cls(spark, location, absolute_uri(options.checkpoints))
        return cls(spark, location, None if options.is_schema else f"{location}/_checkpoints")

    @property
    def is_schema(self) -> bool:
        """Whether the tables lie in a catalog schema and not in a directory."""
        return is_schema(self.location)

    def name(self, table: str) -> str:
        """Return the table's name in SQL, quoted."""
        if self.is_schema:
            return f"{self.location}.{table}"
        return f"delta.`{self.path(table).replace('`', '``')}`"

    def path(self, table: str) -> str:
        """Return the table's directory, where the output is one."""
        return f"{self.location}/{table}"

    def exists(self, table: str) -> bool:
        """Whether the table exists."""
        if self.is_schema:
            return bool(self.spark.catalog.tableExists(self.name(table)))
        return bool(DeltaTable.isDeltaTable(self.spark, self.path(table)))

    def table(self, name: str, version: int | None = None) -> DataFrame:
        """Return the table's rows, at a version or now."""
        if version is None:
            return self.spark.table(self.name(name))
        return self.spark.read.option("versionAsOf", version).table(self.name(name))


_UPKEEP: Final = {
    "ADD COLUMNS",
    "ADD CONSTRAINT",
    "CHANGE COLUMN",
    "OPTIMIZE",
    "SET TBLPROPERTIES",
    "VACUUM END",
    "VACUUM START",
}


def changes_no_row(commit: Any) -> bool:  # noqa: ANN401 - a Row
    """Whether a commit left all rows as they were, and added none."""
    return commit.operation in _UPKEEP


def only_adds(commit: Any) -> bool:  # noqa: ANN401 - a Row
    """Whether a commit changed and deleted no row; it may have added some."""
    appends = commit.operation == "WRITE" and commit.operationParameters.get("mode") == "Append"
    is_new = commit.operation.startswith("CREATE TABLE")
    return appends or is_new or commit.operation == "STREAMING UPDATE" or changes_no_row(commit)


def may_lack_additions(commits: Sequence[Any]) -> bool:
    """Whether files that some of the commits added may be gone: compacted, and then vacuumed.

    Args:
        commits: Newest first.
    """
    operations = [commit.operation for commit in reversed(commits)]
    added = [i for i, commit in enumerate(reversed(commits)) if not changes_no_row(commit)]
    return bool(added) and "VACUUM END" in operations[added[0] :]


T = TypeVar("T")
PROPERTY: Final = "nsfw_spark.{}"  # of a table: what it was made with
_SELF_CHECK: Final = "self_check"

WELL_SIZED: Final = {
    # One file for what all tasks of a micro-batch write, up to 512 MB: 30 nights leave 30 files and not 150.
    "delta.autoOptimize.optimizeWrite": "true",
    # Once 50 files are smaller than 64 MB, the commit that made the last of them is followed by one that
    # puts them together: there never are thousands.
    "delta.autoOptimize.autoCompact": "true",
}
"""Properties of a table to which little is added, often."""

_FOLLOWED: Final = {"delta.enableChangeDataFeed": "true"}  # filtered tables ask for what was added since
_SCORE_RANGE: Final = "nsfw_score_in_range"
_CONSTRAINT: Final = "delta.constraints.{}"  # property in which Delta keeps a constraint, with such spaces
# Delta takes null for a violation. NaN is one too: to Spark it is more than any number.
_CONSTRAINTS: Final = {_SCORE_RANGE: "nsfw_score IS NULL OR ( nsfw_score >= 0 AND nsfw_score <= 1 )"}
_NOT_IN_NAMES: Final = " ,;{}()\n\t="  # Delta refuses them, as Parquet once did


def check_output(output: Output, columns: StructType, model: str, fingerprint: str) -> None:
    """Make sure that a job may write to the output, before it writes anything.

    Columns that `image_scores` does not have yet are no obstacle: `ensure_image_scores` adds them.

    Raises:
        TableError: The output is another table, holds other things, or scores of another model; or a column
            has a name that Delta refuses, or is there with another type.
    """
    _check_location(output)
    _check_names(columns)
    if not output.exists(IMAGE_SCORES):
        return
    found = properties(output)
    if found["model_fingerprint"] != fingerprint:
        raise TableError(
            f"{output.name(IMAGE_SCORES)} holds scores of {found['model']} with the fingerprint "
            f"{found['model_fingerprint']}; this run would add scores of {model} with the fingerprint "
            f"{fingerprint}, which do not compare. Choose another --output, the table's own model (with "
            "--strict if its fingerprint ends so), or --rescore all"
        )
    _missing_columns(output, columns)


def properties(output: Output) -> dict[str, str]:
    """Return what `image_scores` says of itself: `model`, `model_fingerprint`, `self_check`.

    Raises:
        TableError: Not a table of this project.
    """
    prefix = PROPERTY.format("")
    settings = _settings(output.spark, output.name(IMAGE_SCORES))
    found = {key.removeprefix(prefix): value for key, value in settings.items() if key.startswith(prefix)}
    if not {"model", "model_fingerprint"} <= set(found):
        raise TableError(
            f"{output.name(IMAGE_SCORES)} was not written by nsfw-spark: it has no table property "
            f"{PROPERTY.format('model_fingerprint')}. Choose another --output"
        )
    return found


def self_check(output: Output) -> SelfCheck | None:
    """Return what the model of image_scores made of the built-in test image; None where that is not known."""
    if not output.exists(IMAGE_SCORES):
        return None
    found = properties(output).get(_SELF_CHECK)
    return None if found is None else SelfCheck.from_json(found)


def ensure_image_scores(
    output: Output,
    columns: StructType,
    model: str,
    fingerprint: str,
    *,
    self_check: SelfCheck | None = None,
) -> None:
    """Make `image_scores` what a run needs: there, with all its columns, properties and constraints.

    Each is looked at on every start: a run that was killed between two of these commits, and a table that an
    earlier version of this package made, are made good. Where nothing is missing, nothing is written.

    Args:
        output: Where the table lies; `check_output` found nothing wrong with it.
        columns: That the run will write.
        model: Name of the model card.
        fingerprint: The model's.
        self_check: What it made of the built-in test image; None where it is not to be written.

    Raises:
        TableError: A column is there with another type, or rows that are there violate a constraint.
    """
    name = output.name(IMAGE_SCORES)
    origin = {PROPERTY.format("model"): model, PROPERTY.format("model_fingerprint"): fingerprint}
    wanted = {**_FOLLOWED, **WELL_SIZED}
    if self_check is not None:
        wanted[PROPERTY.format(_SELF_CHECK)] = self_check.as_json()
    if not output.exists(IMAGE_SCORES):
        constraints = {_CONSTRAINT.format(name): condition for name, condition in _CONSTRAINTS.items()}
        empty = output.spark.createDataFrame([], columns)
        _create(output, IMAGE_SCORES, empty, {**origin, **wanted, **constraints})
        return
    if missing := _missing_columns(output, columns):
        output.spark.sql(f"ALTER TABLE {name} ADD COLUMNS ({StructType(missing).toDDL()})")
        names = ", ".join(field.name for field in missing)
        sys.stderr.write(f"{IMAGE_SCORES} has new columns, null in the rows that were there: {names}\n")
    settings = _settings(output.spark, name)
    _set(output.spark, name, settings, wanted)
    for constraint, condition in _CONSTRAINTS.items():
        if _CONSTRAINT.format(constraint) not in settings:
            _constrain(output.spark, name, constraint, condition)


def append_run(output: Output, run: Mapping[str, Any]) -> None:
    """Add to `runs` the row of a run that is done; see `append_runs`."""
    append_runs(output, [{"outcome": "done", **run}])


def append_runs(output: Output, runs: Sequence[Mapping[str, Any]]) -> None:
    """Add rows to `runs`, all or none.

    Args:
        output: Where the tables lie.
        runs: The values of `schema.RUNS`; absent ones are null, and `image_scores_version` is known here.
    """
    version = last_version(output, IMAGE_SCORES)
    rows = [
        [{"image_scores_version": version, **run}.get(name) for name in schema.RUNS.names] for run in runs
    ]
    frame = output.spark.createDataFrame(rows, schema.RUNS).coalesce(1)
    if not output.exists(RUNS):
        _create(output, RUNS, frame, WELL_SIZED)
        return
    # A table that an earlier version of this package made has fewer columns.
    frame.writeTo(output.name(RUNS)).option("mergeSchema", "true").append()


def history(output: Output, table: str) -> list[Any]:
    """Return the commits that the log still holds, newest first."""
    history = output.spark.sql(f"DESCRIBE HISTORY {output.name(table)}")
    columns = ("version", "timestamp", "operation", "operationParameters", "userMetadata")
    return list(history.select(*columns).collect())


def last_version(output: Output, table: str) -> int | None:
    """Return the number of the table's last commit; None where there is no table."""
    if not output.exists(table):
        return None
    last = output.spark.sql(f"DESCRIBE HISTORY {output.name(table)} LIMIT 1").select("version").first()
    return None if last is None else int(last.version)


def at_once(step: Callable[[str], T], names: Sequence[str]) -> list[T]:
    """Run a step for several tables side by side: each is mostly Delta's own waiting, not work."""
    with ThreadPoolExecutor(len(names) or 1) as threads:
        return list(threads.map(step, names))


def _create(output: Output, table: str, rows: DataFrame, settings: Mapping[str, str]) -> None:
    """Make a table of rows, or of none, in one commit."""
    writer = rows.writeTo(output.name(table)).using("delta")
    for key, value in settings.items():
        writer = writer.tableProperty(key, value)
    if output.is_schema:
        writer.create()
    else:
        # A run that was killed here left a log without a commit, over which Delta replaces but not creates.
        writer.createOrReplace()


def _settings(spark: SparkSession, name: str) -> dict[str, str]:
    """Return all properties of a table: Delta's, its constraints, and ours."""
    return {row.key: row.value for row in spark.sql(f"SHOW TBLPROPERTIES {name}").collect()}


def _set(spark: SparkSession, name: str, settings: Mapping[str, str], wanted: Mapping[str, str]) -> None:
    """Set properties: ours where they are not so, others where nobody has, for what somebody chose stays."""
    ours = PROPERTY.format("")
    other = [
        f"'{key}' = '{value}'"
        for key, value in wanted.items()
        if key not in settings or (key.startswith(ours) and settings[key] != value)
    ]
    if other:
        spark.sql(f"ALTER TABLE {name} SET TBLPROPERTIES ({', '.join(other)})")


def _constrain(spark: SparkSession, name: str, constraint: str, condition: str) -> None:
    try:
        spark.sql(f"ALTER TABLE {name} ADD CONSTRAINT {constraint} CHECK ({condition})")
    except AnalysisException as error:
        if "CHECK_CONSTRAINT_VIOLATION" not in str(error):
            raise
        raise TableError(
            f"{name} has rows for which this does not hold: {condition}. Expected: it holds for all. Correct "
            "or delete them"
        ) from error


def _missing_columns(output: Output, columns: StructType) -> list[StructField]:
    """Return those columns that `image_scores` does not have; upper and lower case are alike, as in SQL.

    Raises:
        TableError: A column is there with another type.
    """
    have = {field.name.lower(): field for field in output.table(IMAGE_SCORES).schema}
    for column in columns:
        found = have.get(column.name.lower())
        if found is not None and _type(found.dataType) != _type(column.dataType):
            raise TableError(
                f"{output.name(IMAGE_SCORES)} has the column {found.name} as {_type(found.dataType)}; this "
                f"run would write it as {_type(column.dataType)}. Leave the column out, give it another name "
                "or type in the source, or choose another --output"
            )
    return [column for column in columns if column.name.lower() not in have]


def _type(type_: DataType) -> str:
    """Return the type as SQL names it, which says nothing of nulls: all columns may hold them."""
    return type_.simpleString().lower()


def _check_names(columns: StructType) -> None:
    refused = [name for name in columns.names if set(name) & set(_NOT_IN_NAMES)]
    if refused:
        raise TableError(
            f"a column is named {refused[0]!r}; expected a name without the characters {_NOT_IN_NAMES!r}, "
            "which Delta refuses. Rename it in the source, or leave it out"
        )


def _check_location(output: Output) -> None:
    if output.is_schema:
        if not output.spark.catalog.databaseExists(output.location):
            raise TableError(f"there is no schema {output.location}: create it, or pass a directory")
        return
    if DeltaTable.isDeltaTable(output.spark, output.location):
        raise TableError(
            f"output {output.location} is itself a Delta table; expected a directory to put tables into"
        )
    for table in (IMAGE_SCORES, *FILTERED, RUNS):
        # A log alone is what a run leaves that was killed while it made the table.
        names = list_names(output.spark, output.path(table))
        if names and "_delta_log" not in names:
            raise TableError(
                f"{output.path(table)} is there and is not a Delta table; choose another --output"
            )
