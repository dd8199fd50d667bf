"""The scorer as a column: the same scores as without Spark, in batches, in streams and in SQL."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import DataFrame, Row, SparkSession
from pyspark.sql import functions as F
from pyspark.testing import assertDataFrameEqual

import nsfw_spark
from nsfw_spark.errors import ConfigError, InputError
from nsfw_spark.scorer import ImageScore
from nsfw_spark.spark import keep_safe, read_images, run, schema, score_images, score_udf
from tests.java import quick
from tests.spark.conftest import BAD, GOOD, THRESHOLD, image_id

CONTENTS: dict[str, bytes | None] = {
    **GOOD,
    **{name: content for name, (content, _, _) in BAD.items()},
    "never read": None,
}
# Sums come out differently in the last bits where a batch has another size: with 1 they cannot.
BATCH_SIZE = 1


@pytest.fixture
def contents(spark: SparkSession) -> DataFrame:
    return spark.createDataFrame(list(CONTENTS.items()), "name string, content binary").repartition(3)


@pytest.fixture(scope="module")
def expected(card_file: str) -> dict[str, ImageScore]:
    scores = nsfw_spark.load_scorer(card_file, batch_size=BATCH_SIZE).score(list(CONTENTS.values()))
    return dict(zip(CONTENTS, scores, strict=True))


def as_score(row: Row) -> dict[str, Any]:
    """Return what `schema.SCORE` holds of a row."""
    return {name: row[name] for name in schema.SCORE.names}


def as_row(score: ImageScore) -> dict[str, Any]:
    """Return a score as Spark shows it."""
    values = {name: getattr(score, name) for name in schema.SCORE.names}
    return {**values, "embedding": None if score.embedding is None else score.embedding.tolist()}


def test_a_batch_gets_the_scores_of_the_scorer_to_the_last_bit(
    contents: DataFrame, expected: dict[str, ImageScore], card_file: str
) -> None:
    rows = score_images(contents, model=card_file, batch_size=BATCH_SIZE).collect()
    assert {row.name: as_score(row) for row in rows} == {name: as_row(expected[name]) for name in CONTENTS}
    assert len(rows) == len(CONTENTS)


def test_a_stream_gets_the_scores_of_the_scorer_to_the_last_bit(
    spark: SparkSession, images: Path, expected: dict[str, ImageScore], card_file: str
) -> None:
    columns = "path string, modificationTime timestamp, length long, content binary"
    files = spark.readStream.format("binaryFile").schema(columns).option("recursiveFileLookup", "true")
    scored = score_images(files.load(str(images)), model=card_file, batch_size=BATCH_SIZE)
    sink = scored.writeStream.format("memory").queryName("scored_stream").trigger(availableNow=True)
    sink.start().awaitTermination()
    rows = {row.path: as_score(row) for row in spark.table("scored_stream").collect()}
    # Spark's source itself leaves out empty files; the job accounts for them, this is not the job.
    read = {name for name, content in CONTENTS.items() if content}
    assert rows == {image_id(images / name): as_row(expected[name]) for name in read}


def test_sql_gets_the_scores_of_the_scorer_to_the_last_bit(
    spark: SparkSession, contents: DataFrame, expected: dict[str, ImageScore], card_file: str
) -> None:
    spark.udf.register("nsfw", score_udf(card_file, batch_size=BATCH_SIZE))
    contents.createOrReplaceTempView("contents")
    rows = spark.sql("SELECT name, nsfw(content) AS score FROM contents").collect()
    found = {row.name: (row.score.nsfw_score, row.score.status) for row in rows}
    assert found == {key: (score.nsfw_score, score.status) for key, score in expected.items()}
    one = spark.sql("SELECT nsfw(content).status AS status FROM contents WHERE name = 'text.jpg'").first()
    assert one is not None
    assert one.status == "undecodable"


@pytest.mark.parametrize("num_partitions", [1, 5])
def test_each_row_keeps_its_own_score_whatever_the_order(
    contents: DataFrame, expected: dict[str, ImageScore], card_file: str, num_partitions: int
) -> None:
    shuffled = contents.repartition(num_partitions).sortWithinPartitions(F.col("name").desc())
    for row in score_images(shuffled, model=card_file).collect():
        content, score = CONTENTS[row.name], expected[row.name].nsfw_score
        assert row.content_sha256 == (None if content is None else hashlib.sha256(content).hexdigest())
        assert row.nsfw_score == (None if score is None else pytest.approx(score, rel=1e-4))


def test_an_image_that_could_not_be_read_is_missing(contents: DataFrame, card_file: str) -> None:
    row = score_images(contents.filter("content IS NULL"), model=card_file).first()
    assert row is not None
    assert (row.status, row.nsfw_score, row.length) == ("missing", None, None)


@pytest.mark.parametrize("limit", ["max_pixels", "max_bytes"])
def test_an_image_beyond_a_limit_is_too_large(contents: DataFrame, card_file: str, limit: str) -> None:
    good = contents.filter(F.col("name") == next(iter(GOOD)))
    limits: dict[str, Any] = {limit: 10}
    by_image = score_images(good, model=card_file, **limits).first()
    by_udf = good.select(score_udf(card_file, **limits)("content").alias("score")).first()
    assert by_image is not None
    assert by_udf is not None
    for score in (by_image, by_udf.score):
        assert (score.status, score.nsfw_score) == ("too_large", None)
        assert f"{limit} = 10" in score.error


def test_scoring_adds_the_columns_of_image_scores(contents: DataFrame, card_file: str) -> None:
    scored = score_images(contents, model=card_file, run_id="mine")
    assert scored.columns == ["name", "content", *schema.SCORE.names, *schema.MODEL.names]
    row = scored.first()
    assert row is not None
    assert (row.run_id, row.model) == ("mine", "sampled")
    assert row.model_fingerprint == nsfw_spark.load_scorer(card_file).fingerprint


def test_a_filter_on_the_score_runs_the_model_once(contents: DataFrame, card_file: str) -> None:
    safe = keep_safe(score_images(contents, model=card_file), threshold=THRESHOLD)
    narrow = safe.filter("width > 1").select("name", "nsfw_score")
    for frame in (safe, narrow):
        plan = frame._jdf.queryExecution().executedPlan().toString()
        assert plan.count("ArrowEvalPython") == 1, plan


def test_only_scores_below_the_threshold_are_safe(spark: SparkSession) -> None:
    rows = [
        ("below", "ok", 0.29999998),
        ("equal", "ok", 0.3),
        ("above", "ok", 0.30000004),
        ("nan", "ok", float("nan")),
        ("null", "ok", None),
        ("bad", "undecodable", None),
        ("bad with a score", "crashed", 0.1),
        ("no status", None, 0.1),
    ]
    scored = spark.createDataFrame(rows, "name string, status string, nsfw_score float")
    assert [row.name for row in keep_safe(scored, threshold=0.3).collect()] == ["below"]
    assert [row.name for row in keep_safe(scored, threshold=0).collect()] == []


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan")])
def test_a_threshold_that_is_no_share_is_refused(spark: SparkSession, threshold: float) -> None:
    scored = spark.createDataFrame([("ok", 0.1)], "status string, nsfw_score float")
    with pytest.raises(ConfigError, match="from 0 to 1"):
        keep_safe(scored, threshold=threshold)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ("name string, picture binary", "expected a binary column content .* as content_column"),
        ("name string, content string", "the column content is string; expected binary: .* read_images"),
        ("status string, content binary", "already have a column status"),
        ("Status string, content binary", "already have a column Status"),
        ("content binary, error string, model string", "already have a column error, model"),
        ("content binary, length string", "already have a column length"),
        ("content binary, LENGTH long", "already have a column LENGTH"),
    ],
)
def test_a_frame_of_another_shape_is_refused(
    spark: SparkSession, card_file: str, columns: str, said: str
) -> None:
    with pytest.raises(InputError, match=said):
        score_images(spark.createDataFrame([], columns), model=card_file)


def test_the_users_columns_stay_whatever_their_names(contents: DataFrame, card_file: str) -> None:
    own = contents.withColumns({"_score": F.lit(7), "a.b": F.lit("dotted"), "`": F.lit("quote")})
    scored = score_images(own, model=card_file, run_id="mine")
    assert scored.columns == [*own.columns, *schema.SCORE.names, *schema.MODEL.names]
    rows = scored.select("_score", F.col("`a.b`").alias("dotted"), F.col("````").alias("quote")).distinct()
    assert [tuple(row) for row in rows.collect()] == [(7, "dotted", "quote")]


def test_the_images_may_be_in_a_column_of_another_name(contents: DataFrame, card_file: str) -> None:
    renamed = contents.withColumnRenamed("content", "a picture")
    rows = score_images(renamed, model=card_file, batch_size=BATCH_SIZE, content_column="a picture").collect()
    expected = score_images(contents, model=card_file, batch_size=BATCH_SIZE).collect()
    scores = [{row.name: row.nsfw_score for row in some} for some in (rows, expected)]
    assert scores[0] == scores[1]


def test_the_length_of_a_file_stays_where_it_could_not_be_read(
    spark: SparkSession, images: Path, card_file: str
) -> None:
    files = read_images(spark, str(images), glob="*.pdf")
    scored = score_images(files, model=card_file)
    assert scored.columns[: len(files.columns)] == files.columns
    assert scored.columns.count("length") == 1
    assert [row.length for row in scored.collect()] == [(images / "document.pdf").stat().st_size]
    unread = score_images(files.withColumn("content", F.lit(None).cast("binary")), model=card_file).first()
    assert unread is not None
    assert (unread.status, unread.length) == ("missing", (images / "document.pdf").stat().st_size)


def test_a_policy_keeps_what_is_safe_right_after_scoring(contents: DataFrame, card_file: str) -> None:
    scored = score_images(contents, model=card_file)
    by_policy = keep_safe(scored, policy=f"nsfw_score < {THRESHOLD}f").select("name").collect()
    by_threshold = keep_safe(scored, threshold=THRESHOLD).select("name").collect()
    assert sorted(by_policy) == sorted(by_threshold) != []


def test_after_a_policy_was_checked_sparks_own_errors_are_sparks_own() -> None:
    """In a process of its own: pyspark makes its logger once."""
    code = """
