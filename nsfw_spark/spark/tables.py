"""The Delta tables of a job: location, schema, properties and commits.

In: the options' output, a Spark session, and the columns that a run writes. Out: DataFrames, table properties
and commits. This module does not know what a run does, nor which image belongs into which table.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from delta import DeltaTable, exceptions
from pyspark import inheritable_thread_target
from pyspark.errors import AnalysisException
from pyspark.sql import DataFrame, DataFrameWriterV2, SparkSession
from pyspark.sql.types import DataType, StructField, StructType

from nsfw_spark.errors import TableError
from nsfw_spark.options import JobOptions
from nsfw_spark.self_check import SelfCheck
from nsfw_spark.spark.fence import Fence
from nsfw_spark.spark.hadoop import list_names
from nsfw_spark.uris import absolute_uri, in_sql, is_schema

T = TypeVar("T")

IMAGE_SCORES: Final = "image_scores"
FILTERED: Final = ("safe_images", "flagged_images", "quarantined_images")
RUNS: Final = "runs"
PROPERTY: Final = "nsfw_spark.{}"
"""Names of the properties that this package gives a table."""

WELL_SIZED: Final = {
    # All tasks of a micro-batch write one file, up to 512 MB: 30 nights leave 30 files and not 150.
    "delta.autoOptimize.optimizeWrite": "true",
    # Once 50 files are smaller than 64 MB, the next commit compacts them: there never are thousands.
    "delta.autoOptimize.autoCompact": "true",
}
"""Properties of a table that grows often and little."""

CONFLICTS: Final = (
    *(exceptions.ConcurrentAppendException, exceptions.ConcurrentDeleteDeleteException),
    *(exceptions.ConcurrentDeleteReadException, exceptions.ConcurrentTransactionException),
    *(exceptions.MetadataChangedException, exceptions.ProtocolChangedException),
)
"""Delta's errors of a write that another one forestalled."""

_CHANGE_FEED: Final = {"delta.enableChangeDataFeed": "true"}  # the filtered tables read what was added
_SELF_CHECK: Final = "self_check"
_CONSTRAINT: Final = "delta.constraints.nsfw_score_in_range"  # the property in which Delta keeps a constraint
# Spark orders NaN above all numbers, so NaN violates the condition. Delta stores it with these spaces.
_CONDITION: Final = "nsfw_score IS NULL OR ( nsfw_score >= 0 AND nsfw_score <= 1 )"
_NOT_IN_NAMES: Final = " ,;{}()\n\t="  # Delta refuses these characters in a column's name
_OF_DELTA: Final = (  # properties that begin so are Delta's own: nobody else may set them
    *("delta.columnMapping.maxColumnId", "delta.coordinatedCommits", "delta.inCommitTimestampEnablement"),
    *("delta.rowTracking.materialized", "io.unitycatalog.", "ucTableId"),
)
_UPKEEP: Final = {
    *("ADD COLUMNS", "ADD CONSTRAINT", "CHANGE COLUMN", "CHANGE COLUMNS", "CLUSTER BY", "COMPUTE STATS"),
    *("DOMAIN METADATA CLEANUP", "DROP CONSTRAINT", "DROP FEATURE", "OPTIMIZE", "REORG"),
    *("ROW TRACKING BACKFILL", "ROW TRACKING UNBACKFILL", "SET TBLPROPERTIES", "UNSET TBLPROPERTIES"),
    *("UPGRADE PROTOCOL", "VACUUM END", "VACUUM START"),
}


@dataclass(frozen=True)
class Output:
    """The place of a job's tables: a directory or a catalog schema; reads the tables with its session."""

    spark: SparkSession = field(repr=False, compare=False)
    location: str
    """URI of the directory, or `catalog.schema`."""
    checkpoints: str | None
    """URI of the directory for Spark's checkpoints; None for a catalog schema without one."""
    fence: Fence = field(default_factory=Fence, repr=False, compare=False)
    """Closed if this run has lost the output's lock."""

    @classmethod
    def of(cls, spark: SparkSession, options: JobOptions) -> Output:
        """Return the output that the options name."""
        location = options.output if options.is_schema else absolute_uri(options.output).rstrip("/")
        if options.checkpoints is not None:
            return cls(spark, location, absolute_uri(options.checkpoints))
        return cls(spark, location, None if options.is_schema else f"{location}/_checkpoints")

    @property
    def is_schema(self) -> bool:
        """Whether the tables are in a catalog schema and not in a directory."""
        return is_schema(self.location)

    def name(self, table: str) -> str:
        """Return the table's name in SQL, quoted."""
        if self.is_schema:
            return f"{in_sql(self.location)}.{table}"
        return f"delta.`{self.path(table).replace('`', '``')}`"

    def path(self, table: str) -> str:
        """Return the table's directory; only for an output that is a directory."""
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

    def writer(self, table: str, rows: DataFrame) -> DataFrameWriterV2:
        """Return the writer of rows to a table.

        Raises:
            TableError: Another run may have taken over the output.
        """
        self.fence.check()
        return rows.writeTo(self.name(table))


