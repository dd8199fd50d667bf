"""A store that fails: files that it returns in the end are scored, others become a row or an error."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest
from pyspark.sql import Row, SparkSession

from nsfw_spark.errors import StorageError
from tests.conftest import png
from tests.spark.conftest import Run, Tables, write_files
from tests.webhdfs import Fault, FaultyStore

FILES: Final = {f"{i:02}.png": png(seed=i) for i in range(8)} | {"deep/er.png": png(seed=8), "empty.png": b""}
HUGE: Final = 3 << 30
"""Bytes, more than Spark reads as one file."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_files(tmp_path_factory.mktemp("store"), FILES)


def by_name(store: FaultyStore, rows: dict[str, Row]) -> dict[str, Row]:
    return {image_id.removeprefix(f"{store.uri}/"): row for image_id, row in rows.items()}


def test_a_file_that_a_store_gives_out_after_some_tries_is_scored(
    spark: SparkSession, score: Run, folder: Path, tmp_path: Path
) -> None:
    with FaultyStore(folder, {"00.png": Fault(503, times=2)}) as store:
        assert score(store.uri, tmp_path / "out").counts.ok == len(FILES) - 1
        assert store.asked["OPEN", "00.png"] == 3
        rows = by_name(store, Tables(spark, tmp_path / "out").rows("image_scores"))
    assert {name for name, row in rows.items() if row.status != "ok"} == {"empty.png"}


def test_each_file_of_a_failing_store_is_one_row(
    spark: SparkSession, score: Run, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    faults = {
        "01.png": Fault(500),
        "02.png": Fault(404),  # listed, and gone when it is opened
        "03.png": Fault(None),
    }
    output = tmp_path / "out"
    with FaultyStore(folder, faults, {"04.png": HUGE}) as store:
        summary = score(store.uri, output)
        rows = by_name(store, Tables(spark, output).rows("image_scores"))
        assert store.asked["OPEN", "04.png"] == 0
        assert set(rows) == set(FILES)
        assert summary.counts.images == len(FILES)
        said = capsys.readouterr().err
        assert "going on without the files that cannot be read" in said
        assert summary.counts.files_lost == 2
        # The next runs try again what the store failed to give, three times at most.
        assert score(store.uri, output).counts.files_lost == 2
        said = [row.error for row in Tables(spark, output).rows("image_scores").values()]
        assert sum("storage failed twice: " in str(error) for error in said) == 2
        store.faults = {"02.png": faults["02.png"]}
        assert score(store.uri, output).counts.ok == 2
        assert score(store.uri, output).counts.images == 0
        store.faults = {}
        assert score(store.uri, output, rescore="changed").counts.images == 1
        again = by_name(store, Tables(spark, output).rows("image_scores"))
    bad = {name: row.status for name, row in rows.items() if row.status != "ok"}
    unread = {"01.png": "could not be read", "02.png": "was gone", "03.png": "could not be read"}
    assert bad == dict.fromkeys(unread, "missing") | {"04.png": "too_large", "empty.png": "undecodable"}
    assert all(said in rows[name].error and rows[name].length is None for name, said in unread.items())
    assert f"{HUGE} bytes, more than max_bytes = 100000000 (--max-bytes)" in rows["04.png"].error
    assert {name for name, row in again.items() if row.status != "ok"} == {"04.png", "empty.png"}


def test_what_cannot_be_listed_ends_the_run_and_the_next_is_complete(
    spark: SparkSession, score: Run, folder: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    faults = {"": Fault(500, operation="LISTSTATUS"), "deep": Fault(403, operation="LISTSTATUS")}
    with FaultyStore(folder, {}) as store:
        for name, fault in faults.items():
            store.faults = {name: fault}
            with pytest.raises(StorageError) as error:
                score(store.uri, output)
            assert f"the store answers {fault.status} for /images/{name}" in str(error.value)
            assert "the same command does the rest" in str(error.value)
        assert "permission denied: " in str(error.value)
        store.faults = {}
        score(store.uri, output)
        assert set(by_name(store, Tables(spark, output).rows("image_scores"))) == set(FILES)


@pytest.mark.parametrize("operation", ["OPEN", pytest.param("GETFILESTATUS", marks=pytest.mark.long)])
def test_a_forbidden_file_costs_its_own_row(
    spark: SparkSession, score: Run, folder: Path, tmp_path: Path, operation: str
) -> None:
    """Spark skips no file that Hadoop's client calls forbidden, neither when it lists nor when it reads."""
    output = tmp_path / "out"
    with FaultyStore(folder, {"05.png": Fault(403, operation=operation)}) as store:
        counts = score(store.uri, output).counts
        assert (counts.images, counts.ok, counts.files_lost) == (len(FILES), len(FILES) - 2, 0)
        row = by_name(store, Tables(spark, output).rows("image_scores"))["05.png"]
        assert (row.status, "the store answers 403 for /images/05.png" in row.error) == ("missing", True)
        assert score(store.uri, output).counts.images == 0
        store.faults = {}
        assert score(store.uri, output, rescore="changed").counts.ok == 1
        rows = by_name(store, Tables(spark, output).rows("image_scores"))
    assert {name for name, row in rows.items() if row.status != "ok"} == {"empty.png"}


def test_unreadable_files_in_several_micro_batches_cost_their_own_rows(
    spark: SparkSession, score: Run, folder: Path, tmp_path: Path
) -> None:
    """The job writes such a micro-batch in Spark's place, and Spark goes on after it."""
    output = tmp_path / "out"
    with FaultyStore(folder, {"05.png": Fault(500), "07.png": Fault(500)}) as store:
        counts = score(store.uri, output, files_per_batch=2).counts
        assert (counts.images, counts.ok, counts.files_lost) == (len(FILES), len(FILES) - 3, 2)
        store.faults = {}
        assert score(store.uri, output).counts.ok == 2
        assert score(store.uri, output).counts.images == 0
        rows = by_name(store, Tables(spark, output).rows("image_scores"))
        assert {name for name, row in rows.items() if row.status != "ok"} == {"empty.png"}
        assert set(rows) == set(FILES)
