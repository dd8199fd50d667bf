"""Several heads on one embedding: columns of their own, from images and from the embeddings of a table."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml
from pyspark.sql import SparkSession

import nsfw_spark
from nsfw_spark.errors import ConfigError, TableError
from nsfw_spark.spark import score_images
from tests.fakes import card_content, perceptron
from tests.spark.conftest import BAD, GOOD, Run, Tables, image_id

HEADS = {"aesthetic": perceptron(1, [64, "relu", 1], "linear"), "size": perceptron(2, [1])}


@pytest.fixture(scope="module")
def heads_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A card file like `card_file`, with two heads more."""
    path = tmp_path_factory.mktemp("card") / "sampled.yaml"
    path.write_text(yaml.safe_dump(card_content(name="sampled", other_heads=HEADS)), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def beautiful(run: Run, images: Path, heads_file: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run with the heads nsfw and aesthetic; read only."""
    output = tmp_path_factory.mktemp("beautiful") / "out"
    run(images, output, model=heads_file, heads="nsfw, aesthetic")
    return output


def expected(heads_file: str) -> dict[str, nsfw_spark.ImageScore]:
    scorer = nsfw_spark.load_scorer(heads_file)
    return dict(zip(GOOD, scorer.score(list(GOOD.values())), strict=True))


def test_a_named_head_is_a_column_in_all_tables(
    spark: SparkSession, beautiful: Path, images: Path, heads_file: str
) -> None:
    tables = Tables(spark, beautiful)
    rows = tables.rows("image_scores")
    assert "size_score" not in tables.frame("image_scores").columns
    for name, score in expected(heads_file).items():
        row = rows[image_id(images / name)]
        assert score.other_scores is not None
        assert row.aesthetic_score == pytest.approx(score.other_scores["aesthetic"], abs=1e-6)
        assert row.nsfw_score == pytest.approx(score.nsfw_score, abs=1e-6)
    assert all(rows[image_id(images / name)].aesthetic_score is None for name in BAD)
    for table in ("safe_images", "flagged_images", "quarantined_images"):
        assert tables.frame(table).columns == tables.frame("image_scores").columns


def test_the_other_head_does_not_change_what_is_safe(
    spark: SparkSession, beautiful: Path, scored: Path
) -> None:
    for table in ("safe_images", "flagged_images"):
        with_it, without = Tables(spark, beautiful).rows(table), Tables(spark, scored).rows(table)
        assert set(with_it) == set(without)
        assert with_it


def test_a_policy_may_ask_for_it(
    spark: SparkSession, run: Run, images: Path, beautiful: Path, heads_file: str, tmp_path: Path
) -> None:
    values = [row.aesthetic_score for row in Tables(spark, beautiful).rows("image_scores").values()]
    middle = sorted(value for value in values if value is not None)[len(GOOD) // 2]
    policy = tmp_path / "policy.sql"
    policy.write_text(f"aesthetic_score > {middle!r}D")
    output = shutil.copytree(beautiful, tmp_path / "out")
    run(images, output, model=heads_file, heads="nsfw,aesthetic", policy=policy, threshold=None)
    rows = Tables(spark, output).rows("safe_images").values()
    assert 0 < len(rows) < len(GOOD)
    assert all(row.aesthetic_score > middle for row in rows)


def test_rows_with_and_without_a_head_do_not_mix(
    run: Run, images: Path, beautiful: Path, heads_file: str, tmp_path: Path
) -> None:
    output = shutil.copytree(beautiful, tmp_path / "out")
    for heads in ("nsfw", None):
        with pytest.raises(TableError, match="do not compare"):
            run(images, output, model=heads_file, heads=heads)


def test_a_head_that_the_card_lacks_is_said_before_anything_is_written(
    run: Run, images: Path, heads_file: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="no head taste; expected some of nsfw, aesthetic, size"):
        run(images, tmp_path / "out", model=heads_file, heads="nsfw,taste")
    assert not (tmp_path / "out").exists()


def test_all_again_with_another_head_adds_its_column(
    spark: SparkSession, run: Run, images: Path, beautiful: Path, heads_file: str, tmp_path: Path
) -> None:
    output = shutil.copytree(beautiful, tmp_path / "out")
    run(images, output, model=heads_file, rescore="all")
    rows = Tables(spark, output).rows("image_scores")
    before = Tables(spark, beautiful).rows("image_scores")
    for name in GOOD:
        row = rows[image_id(images / name)]
        assert row.size_score is not None
        assert row.aesthetic_score == pytest.approx(before[image_id(images / name)].aesthetic_score, abs=1e-6)


def test_heads_on_the_embeddings_of_a_table_give_the_scores_of_the_images(
    spark: SparkSession, run: Run, beautiful: Path, heads_file: str, tmp_path: Path
) -> None:
    """And what has no score there gets none here, though nobody looks at the image again."""
    summary = run(beautiful / "image_scores", tmp_path / "out", format="embeddings", model=heads_file)
    first = Tables(spark, beautiful).rows("image_scores")
    rows = Tables(spark, tmp_path / "out").rows("image_scores")
    assert set(rows) == set(first)
    assert summary.counts.ok == len(GOOD)
    for image, row in rows.items():
        assert row.source_status == first[image].status
        assert row.source_error == first[image].error
        assert row.source_nsfw_score == first[image].nsfw_score
        assert row.source_aesthetic_score == first[image].aesthetic_score
        if first[image].status == "ok":
            assert row.nsfw_score == pytest.approx(first[image].nsfw_score, abs=1e-6)
            assert row.aesthetic_score == pytest.approx(first[image].aesthetic_score, abs=1e-6)
            assert 0 < row.size_score < 1
        else:
            assert (row.status, row.nsfw_score, row.aesthetic_score) == ("missing", None, None)
    quarantined = Tables(spark, tmp_path / "out").rows("quarantined_images")
    assert set(quarantined) == {image for image, row in first.items() if row.status != "ok"}


def test_random_heads_on_embeddings_are_refused(
    run: Run, beautiful: Path, heads_file: str, tmp_path: Path
) -> None:
    embeddings = {"format": "embeddings", "model": heads_file, "allow_random_weights": False}
    with pytest.raises(ConfigError, match="has random weights"):
        run(beautiful / "image_scores", tmp_path / "out", **embeddings)
    run(beautiful / "image_scores", tmp_path / "out", heads="nsfw", **embeddings)


def test_the_column_function_gives_the_scores_of_all_heads(spark: SparkSession, heads_file: str) -> None:
    contents = spark.createDataFrame([*GOOD.items(), ("bad", b"text")], "name string, content binary")
    rows = {row.name: row for row in score_images(contents, model=heads_file).collect()}
    for name, score in expected(heads_file).items():
        assert score.other_scores is not None
        for head, value in score.other_scores.items():
            assert rows[name][f"{head}_score"] == pytest.approx(value, abs=1e-6)
    assert (rows["bad"].aesthetic_score, rows["bad"].size_score) == (None, None)
    chosen = score_images(contents, model=heads_file, heads=["nsfw"])
    assert not [column for column in chosen.columns if column in ("aesthetic_score", "size_score")]