def check_output(output: Output, columns: StructType, model: str, fingerprint: str) -> None:
    """Refuse an output that a job must not write to; write nothing.

    New columns are allowed: `ensure_image_scores` adds them.

    Raises:
        TableError: The output is another table, holds other things, or scores of another model. Or Delta
            refuses a column's name, or image_scores has the column with another type.
    """
    _check_location(output)
    refused = [name for name in columns.names if set(name) & set(_NOT_IN_NAMES)]
    if refused:
        raise TableError(
            f"a column is named {refused[0]!r}; expected a name without the characters {_NOT_IN_NAMES!r}, "
            "which Delta refuses. Rename it in the source, or leave it out"
        )
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


def ensure_image_scores(
    output: Output,
    columns: StructType,
    model: str,
    fingerprint: str,
    *,
    self_check: SelfCheck | None = None,
) -> None:
    """Make `image_scores` ready for a run: the table, its columns, properties and constraints.

    Each run checks each of them, because a run may have been killed between two of these commits, or an
    earlier version of this package may have made the table. If nothing is missing, nothing is written.
    `self_check` is the model's result for the built-in test image; None leaves the table's.

    Raises:
        TableError: A column exists with another type, or rows violate the constraint.
    """
    name = output.name(IMAGE_SCORES)
    wanted = {**_CHANGE_FEED, **WELL_SIZED}
    if self_check is not None:
        wanted[PROPERTY.format(_SELF_CHECK)] = self_check.as_json()
    if not output.exists(IMAGE_SCORES):
        of_model = {PROPERTY.format("model"): model, PROPERTY.format("model_fingerprint"): fingerprint}
        empty = output.spark.createDataFrame([], columns)
        create_table(output, IMAGE_SCORES, empty, {**of_model, **wanted, _CONSTRAINT: _CONDITION})
        return
    if missing := _missing_columns(output, columns):
        output.spark.sql(f"ALTER TABLE {name} ADD COLUMNS ({StructType(missing).toDDL()})")
        names = ", ".join(column.name for column in missing)
        sys.stderr.write(f"nsfw-spark: {IMAGE_SCORES} gets new columns, null in its old rows: {names}\n")
    existing = _all_properties(output, IMAGE_SCORES)
    _set_properties(output, existing, wanted)
    if _CONSTRAINT not in existing:
        _add_constraint(output)


def create_table(output: Output, table: str, rows: DataFrame, settings: Mapping[str, str]) -> None:
    """Create a table with its first rows, or with none, in one commit."""
    writer = _writer(output, table, rows, settings)
    if output.is_schema:
        writer.create()
    else:
        # A run that was killed here left a log without a commit: over it, Delta replaces but does not create.
        writer.createOrReplace()


def _writer(output: Output, table: str, rows: DataFrame, settings: Mapping[str, str]) -> DataFrameWriterV2:
    writer = output.writer(table, rows).using("delta")
    for key, value in settings.items():
        writer = writer.tableProperty(key, value)
    return writer


def replace_table(
    output: Output, table: str, rows: DataFrame, settings: Mapping[str, str], **options: str
) -> None:
    """Create a table, or replace all of it in one commit; what somebody set by hand stays.

    Delta would drop it: properties (but for this package's own), comments, and the columns of CLUSTER BY,
    which take a second commit.
    """
    kept, clustered = {}, []
    if output.exists(table):
        detail = output.spark.sql(f"DESCRIBE DETAIL {output.name(table)}").collect()[0]
        ours = (PROPERTY.format(""), *_OF_DELTA)
        kept = {key: value for key, value in detail.properties.items() if not key.startswith(ours)}
        if detail.description:
            kept["comment"] = detail.description
        clustered = [f"`{name}`" for name in detail.clusteringColumns or [] if name in rows.columns]
        for column in output.table(table).schema:
            if "comment" in column.metadata and column.name in rows.columns:
                rows = rows.withMetadata(column.name, column.metadata)
    _writer(output, table, rows, {**settings, **kept}).options(**options).createOrReplace()
    if clustered:
        output.spark.sql(f"ALTER TABLE {output.name(table)} CLUSTER BY ({', '.join(clustered)})")


def properties(output: Output) -> dict[str, str]:
    """Return this package's properties of `image_scores`: `model`, `model_fingerprint`, `self_check`.

    Raises:
        TableError: The table was not made by this package.
    """
    prefix = PROPERTY.format("")
    settings = _all_properties(output, IMAGE_SCORES)
    found = {key.removeprefix(prefix): value for key, value in settings.items() if key.startswith(prefix)}
    if not {"model", "model_fingerprint"} <= set(found):
        raise TableError(
            f"{output.name(IMAGE_SCORES)} was not written by nsfw-spark: it has no table property "
            f"{PROPERTY.format('model_fingerprint')}. Choose another --output"
        )
    return found


def self_check(output: Output) -> SelfCheck | None:
    """Return the result of image_scores' model for the built-in test image; None if it is not known."""
    if not output.exists(IMAGE_SCORES):
        return None
    found = properties(output).get(_SELF_CHECK)
    return None if found is None else SelfCheck.from_json(found)


