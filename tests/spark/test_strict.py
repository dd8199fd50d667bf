"""Strict runs: the same scores as without Spark, in tables of their own."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from pyspark.sql import DataFrame, SparkSession

import nsfw_spark
from nsfw_spark.errors import ConfigError, TableError
from nsfw_spark.spark import score_images, score_udf
from tests.conftest import png
from tests.fakes import brightness_card
from tests.hidden import HIDDEN
from tests.spark.conftest import Run, Tables, image_id, write_files

FILES = {name: hidden.content for name, hidden in HIDDEN.items()} | {"plain.png": png(), "text.png": b"text"}
VIEWS = {name: (hidden.view, hidden.num_frames) for name, hidden in HIDDEN.items()}
VIEWS |= {"plain.png": ("centre", 1), "text.png": (None, None)}
Views = dict[str, tuple[str | None, int | None, float | None]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_files(tmp_path_factory.mktemp("hidden"), FILES)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Write the card of a model whose score is an image's brightness: no two views score the same."""
    path = tmp_path_factory.mktemp("card") / "bright.yaml"
    content = brightness_card(path.with_suffix(".onnx")).model_dump(mode="json", exclude_none=True)
    content["name"], content["encoder"]["weights"] = path.stem, {"path": "bright.onnx"}
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def expected(model: str) -> Views:
    """By name: the view, the number of frames, and the score, as they are without Spark."""
    scores = nsfw_spark.load_scorer(model, device="cpu", strict=True).score(list(FILES.values()))
    return {
        name: (score.scored_view, score.frames_scored, score.nsfw_score and pytest.approx(score.nsfw_score))
        for name, score in zip(FILES, scores, strict=True)
    }


@pytest.fixture
def tables(spark: SparkSession, tmp_path: Path) -> Tables:
    return Tables(spark, tmp_path / "out")


@pytest.fixture
def images(spark: SparkSession) -> DataFrame:
    return spark.createDataFrame(list(FILES.items()), "name string, content binary").repartition(2)


def test_a_strict_run_says_of_each_image_which_view_its_score_is_of(
    run: Run, model: str, folder: Path, tables: Tables, expected: Views, tmp_path: Path
) -> None:
    run(folder, tmp_path / "out", model=model, strict=True)
    rows = tables.rows("image_scores")
    found = {name: rows[image_id(folder / name)] for name in FILES}
    assert {
        name: (row.scored_view, row.frames_scored, row.nsfw_score) for name, row in found.items()
    } == expected
    assert {name: (view, num_frames) for name, (view, num_frames, _) in expected.items()} == VIEWS
    assert found["text.png"].status == "undecodable"
    assert all(row.model_fingerprint.endswith("-strict") for row in rows.values())


def test_strict_scores_and_others_do_not_mix_unless_all_is_scored_again(
    run: Run, model: str, folder: Path, tables: Tables, expected: Views, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run(folder, out, model=model)
    before, versions = tables.rows("image_scores"), tables.operations("image_scores")
    assert {(row.scored_view, row.frames_scored) for row in before.values()} == {(None, None)}
    with pytest.raises(TableError, match=r"-strict, which do not compare.*--strict"):
        run(folder, out, model=model, strict=True)
    assert tables.operations("image_scores") == versions

    run(folder, out, model=model, strict=True, rescore="all")
    after = tables.rows("image_scores")
    assert after.keys() == before.keys()
    assert {name: after[image_id(folder / name)].scored_view for name in FILES} == {
        name: view for name, (view, _, _) in expected.items()
    }
    versions = tables.operations("image_scores")
    with pytest.raises(TableError, match="which do not compare"):
        run(folder, out, model=model)
    assert run(folder, out, model=model, strict=True).counts.images == 0
    assert tables.operations("image_scores") == versions


def test_the_column_is_strict_where_it_is_asked_to(images: DataFrame, expected: Views, model: str) -> None:
    scored = score_images(images, model=model, strict=True)
    column = images.select("name", score_udf(model, strict=True)("content").alias("score"))
    for rows in (scored.collect(), column.select("name", "score.*").collect()):
        found = {row.name: (row.scored_view, row.frames_scored, row.nsfw_score) for row in rows}
        assert found == expected


def test_embeddings_have_no_views(run: Run, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--strict looks at images"):
        run(folder, tmp_path / "out", strict=True, format="embeddings")
    assert not (tmp_path / "out").exists()
