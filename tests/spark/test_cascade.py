"""A run with two models: both scores, which of them decided, and how many the second saw."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest
from pyspark.sql import DataFrame, SparkSession

import nsfw_spark
from nsfw_spark import Cascade, ConfigError, ImageScore, TableError
from nsfw_spark.spark import score_images
from tests.spark.conftest import BAD, GOOD, THRESHOLD, Run, Tables, image_id


@pytest.fixture(scope="module")
def band(card_file: str) -> tuple[float, float]:
    """Scores of which the first model is not sure: those of about half of GOOD."""
    scores = [row.nsfw_score or 0.0 for row in nsfw_spark.load_scorer(card_file).score(list(GOOD.values()))]
    low, middle, _ = statistics.quantiles(scores, n=4)
    assert low < middle
    return low, 1.0


@pytest.fixture(scope="module")
def expected(card_file: str, other_card_file: str, band: tuple[float, float]) -> dict[str, ImageScore]:
    """By name: the rows as they are without Spark."""
    first, second = nsfw_spark.load_scorer(card_file), nsfw_spark.load_scorer(other_card_file)
    rows = dict(zip(GOOD, Cascade(first, second, *band).score(list(GOOD.values())), strict=True))
    assert {row.decided_by for row in rows.values()} == {"sampled", "other"}
    return rows


@pytest.fixture(scope="module")
def output(
    run: Run,
    images: Path,
    other_card_file: str,
    band: tuple[float, float],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The output of such a run; read only."""
    output = tmp_path_factory.mktemp("cascade") / "out"
    run(images, output, second=other_card_file, uncertain=f"{band[0]}:{band[1]}")
    return output


def test_both_scores_and_which_decided_are_columns(
    spark: SparkSession, output: Path, images: Path, expected: dict[str, ImageScore]
) -> None:
    rows = Tables(spark, output).rows("image_scores")
    for name, score in expected.items():
        row = rows[image_id(images / name)]
        assert row.decided_by == score.decided_by
        for column in ("nsfw_score", "first_score", "second_score"):
            wanted = score.column(column)
            assert row[column] == (None if wanted is None else pytest.approx(wanted, abs=1e-6))
        assert row.model == "sampled+other"
    for name in BAD:
        row = rows[image_id(images / name)]
        assert (row.first_score, row.second_score, row.decided_by) == (None, None, None)


def test_what_decided_is_what_the_policy_sees(spark: SparkSession, output: Path) -> None:
    safe = Tables(spark, output).rows("safe_images").values()
    flagged = Tables(spark, output).rows("flagged_images").values()
    assert all(row.nsfw_score < THRESHOLD for row in safe)
    assert all(row.nsfw_score >= THRESHOLD for row in flagged)
    assert {row.decided_by for row in [*safe, *flagged]} == {"sampled", "other"}


def test_runs_says_how_many_images_the_second_model_saw(
    spark: SparkSession, output: Path, scored: Path, expected: dict[str, ImageScore]
) -> None:
    [row] = Tables(spark, output).frame("runs").collect()
    assert row.second == sum(each.decided_by == "other" for each in expected.values())
    assert row.second > 0
    assert Tables(spark, scored).frame("runs").first().second is None, "no cascade"


def test_other_scores_do_not_mix_with_a_cascades(
    run: Run, images: Path, output: Path, other_card_file: str
) -> None:
    for options in ({}, {"second": other_card_file}, {"second": other_card_file, "uncertain": "0:1"}):
        with pytest.raises(TableError, match="fingerprint"):
            run(images, output, **options)


def test_dataframes_are_scored_by_two_models_too(
    spark: SparkSession,
    card_file: str,
    other_card_file: str,
    band: tuple[float, float],
    expected: dict[str, ImageScore],
) -> None:
    images: DataFrame = spark.createDataFrame(list(GOOD.items()), "name string, content binary")
    scored = score_images(images, model=card_file, second=other_card_file, uncertain=band)
    rows = {row.name: row for row in scored.collect()}
    assert {name: row.decided_by for name, row in rows.items()} == {
        name: score.decided_by for name, score in expected.items()
    }


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"uncertain": "0.1:0.9"}, "uncertain 0.1:0.9 and no second"),
        ({"second": "open-nsfw", "uncertain": "0.9:0.1"}, "expected LOW:HIGH"),
        ({"second": "open-nsfv"}, "did you mean open-nsfw"),
        ({"second": "open-nsfw", "format": "embeddings"}, "second looks at images"),
    ],
)
def test_what_makes_no_cascade_is_a_config_error(
    run: Run, images: Path, tmp_path: Path, options: dict[str, str], expected: str
) -> None:
    with pytest.raises(ConfigError, match=expected):
        run(images, tmp_path / "out", **options)