def history(output: Output, table: str) -> list[Any]:
    """Return the commits that the log still holds, newest first."""
    commits = output.spark.sql(f"DESCRIBE HISTORY {output.name(table)}")
    columns = ("version", "timestamp", "operation", "operationParameters", "userMetadata")
    return list(commits.select(*columns).collect())


def last_version(output: Output, table: str) -> int | None:
    """Return the version of the table's last commit; None without a table."""
    if not output.exists(table):
        return None
    last = output.spark.sql(f"DESCRIBE HISTORY {output.name(table)} LIMIT 1").select("version").first()
    return None if last is None else int(last.version)


def changes_no_row(commit: Any) -> bool:  # noqa: ANN401 - a Row
    """Whether a commit neither added, changed nor deleted a row."""
    return commit.operation in _UPKEEP


def only_adds(commit: Any) -> bool:  # noqa: ANN401 - a Row
    """Whether a commit changed and deleted no row; it may have added some."""
    appends = commit.operation == "WRITE" and commit.operationParameters.get("mode") == "Append"
    is_first = commit.version == 0 or commit.operation.startswith("CREATE TABLE")
    adds = appends or commit.operation in ("COPY INTO", "STREAMING UPDATE")
    return adds or is_first or changes_no_row(commit)


def only_once(version: int) -> dict[str, str]:
    """Return options of a write: of two writes that follow one version of a table, Delta skips the second."""
    return {"txnAppId": "nsfw_spark", "txnVersion": str(version + 1)}


def at_once(output: Output, step: Callable[[str], T], names: Sequence[str]) -> list[T]:
    """Run a step for several tables in threads: Delta mostly waits."""
    with ThreadPoolExecutor(len(names) or 1) as threads:
        # Each thread gets a copy of this one's properties: with its tag, the Spark jobs can be cancelled.
        steps = [threads.submit(inheritable_thread_target(output.spark)(step), name) for name in names]
        return [each.result() for each in steps]


def _all_properties(output: Output, table: str) -> dict[str, str]:
    """Return all properties of a table: Delta's, its constraints, and this package's."""
    return {
        row.key: row.value for row in output.spark.sql(f"SHOW TBLPROPERTIES {output.name(table)}").collect()
    }


def _set_properties(output: Output, existing: Mapping[str, str], wanted: Mapping[str, str]) -> None:
    """Set properties of image_scores; a property of Delta's that somebody chose stays."""
    ours = PROPERTY.format("")
    changes = [
        f"'{key}' = '{value}'"
        for key, value in wanted.items()
        if key not in existing or (key.startswith(ours) and existing[key] != value)
    ]
    if changes:
        output.spark.sql(f"ALTER TABLE {output.name(IMAGE_SCORES)} SET TBLPROPERTIES ({', '.join(changes)})")


def _add_constraint(output: Output) -> None:
    name, constraint = output.name(IMAGE_SCORES), _CONSTRAINT.rpartition(".")[2]
    try:
        output.spark.sql(f"ALTER TABLE {name} ADD CONSTRAINT {constraint} CHECK ({_CONDITION})")
    except AnalysisException as error:
        if "CHECK_CONSTRAINT_VIOLATION" not in str(error):
            raise
        raise TableError(
            f"{name} has rows for which this does not hold: {_CONDITION}. Expected: it holds for all. "
            "Correct or delete them"
        ) from error


def _missing_columns(output: Output, columns: StructType) -> list[StructField]:
    """Return the columns that `image_scores` lacks; names are compared without case, as in SQL.

    Raises:
        TableError: A column exists with another type.
    """
    existing = {column.name.lower(): column for column in output.table(IMAGE_SCORES).schema}
    for column in columns:
        same = existing.get(column.name.lower())
        if same is not None and _type(same.dataType) != _type(column.dataType):
            raise TableError(
                f"{output.name(IMAGE_SCORES)} has the column {same.name} as {_type(same.dataType)}; this "
                f"run would write it as {_type(column.dataType)}. Leave the column out, give it another name "
                "or type in the source, or choose another --output"
            )
    return [column for column in columns if column.name.lower() not in existing]


def _type(type_: DataType) -> str:
    """Return the type's name in SQL, which ignores nullability: all columns may hold nulls."""
    return type_.simpleString().lower()


def _check_location(output: Output) -> None:
    if output.is_schema:
        if not output.spark.catalog.databaseExists(in_sql(output.location)):
            raise TableError(f"there is no schema {output.location}: create it, or pass a directory")
        return
    if DeltaTable.isDeltaTable(output.spark, output.location):
        raise TableError(
            f"output {output.location} is itself a Delta table; expected a directory to put tables into"
        )
    for table in (IMAGE_SCORES, *FILTERED, RUNS):
        # A log without data is the trace of a run that was killed while it created the table.
        names = list_names(output.spark, output.path(table))
        if names and "_delta_log" not in names:
            raise TableError(f"{output.path(table)} exists and is not a Delta table; choose another --output")
