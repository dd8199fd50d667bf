"""A run: each file becomes one row, nothing is scored twice, and a wrong output is refused."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import Row, SparkSession
from pyspark.sql import functions as F

import nsfw_spark
from nsfw_spark.errors import ConfigError, InputError, TableError
from nsfw_spark.spark import schema
from nsfw_spark.spark.sources import ImageFiles
from nsfw_spark.spark.summary import RunSummary
from tests.conftest import png
from tests.spark.conftest import BAD, GOOD, THRESHOLD, Run, Tables, image_id, write_files, write_images

FILTERED = ("safe_images", "flagged_images", "quarantined_images")
NEW = {"new.png": png(seed=20), "new/empty.png": b""}
OTHER_INPUT = {"plain.png": png(seed=21), "deep/photo.png": png(seed=22)}


@dataclass
class Chapter:
    """The tables after one of several runs into one output."""

    summary: RunSummary
    rows: dict[str, dict[str, Row]]
    """By table and image_id."""
    runs: list[Row]
    operations: dict[str, list[str]]


@dataclass
class Story:
    """Runs into one output: all files, nothing new, two new files, another input."""

    folder: Path
    other_folder: Path
    chapters: list[Chapter]


@pytest.fixture(scope="module")
def story(spark: SparkSession, run: Run, tmp_path_factory: pytest.TempPathFactory) -> Story:
    folder = write_images(tmp_path_factory.mktemp("story") / "images")
    other_folder = write_files(folder.with_name("other"), OTHER_INPUT)
    output = folder.with_name("out")
    tables, chapters = Tables(spark, output), []
    for number in range(4):
        if number == 2:
            write_files(folder, NEW)
        summary = run(other_folder if number == 3 else folder, output)
        names = ("image_scores", *FILTERED)
        chapters.append(
            Chapter(
                summary,
                {name: tables.rows(name) for name in names},
                tables.frame("runs").orderBy("run_id").collect(),
                {name: tables.operations(name) for name in names},
            )
        )
    return Story(folder, other_folder, chapters)


def test_each_file_is_one_row_whatever_its_name(story: Story) -> None:
    first = story.chapters[0]
    assert set(first.rows["image_scores"]) == {image_id(story.folder / name) for name in (*GOOD, *BAD)}
    assert first.summary.counts.images == len(GOOD) + len(BAD) == first.summary.totals["image_scores"]


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_quarantined_with_the_reason(story: Story, name: str) -> None:
    content, status, word = BAD[name]
    row = story.chapters[0].rows["quarantined_images"][image_id(story.folder / name)]
    assert (row.status, row.nsfw_score, row.embedding, row.length) == (status, None, None, len(content))
    assert word in row.error
    assert row.error.isprintable()


def test_the_scores_are_those_of_the_scorer_without_spark(story: Story, card_file: str) -> None:
    expected = nsfw_spark.load_scorer(card_file).score(list(GOOD.values()))
    for name, score in zip(GOOD, expected, strict=True):
        row = story.chapters[0].rows["image_scores"][image_id(story.folder / name)]
        # In batches of another size, sums differ in their last bits.
        assert row.nsfw_score == pytest.approx(score.nsfw_score, rel=1e-4)
        assert (row.content_sha256, row.width, row.height) == (score.content_sha256, 60, 40)


def test_each_image_is_in_exactly_one_of_the_filtered_tables(story: Story) -> None:
    for chapter in story.chapters:
        safe, flagged, quarantined = (set(chapter.rows[name]) for name in FILTERED)
        assert safe | flagged | quarantined == set(chapter.rows["image_scores"])
        assert len(safe) + len(flagged) + len(quarantined) == len(chapter.rows["image_scores"])
        assert safe
        assert flagged
        assert all(row.nsfw_score < THRESHOLD for row in chapter.rows["safe_images"].values())
        assert all(row.nsfw_score >= THRESHOLD for row in chapter.rows["flagged_images"].values())


def test_the_summary_and_the_row_of_runs_say_the_same(story: Story) -> None:
    chapter = story.chapters[0]
    (row,) = chapter.runs
    assert row.asDict().keys() == set(schema.RUNS.names)
    keys = ("images", "ok", "safe", "flagged", "quarantined")
    counted = {key: chapter.summary.as_dict()[key] for key in keys}
    assert {key: row[key] for key in keys} == counted
    assert counted["ok"] == len(GOOD)
    rows = {name.partition("_")[0]: len(chapter.rows[name]) for name in FILTERED}
    assert rows.items() <= counted.items()
    assert {row.run_id} == {image.run_id for image in chapter.rows["image_scores"].values()}
    assert row.versions["nsfw-spark"]


def test_score_has_no_policy_and_so_neither_safe_nor_flagged_images(
    spark: SparkSession, score: Run, images: Path, tmp_path: Path
) -> None:
    summary = score(images, tmp_path / "out").as_dict()
    (row,) = Tables(spark, tmp_path / "out").frame("runs").collect()
    for counts in (summary, row.asDict()):
        assert (counts["ok"], counts["quarantined"]) == (len(GOOD), len(BAD))
        assert (counts["safe"], counts["flagged"]) == (None, None)
    assert (row.command, row.outcome, row.threshold, row.policy) == ("score", "done", None, None)


def test_a_run_with_nothing_new_adds_nothing(story: Story) -> None:
    first, second = story.chapters[:2]
    assert second.summary.counts.images == 0
    assert second.rows == first.rows
    assert second.operations == first.operations
    assert [row.images for row in second.runs] == [len(GOOD) + len(BAD), 0]


def test_a_later_run_scores_only_the_new_files(story: Story) -> None:
    second, third = story.chapters[1:3]
    new = third.rows["image_scores"].keys() - second.rows["image_scores"].keys()
    assert new == {image_id(story.folder / name) for name in NEW}
    assert third.summary.counts.images == len(NEW)
    assert all(third.rows["image_scores"][key] == row for key, row in second.rows["image_scores"].items())


def test_the_filtered_tables_follow_by_appending(story: Story) -> None:
    second, third = story.chapters[1:3]
    grown = [name for name in FILTERED if len(third.rows[name]) > len(second.rows[name])]
    assert "quarantined_images" in grown
    assert len(grown) == 2
    for name in FILTERED:  # one that has nothing to add says so in an empty commit
        assert third.operations[name][len(second.operations[name]) :] == ["WRITE"]


def test_an_output_can_have_several_inputs(story: Story) -> None:
    third, fourth = story.chapters[2:]
    new = fourth.rows["image_scores"].keys() - third.rows["image_scores"].keys()
    assert new == {image_id(story.other_folder / name) for name in OTHER_INPUT}
    assert [row.input for row in fourth.runs][-1] == image_id(story.other_folder)


def test_a_file_that_is_gone_when_it_is_to_be_read_is_missing(run: Run, tables: Tables, output: Path) -> None:
    """The state is that of a run killed before it gave the vanished file its row."""
    images = Path(tables.frame("runs").first().input.removeprefix("file:"))
    gone = image_id(images / "plain.png")
    copy = shutil.copytree(images, output.with_name("kept"))
    tables.delta("image_scores").delete(F.col("image_id") == gone)
    tables.delta("runs").delete()
    (images / "plain.png").unlink()
    try:
        summary = run(images, output)
    finally:
        shutil.copy(copy / "plain.png", images / "plain.png")
    assert summary.counts.images == summary.counts.quarantined == 1
    row = tables.rows("image_scores")[gone]
    assert (row.status, row.nsfw_score) == ("missing", None)
    assert "gone" in row.error
    assert gone in tables.rows("quarantined_images")
    assert gone not in {**tables.rows("safe_images"), **tables.rows("flagged_images")}


def test_a_run_with_another_model_is_refused_before_it_writes(
    run: Run, images: Path, output: Path, tables: Tables, other_card_file: str
) -> None:
    fingerprint = next(iter(tables.rows("image_scores").values())).model_fingerprint
    before = sorted(output.rglob("*"))
    with pytest.raises(TableError, match=f"(?s)sampled.*{fingerprint}.*other.*fingerprint [0-9a-f]{{16}}"):
        run(images, output, model=other_card_file)
    assert sorted(output.rglob("*")) == before


def test_a_lost_checkpoint_is_refused_and_not_scored_again(run: Run, images: Path, output: Path) -> None:
    shutil.rmtree(output / "_checkpoints")
    before = sorted(output.rglob("*.json"))
    with pytest.raises(TableError, match="scored twice"):
        run(images, output)
    assert sorted(output.rglob("*.json")) == before


def test_a_glob_selects_files_and_keep_content_keeps_their_bytes(
    spark: SparkSession, run: Run, images: Path, tmp_path: Path
) -> None:
    run(images, tmp_path / "out", glob="*.{jpg,pdf}", keep_content=True)
    contents = {**GOOD, **{name: content for name, (content, _, _) in BAD.items()}}
    selected = {name: content for name, content in contents.items() if name.endswith((".jpg", ".pdf"))}
    tables = Tables(spark, tmp_path / "out")
    rows = tables.rows("image_scores")
    assert set(rows) == {image_id(images / name) for name in selected}
    kept = {key: row.content for key, row in rows.items() if row.length}
    assert kept == {image_id(images / name): content for name, content in selected.items() if content}
    assert "content" in tables.frame("safe_images").columns


def test_an_output_can_be_a_catalog_schema(spark: SparkSession, run: Run, tmp_path: Path) -> None:
    folder = write_files(tmp_path / "images", {"a.png": png(seed=1), "empty.png": b""})
    spark.sql(f"CREATE SCHEMA spark_catalog.safety LOCATION '{tmp_path / 'schema'}'")
    try:
        for expected in (2, 0):
            summary = run(folder, "spark_catalog.safety", checkpoints=str(tmp_path / "checkpoints"))
            assert summary.counts.images == expected
        assert spark.table("spark_catalog.safety.image_scores").count() == 2
        assert spark.table("safety.quarantined_images").first().image_id == image_id(folder / "empty.png")
        assert spark.table("safety.runs").count() == 2
    finally:
        spark.sql("DROP SCHEMA spark_catalog.safety CASCADE")


def test_two_runs_at_once_can_share_a_session(run: Run, images: Path, tmp_path: Path) -> None:
    outputs = [tmp_path / "a", tmp_path / "b"]
    with ThreadPoolExecutor(len(outputs)) as threads:
        summaries = list(threads.map(lambda output: run(images, output), outputs))
    assert [summary.counts.images for summary in summaries] == [len({**GOOD, **BAD})] * len(outputs)


def test_a_schema_that_is_not_there_is_refused(run: Run, images: Path, tmp_path: Path) -> None:
    with pytest.raises(TableError, match="there is no schema"):
        run(images, "spark_catalog.nowhere", checkpoints=str(tmp_path))


@pytest.mark.parametrize("table", ["image_scores", *FILTERED, "runs"])
def test_the_columns_say_what_they_mean(spark: SparkSession, scored: Path, table: str) -> None:
    expected = schema.RUNS if table == "runs" else schema.image_scores(ImageFiles.columns, keep_content=False)
    found = Tables(spark, scored).frame(table).schema
    assert {field.name: field.dataType for field in found} == {f.name: f.dataType for f in expected}
    comments = {field.name: field.metadata.get("comment") for field in found}
    assert comments == {field.name: field.metadata["comment"] for field in expected}


def test_random_weights_are_refused_unless_allowed(run: Run, images: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="random weights"):
        run(images, tmp_path / "out", allow_random_weights=False)
    assert not (tmp_path / "out").exists()


def test_content_can_be_asked_for_later(run: Run, tables: Tables, output: Path) -> None:
    folder = write_files(output.with_name("more"), {"late.png": png(seed=30)})
    run(folder, output, keep_content=True)
    contents = {key: row.content for key, row in tables.rows("image_scores").items()}
    assert contents.pop(image_id(folder / "late.png")) == png(seed=30)
    assert set(contents.values()) == {None}


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        (".", {"glob": "*.gif"}, "no file that matches"),
        ("empty folder", {}, "no file"),
        ("nowhere", {}, "cannot be read"),
    ],
)
def test_an_input_without_images_is_refused(
    run: Run, tmp_path: Path, name: str, options: dict[str, Any], said: str
) -> None:
    folder = write_files(tmp_path / "images", {"plain.png": png()})
    (folder / "empty folder").mkdir()
    with pytest.raises(InputError, match=said):
        run(folder / name, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_an_input_can_be_one_file(run: Run, tmp_path: Path) -> None:
    folder = write_files(tmp_path / "images", {"plain.png": png(), "other.png": png()})
    assert run(folder / "plain.png", tmp_path / "out").totals["image_scores"] == 1


@pytest.mark.parametrize("occupied", ["image_scores", "runs"])
def test_an_output_with_other_things_is_refused(
    run: Run, images: Path, tmp_path: Path, occupied: str
) -> None:
    write_files(tmp_path / "out" / occupied, {"notes.txt": b"mine"})
    with pytest.raises(TableError, match="not a Delta table"):
        run(images, tmp_path / "out")
