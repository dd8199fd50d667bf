"""The tables stay in order: constraints, files, new columns, and a row of `runs` for each run."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from py4j.protocol import Py4JJavaError
from pyspark.sql import DataFrame, Row, SparkSession
from pyspark.sql.types import IntegerType, LongType, StringType, StructField, StructType

from nsfw_spark.errors import TableError
from nsfw_spark.spark import schema
from nsfw_spark.spark.progress import Counts
from nsfw_spark.spark.runs import RunRecord, record_interrupted
from nsfw_spark.spark.tables import (
    IMAGE_SCORES,
    RUNS,
    Output,
    check_output,
    ensure_image_scores,
    last_version,
)

COLUMNS = StructType([schema.IMAGE_ID, *schema.SCORE, *schema.MODEL])
GUIDE = (Path(__file__).parents[2] / "docs" / "tables.md").read_text(encoding="utf-8")
STATEMENTS = [
    " ".join(statement.split())
    for block in re.findall(r"```sql\n(.*?)```", GUIDE, re.DOTALL)
    for statement in block.split(";")
    if statement.strip()
]
SNIPPETS = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)


@pytest.fixture
def out(spark: SparkSession, tmp_path: Path) -> Output:
    return Output(spark, str(tmp_path / "out"), str(tmp_path / "out" / "_checkpoints"))


def start(out: Output, columns: StructType = COLUMNS) -> None:
    """Check and make image_scores, as a run does before it writes."""
    check_output(out, columns, "sampled", "0123456789abcdef")
    ensure_image_scores(out, columns, "sampled", "0123456789abcdef")


def rows(out: Output, *scores: float | None, run_id: str = "a") -> DataFrame:
    """Return rows of image_scores with these scores; None means quarantined."""
    values = [
        {
            "image_id": f"{run_id}{i}",
            "status": "undecodable" if score is None else "ok",
            "nsfw_score": score,
            "model": "sampled",
            "model_fingerprint": "0123456789abcdef",
            "run_id": run_id,
            "scored_at": datetime(2026, 11, 21, tzinfo=UTC),
        }
        for i, score in enumerate(scores)
    ]
    return out.spark.createDataFrame([[row.get(name) for name in COLUMNS.names] for row in values], COLUMNS)


def add(out: Output, *scores: float | None, run_id: str = "a", **options: str) -> None:
    frame = rows(out, *scores, run_id=run_id).coalesce(1)
    frame.writeTo(out.name(IMAGE_SCORES)).options(**options).append()


def settings(out: Output, table: str = IMAGE_SCORES) -> dict[str, str]:
    return {row.key: row.value for row in out.spark.sql(f"SHOW TBLPROPERTIES {out.name(table)}").collect()}


def operations(out: Output, table: str = IMAGE_SCORES) -> list[str]:
    """Return the operations of the table's commits, oldest first."""
    found = out.spark.sql(f"DESCRIBE HISTORY {out.name(table)}").orderBy("version").collect()
    return [row.operation for row in found]


def num_files(out: Output) -> int:
    return int(out.spark.sql(f"DESCRIBE DETAIL {out.name(IMAGE_SCORES)}").collect()[0].numFiles)


def test_a_table_says_what_its_columns_are_and_which_model_it_is_of(out: Output) -> None:
    start(out)
    described = {
        row.col_name: row.comment for row in out.spark.sql(f"DESCRIBE {out.name(IMAGE_SCORES)}").collect()
    }
    assert {name: described[name] for name in COLUMNS.names} == {
        column.name: column.metadata["comment"] for column in COLUMNS
    }
    said = {"nsfw_spark.model": "sampled", "nsfw_spark.model_fingerprint": "0123456789abcdef"}
    assert said.items() <= settings(out).items()


@pytest.mark.parametrize("score", [float("nan"), 1.01, -0.01])
def test_delta_refuses_what_is_no_score(out: Output, score: float) -> None:
    start(out)
    add(out, None, 0.0, 1.0)
    with pytest.raises(Py4JJavaError, match="CHECK constraint nsfw_score_in_range"):
        add(out, score)
    assert out.table(IMAGE_SCORES).count() == 3


def test_a_start_that_finds_all_in_order_writes_nothing(out: Output) -> None:
    start(out)
    before = operations(out)
    start(out)
    assert operations(out) == before


def test_a_start_that_was_killed_while_it_made_the_table_is_made_good(out: Output) -> None:
    Path(out.path(IMAGE_SCORES), "_delta_log").mkdir(parents=True)
    start(out)
    add(out, 0.5)
    assert out.table(IMAGE_SCORES).columns == COLUMNS.names