import pyspark.sql
from nsfw_spark.spark import keep_safe
from nsfw_spark.spark.session import get_session
spark = get_session()
keep_safe(spark.createDataFrame([("ok", 0.1)], "status string, nsfw_score float"), policy="nsfw_score < 0.3")
try:
    spark.sql("SELECT no_such_column")
except pyspark.errors.AnalysisException as error:
    print("refused by Spark")
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **quick()},
        check=False,
    )
    assert "refused by Spark" in done.stdout, done.stderr


def test_a_threshold_and_a_policy_are_refused_together(spark: SparkSession) -> None:
    scored = spark.createDataFrame([("ok", 0.1)], "status string, nsfw_score float")
    with pytest.raises(ConfigError, match=r"got threshold 0\.3 and a policy; expected one of the two"):
        keep_safe(scored, threshold=0.3, policy="nsfw_score < 0.3")
    assert keep_safe(scored).count() == 1


def test_rows_without_scores_are_refused(spark: SparkSession) -> None:
    with pytest.raises(InputError, match="no column nsfw_score and status; expected rows of score_images"):
        keep_safe(spark.createDataFrame([("a",)], "name string"))


@pytest.mark.parametrize("options", [{"device": "gpu"}, {"uncertain": (0.2, 0.8)}, {"devixe": "cpu"}])
def test_a_wrong_option_is_refused_by_name(
    contents: DataFrame, card_file: str, options: dict[str, Any]
) -> None:
    for use in (
        lambda: score_images(contents, model=card_file, **options),
        lambda: score_udf(card_file, **options),
        lambda: nsfw_spark.load_scorer(card_file, **options),
    ):
        with pytest.raises(ConfigError, match=next(iter(options))):
            use()


@pytest.mark.usefixtures("spark")
def test_a_notebook_runs_the_whole_job(images: Path, card_file: str, tmp_path: Path) -> None:
    output = str(tmp_path / "out")
    summary = run(str(images), output, model=card_file, threshold=0.9, allow_random_weights=True)
    assert summary.counts.images == len(CONTENTS) - 1  # one of the contents is no file
    assert summary.totals["image_scores"] == summary.counts.images
    with pytest.raises(ConfigError, match="threshld: unknown key, did you mean threshold"):
        run(str(images), output, threshld=0.9)  # type: ignore[call-arg]


def test_read_images_reads_what_spark_reads(spark: SparkSession, images: Path) -> None:
    found = read_images(spark, str(images)).select("image_id", "content")
    files = [(image_id(images / name), content) for name, content in CONTENTS.items() if content]
    assertDataFrameEqual(found, spark.createDataFrame(files, found.schema))
    only = read_images(spark, str(images), glob="*.pdf").select("image_id").collect()
    assert [row.image_id for row in only] == [image_id(images / "document.pdf")]
