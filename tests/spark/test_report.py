"""What a report says of the tables: Spark's own counts, a sample, and thumbnails or why there are none."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pyspark.sql import functions as F

from nsfw_spark.errors import ConfigError, TableError
from nsfw_spark.options import job_options
from nsfw_spark.review.report import EDGES, Report
from nsfw_spark.spark.report import ReportView, pictured, report_job
from tests.browser.conftest import OpenPage, browser, open_page  # noqa: F401 - fixtures
from tests.conftest import jpeg, png
from tests.spark.conftest import BAD, GOOD, THRESHOLD, Run, Tables, image_id, write_files
from tests.spark.test_content import write_parquet, write_tar

FEW = {"a.png": png(seed=21), "b.jpg": jpeg(seed=22), "c.png": png(seed=23)}


def report_on(output: Path, options: dict[str, Any] | None = None, **view: Any) -> Report:  # noqa: ANN401
    return report_job(job_options({"output": str(output), **(options or {})}), ReportView(**view))


def pictures(report: Report) -> dict[str, tuple[int, int]]:
    """Return the size of each thumbnail by image_id."""
    return {
        example.image_id: Image.open(io.BytesIO(example.thumbnail)).size
        for example in report.examples
        if example.thumbnail is not None
    }


def add_scores(tables: Tables, scores: list[float]) -> None:
    """Append rows with these scores, as copies of one row."""
    row = tables.frame("image_scores").filter("status = 'ok'").limit(1).drop("nsfw_score", "image_id")
    given = [(f"file:/many/{i}.jpg", score) for i, score in enumerate(scores)]
    many = row.sparkSession.createDataFrame(given, "image_id string, nsfw_score double")
    many = many.withColumn("nsfw_score", F.col("nsfw_score").cast("float")).crossJoin(row)
    place = str(tables.delta("image_scores").detail().first().location)
    many.write.format("delta").mode("append").save(place)


def test_a_report_shows_every_image_of_a_small_table(scored: Path, images: Path) -> None:
    report = report_on(scored)
    ok = {image_id(images / name) for name in GOOD}
    assert report.title == str(scored)
    assert report.statuses == {"ok": len(GOOD), "undecodable": 4, "unsupported": 1}
    assert {example.image_id for example in report.examples} == ok
    assert pictures(report).keys() == ok
    assert report.num_scored == len(GOOD)
    assert report.threshold == THRESHOLD
    assert report.facts["model"] == "sampled"
    assert report.facts["policy of the last run"] == f"nsfw_score < {THRESHOLD}f"
    assert report.facts["input"] == f"file:{images}"
    (run,) = report.runs
    assert (run.command, run.outcome, run.images, run.unscored) == ("run", "done", 15, 5)
    assert sum(run.histogram) == len(GOOD)
    assert abs((run.started_at - report.made_at).total_seconds()) < 3600


def test_images_without_a_score_are_grouped_by_reason_with_examples(scored: Path, images: Path) -> None:
    reasons = report_on(scored).reasons
    assert sum(reason.images for reason in reasons) == len(BAD)
    shown = {example.image_id: example.error for reason in reasons for example in reason.examples}
    for name, (_, status, word) in BAD.items():
        assert word in str(shown[image_id(images / name)])
        assert status in {reason.status for reason in reasons}
    empty = next(reason for reason in reasons if "empty" in reason.reason)
    assert (empty.images, empty.reason) == (2, "the file is empty (N bytes)")


def test_the_counts_below_each_threshold_are_sparks_own(output: Path, tables: Tables) -> None:
    edges = np.float32(EDGES[:: len(EDGES) // 100])
    rounding = np.random.default_rng(1).random(500, np.float32)
    above, below = np.nextafter(edges, np.float32(2)), np.nextafter(edges, np.float32(-1))
    scores = np.clip(np.concatenate([edges, above, below, rounding]), 0, 1)
    add_scores(tables, [float(score) for score in scores])
    report = report_on(output, examples=30)
    thresholds = [i / 20 for i in range(21)] + [0.001, 0.123, 0.333, 0.7, 0.999]
    counts = [F.count(F.when(F.expr(f"nsfw_score < {each!r}f"), 1)) for each in thresholds]
    expected = list(tables.frame("image_scores").filter("status = 'ok'").agg(*counts).first())
    assert [report.num_below(each) for each in thresholds] == expected


@pytest.mark.browser
def test_the_page_shows_sparks_own_counts_at_twenty_positions(
    output: Path,
    tables: Tables,
    open_page: OpenPage,  # noqa: F811 - the fixture
) -> None:
    from tests.browser.test_page import counts

    add_scores(tables, [float(score) for score in np.random.default_rng(2).beta(0.5, 1, 5000)])
    page = open_page(report_on(output, examples=30))
    page.fill("#high-number", "1")
    places = [round(0.05 * i + 0.003, 3) for i in range(20)]
    below = [F.count(F.when(F.expr(f"nsfw_score < {place}f"), 1)) for place in places]
    scored = tables.frame("image_scores").filter("status = 'ok'")
    expected = list(scored.agg(*below).first())
    shown = []
    for place in places:
        page.fill("#low-number", f"{place:.3f}")
        shown.append(counts(page)[0])
    assert shown == expected
    assert len(set(shown)) == 20


def test_examples_are_the_nearest_to_the_threshold_and_some_of_each_band(
    output: Path, tables: Tables
) -> None:
    add_scores(tables, [i / 2000 for i in range(2000)])
    report = report_on(output, examples=60, threshold=0.7)
    scores = [float(example.score or 0) for example in report.examples]
    assert len(report.examples) == len({example.image_id for example in report.examples}) == 60
    assert sum(abs(score - 0.7) < 0.04 for score in scores) >= 30
    assert {int(score * 10) for score in scores} == set(range(10))
    again = report_on(output, examples=60, threshold=0.7)
    assert [each.image_id for each in again.examples] == [each.image_id for each in report.examples]
    other = report_on(output, examples=60, threshold=0.7, seed=1)
    assert [each.image_id for each in other.examples] != [each.image_id for each in report.examples]


def test_one_single_score_and_no_scores_are_reports(output: Path, tables: Tables) -> None:
    add_scores(tables, [0.25] * 300)
    tables.delta("image_scores").delete("nsfw_score <> 0.25f")
    report = report_on(output, examples=40)
    assert report.bins == {250: 300}
    assert len(report.examples) == 40
    tables.delta("image_scores").delete("status = 'ok'")
    report = report_on(output)
    assert (report.num_scored, report.examples, len(report.reasons) > 0) == (0, [], True)


def test_a_table_without_rows_is_a_report(output: Path, tables: Tables) -> None:
    tables.delta("image_scores").delete()
    report = report_on(output)
    assert (report.statuses, report.bins, report.examples, report.reasons) == ({}, {}, [], [])


def test_images_that_are_gone_or_changed_have_a_placeholder(run: Run, tmp_path: Path) -> None:
    images = write_files(tmp_path / "images", FEW)
    run(images, tmp_path / "out")
    (images / "a.png").unlink()
    (images / "b.jpg").write_bytes(jpeg(seed=99))
    report = report_on(tmp_path / "out")
    found = {Path(example.image_id).name: example for example in report.examples}
    assert pictures(report).keys() == {image_id(images / "c.png")}
    for name in ("a.png", "b.jpg"):
        assert found[name].thumbnail is None
        assert "not where it was scored" in str(found[name].missing)
    shutil.rmtree(images)
    report = report_on(tmp_path / "out")
    assert pictures(report) == {}
    assert any("does not exist" in note for note in report.notes)


@pytest.mark.parametrize("kind", ["webdataset", "parquet", "kept"])
def test_thumbnails_come_from_wherever_the_images_lie(kind: str, run: Run, tmp_path: Path) -> None:
    source = tmp_path / "images"
    if kind == "webdataset":
        write_tar(source / "one.tar", FEW)
    elif kind == "parquet":
        write_parquet(source / "one.parquet", FEW)
    else:
        write_files(source, FEW)
    run(source, tmp_path / "out", keep_content=kind == "kept")
    if kind == "kept":
        shutil.rmtree(source)
    report = report_on(tmp_path / "out")
    assert len(pictures(report)) == len(FEW)
    assert not report.notes


def test_counts_break_down_by_columns_host_and_directory(scored: Path, images: Path) -> None:
    groups = report_on(scored, by=("format", "Status", "directory", "host")).groups
    formats = {group.value: (sum(group.bins.values()), group.unscored) for group in groups["format"]}
    assert formats["PNG"] == (9, 0)
    assert formats["(none)"] == (0, 5)
    assert {group.value: group.unscored for group in groups["Status"]}["undecodable"] == 4
    assert image_id(images / "deep/er") in {group.value for group in groups["directory"]}
    for name in groups:
        counted = sum(sum(group.bins.values()) + group.unscored for group in groups[name])
        assert counted == len(GOOD) + len(BAD)


def test_the_rarest_values_are_counted_together(output: Path, tables: Tables) -> None:
    add_scores(tables, [i / 50 for i in range(50)])
    groups = report_on(output, by=("image_id",)).groups["image_id"]
    assert len(groups) == 21
    assert groups[-1].value == "(other)"
    assert sum(sum(group.bins.values()) + group.unscored for group in groups) == 65


def test_an_unknown_column_names_those_that_there_are(scored: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"there is no column hots; expected one of image_id.*host, directory"
    ):
        report_on(scored, by=("hots",))


@pytest.mark.usefixtures("spark")
def test_without_tables_the_error_says_how_to_make_them(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"to report on\. First: nsfw-spark run INPUT"):
        report_on(tmp_path / "none")


def test_a_run_names_the_highest_and_the_nearest_scores(run: Run, images: Path, tmp_path: Path) -> None:
    summary = run(images, tmp_path / "out")
    shown = report_on(tmp_path / "out").examples
    scores = sorted(((each.image_id, each.score or 0.0) for each in shown), key=lambda each: -each[1])
    assert [(name, round(score, 6)) for name, score in summary.highest] == scores[:3]
    nearest = sorted(scores, key=lambda each: abs(each[1] - THRESHOLD))
    assert [(name, round(score, 6)) for name, score in summary.nearest] == nearest[:3]
    assert len(summary.unscored) == 3
    given = job_options({"output": str(tmp_path / "out")})
    seen = pictured(summary, given)
    assert seen.thumbnails.keys() == {name for name, _ in summary.highest}
    assert sum(seen.histogram) == len(GOOD)
    again = run(images, tmp_path / "out")
    assert (again.highest, again.nearest, again.unscored) == ([], [], [])