def break_off_before_the_constraint(out: Output) -> None:
    out.spark.sql(f"ALTER TABLE {out.name(IMAGE_SCORES)} DROP CONSTRAINT nsfw_score_in_range")


def break_off_before_the_properties(out: Output) -> None:
    keys = "'delta.autoOptimize.autoCompact', 'delta.autoOptimize.optimizeWrite'"
    out.spark.sql(f"ALTER TABLE {out.name(IMAGE_SCORES)} UNSET TBLPROPERTIES ({keys})")


@pytest.mark.parametrize("break_off", [break_off_before_the_constraint, break_off_before_the_properties])
def test_a_start_that_was_killed_after_it_made_the_table_is_made_good(
    out: Output, break_off: Callable[[Output], None]
) -> None:
    start(out)
    whole = settings(out)
    break_off(out)
    start(out)
    assert settings(out) == whole


def test_a_property_that_somebody_chose_stays(out: Output) -> None:
    start(out)
    chosen = {"delta.autoOptimize.autoCompact": "false"}
    out.spark.sql(
        f"ALTER TABLE {out.name(IMAGE_SCORES)} SET TBLPROPERTIES ('delta.autoOptimize.autoCompact' = 'false')"
    )
    start(out)
    assert chosen.items() <= settings(out).items()


def test_many_small_additions_do_not_leave_many_files(out: Output) -> None:
    """Delta compacts after 4 files here, by default after 50."""
    start(out)
    nights = [f"night {i}" for i in range(6)]
    out.spark.conf.set("spark.databricks.delta.autoCompact.minNumFiles", "4")
    try:
        for i, night in enumerate(nights):
            several = rows(out, 0.1, 0.2, 0.3, 0.4, run_id=night).repartition(4)
            several.writeTo(out.name(IMAGE_SCORES)).append()
            if i == 0:
                assert num_files(out) == 1
    finally:
        out.spark.conf.unset("spark.databricks.delta.autoCompact.minNumFiles")
    assert num_files(out) < 4
    assert "OPTIMIZE" in operations(out)
    assert out.table(IMAGE_SCORES).count() == 4 * len(nights)


def earlier_table(out: Output, *scores: float) -> StructType:
    """Make a table as an earlier version of this package might have; return its columns."""
    earlier = [column for column in COLUMNS if column.name not in {"class_scores", "embedding"}]
    columns = StructType([*earlier, StructField("Caption", StringType()), StructField("mine", LongType())])
    frame = rows(out, *scores).selectExpr(
        *(column.name for column in earlier), "'a cat' AS Caption", "1L AS mine"
    )
    writer = frame.writeTo(out.name(IMAGE_SCORES)).using("delta").tableProperty("nsfw_spark.model", "sampled")
    writer.tableProperty("nsfw_spark.model_fingerprint", "0123456789abcdef").create()
    return columns


def test_columns_that_an_earlier_table_lacks_are_added(
    out: Output, capfd: pytest.CaptureFixture[str]
) -> None:
    earlier = earlier_table(out, 0.5)
    new = [
        StructField("caption", StringType()),  # there, with another capital
        StructField(
            "info", StructType([StructField("Größe-px", IntegerType())]), metadata={"comment": "it's"}
        ),
    ]
    start(out, StructType([*COLUMNS, *new]))
    assert (
        "image_scores gets new columns, null in its old rows: class_scores, embedding, info\n"
        in capfd.readouterr().err
    )
    table = out.table(IMAGE_SCORES)
    assert table.columns == [*earlier.names, "class_scores", "embedding", "info"]
    added = {field.name: (field.dataType, field.metadata.get("comment")) for field in table.schema}
    assert added["info"] == (new[1].dataType, "it's")
    assert added["embedding"][1] == schema.SCORE["embedding"].metadata["comment"]
    (row,) = table.collect()
    assert (row.Caption, row.mine, row.embedding, row.info) == ("a cat", 1, None, None)
    add(out, 0.7, run_id="b")  # a run that knows neither caption nor mine
    assert table.where("run_id = 'b' AND Caption IS NULL AND mine IS NULL").count() == 1
    assert "delta.constraints.nsfw_score_in_range" in settings(out)


def test_a_column_of_another_type_is_refused_before_anything_is_written(out: Output) -> None:
    earlier_table(out, 0.5)
    before = operations(out)
    with pytest.raises(TableError, match=r"has the column mine as bigint; this run would write it as string"):
        start(out, StructType([*COLUMNS, StructField("MINE", StringType())]))
    assert operations(out) == before


def test_a_name_that_delta_refuses_is_named(out: Output) -> None:
    with pytest.raises(TableError, match=r"a column is named 'alt text'; expected .*Rename it"):
        start(out, StructType([*COLUMNS, StructField("alt text", StringType())]))
    assert not Path(out.location).exists()


def test_rows_that_never_were_scores_are_named(out: Output) -> None:
    earlier_table(out, 0.5, float("nan"))
    with pytest.raises(TableError, match="does not hold: nsfw_score IS NULL OR"):
        start(out)


def runs(out: Output) -> dict[str, Row]:
    found = out.table(RUNS).collect()
    by_id = {row.run_id: row for row in found}
    assert len(by_id) == len(found)
    return by_id


def assert_adds_up(out: Output) -> None:
    scoring = [row for row in runs(out).values() if row.command in {"run", "score"}]
    assert sum(row.images for row in scoring) == out.table(IMAGE_SCORES).count()


def begin(out: Output, run_id: str, command: str = "run") -> RunRecord:
    """Write the row of a run that starts."""
    record = RunRecord(out, run_id, command)
    record.start(input="file:/images", model="sampled", model_fingerprint="0123456789abcdef")
    return record


def one_run(out: Output) -> None:
    """Make the tables, and let one run end."""
    start(out)
    record = begin(out, "first")
    add(out, 0.1, run_id="first")
    record.finish(Counts(1, 1), 0.5)


def test_a_run_has_its_row_from_its_start(out: Output) -> None:
    start(out)
    record = begin(out, "first", "score")
    row = runs(out)["first"]
    assert (row.outcome, row.command, row.input, row.images) == ("running", "score", "file:/images", None)
    assert {"nsfw-spark", "pyspark", "numpy", "safetensors"} <= row.versions.keys()
    add(out, 0.1, None, run_id="first")
    summary = record.finish(Counts(2, 1), 0.5, checkpoint="name id")
    (row,) = runs(out).values()
    assert (row.outcome, row.images, row.quarantined, row.checkpoint) == ("done", 2, 1, "name id")
    assert (row.safe, row.flagged) == (None, None)
    assert row.seconds >= row.filter_seconds + 0.5 - 0.001
    assert summary.as_dict()["images"] == 2
    assert operations(out, RUNS)[1:] == ["WRITE"]
    assert record_interrupted(out) == 0


def test_a_run_that_was_killed_is_interrupted_for_the_next(out: Output) -> None:
    one_run(out)
    begin(out, "killed", "score")
    add(out, 0.1, None, run_id="killed")
    add(out, 0.2, None, None, run_id="killed")
    begin(out, "killed before it scored")
    assert record_interrupted(out) == 2
    found = runs(out)
    assert found["first"].outcome == "done"
    killed = found["killed"]
    assert (killed.images, killed.ok, killed.quarantined) == (5, 2, 3)
    assert (killed.safe, killed.flagged, killed.seconds, killed.last_batch) == (None, None, None, None)
    assert (killed.outcome, killed.command, killed.input) == ("interrupted", "score", "file:/images")
    assert (killed.model, killed.model_fingerprint) == ("sampled", "0123456789abcdef")
    assert killed.started_at > found["first"].started_at
    assert killed.image_scores_version == last_version(out, IMAGE_SCORES)
    assert (found["killed before it scored"].outcome, found["killed before it scored"].images) == (
        "interrupted",
        0,
    )
    assert_adds_up(out)
    assert record_interrupted(out) == 0


def test_the_first_run_of_all_may_be_killed(out: Output) -> None:
    assert record_interrupted(out) == 0
    begin(out, "killed before it made a table")
    assert record_interrupted(out) == 1
    start(out)
    assert record_interrupted(out) == 0
    begin(out, "killed")
    add(out, 0.1, 0.2, run_id="killed")
    assert record_interrupted(out) == 1
    assert_adds_up(out)


def test_a_table_runs_that_was_deleted_is_made_again(out: Output) -> None:
    one_run(out)
    begin(out, "killed")
    add(out, 0.1, None, run_id="killed")
    shutil.rmtree(Path(out.path(RUNS)))
    assert record_interrupted(out) == 2
    found = runs(out)
    assert {row.outcome for row in found.values()} == {"interrupted"}
    assert found["killed"].started_at == datetime(2026, 11, 21, tzinfo=UTC).astimezone().replace(tzinfo=None)
    assert (found["killed"].model, found["killed"].command) == ("sampled", "run")
    assert_adds_up(out)
    assert record_interrupted(out) == 0


def test_if_no_run_died_no_data_are_read(out: Output) -> None:
    one_run(out)
    for file in Path(out.path(IMAGE_SCORES)).glob("*.parquet"):
        file.unlink()
    before = operations(out, RUNS)
    assert record_interrupted(out) == 0
    assert operations(out, RUNS) == before


def test_a_table_runs_of_an_earlier_version_gets_its_columns_and_rows(out: Output) -> None:
    start(out)
    add(out, 0.1, run_id="first")
    add(out, 0.1, 0.2, run_id="killed")
    earlier = out.spark.createDataFrame([["first", "run", 1]], "run_id string, command string, images long")
    earlier.writeTo(out.name(RUNS)).using("delta").create()
    assert record_interrupted(out) == 1
    assert runs(out)["killed"].images == 2
    assert_adds_up(out)
    begin(out, "new").finish(Counts(), 0.0)
    assert record_interrupted(out) == 0


def test_two_runs_can_write_their_rows_at_once(out: Output) -> None:
    """`filter` of a catalog schema may have no lock."""
    start(out)
    records = [begin(out, f"{i}", "filter") for i in range(3)]
    with ThreadPoolExecutor(3) as threads:
        list(threads.map(lambda record: record.finish(Counts(), 0.0), records))
    assert {row.outcome for row in runs(out).values()} == {"done"}
    assert len(runs(out)) == 3


def test_a_filter_without_a_lock_hides_no_run_that_was_killed(out: Output) -> None:
    start(out)
    add(out, 0.1, run_id="killed by an earlier version")
    begin(out, "alive", "filter").finish(Counts(), 0.0)
    assert record_interrupted(out) == 1
    assert_adds_up(out)


@pytest.fixture
def hasty(spark: SparkSession) -> Iterator[None]:
    """Let VACUUM delete at once."""
    key = "spark.databricks.delta.retentionDurationCheck.enabled"
    spark.conf.set(key, "false")
    yield
    spark.conf.unset(key)


@pytest.mark.usefixtures("hasty")
def test_a_killed_run_is_counted_though_its_files_were_compacted(out: Output) -> None:
    one_run(out)
    begin(out, "killed")
    add(out, 0.1, 0.2, run_id="killed")
    out.spark.sql(f"OPTIMIZE {out.name(IMAGE_SCORES)}")
    out.spark.sql(f"VACUUM {out.name(IMAGE_SCORES)} RETAIN 0 HOURS")
    assert len(list(Path(out.path(IMAGE_SCORES)).glob("*.parquet"))) == 1
    assert record_interrupted(out) == 1
    assert_adds_up(out)


@pytest.fixture
def safety(spark: SparkSession, output: Path) -> Iterator[str]:
    """A catalog schema with the tables of `output`."""
    spark.sql("CREATE SCHEMA spark_catalog.guide")
    for table in ("image_scores", "safe_images", "flagged_images", "quarantined_images", "runs"):
        spark.sql(f"CREATE TABLE spark_catalog.guide.{table} USING delta LOCATION '{output}/{table}'")
    yield "spark_catalog.guide"
    spark.sql("DROP SCHEMA spark_catalog.guide CASCADE")


def test_every_statement_of_the_guide_runs(spark: SparkSession, output: Path, safety: str) -> None:
    assert len(STATEMENTS) > 15
    results = {}
    for statement in STATEMENTS:
        own = statement.replace("/data/out", str(output)).replace("main.safety", safety)
        results[statement] = spark.sql(own).collect()
    sums = [result[0][0] for statement, result in results.items() if "sum(images)" in statement]
    counts = [
        result[0][0] for statement, result in results.items() if re.search(r"count.*image_scores", statement)
    ]
    assert sums == counts != []
    assert [result for statement, result in results.items() if "WHERE NOT" in statement] == [[]]


@pytest.mark.parametrize("snippet", SNIPPETS, ids=["deltalake", "polars", "duckdb"])
def test_the_tables_are_read_without_spark(spark: SparkSession, output: Path, snippet: str) -> None:
    scope: dict[str, Any] = {}
    exec(snippet.replace("/data/out", str(output)), scope)  # noqa: S102 - the guide's own
    assert len(scope["safe"]) == spark.read.format("delta").load(f"{output}/safe_images").count() > 0
