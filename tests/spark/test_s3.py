"""A real S3 client and a server that fails: images, tars, Parquet files, tables and checkpoints on it."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from itertools import count
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from nsfw_spark.errors import InputError, TableError
from tests.conftest import png
from tests.s3 import FORBIDDEN, GONE, PYTHON, READS, Fault, S3Server
from tests.spark.conftest import Run, Tables
from tests.spark.test_sources import samples, tar

FILES: Final = {f"{i:02}.png": png(seed=i) for i in range(24)}
FILTERED: Final = ("safe_images", "flagged_images", "quarantined_images")
_NUMBERS: Final = count()
QUICK: Final = {
    # Python workers wait 1 + 2 s for a store that is down, not a minute.
    "fs.s3a.retry.limit": "3",
    "fs.s3a.retry.interval": "50ms",
    "fs.s3a.retry.throttle.interval": "50ms",
    "fs.s3a.attempts.maximum": "2",
}


@pytest.fixture(scope="module")
def server(spark: SparkSession) -> Iterator[S3Server]:
    """The server that the session's S3A reaches."""
    hadoop = spark._jsc.hadoopConfiguration()
    with S3Server() as server:
        settings = {**server.settings, **QUICK}
        for name, value in settings.items():
            hadoop.set(name, value)
        yield server
        for name in settings:
            hadoop.unset(name)


@pytest.fixture
def store(server: S3Server) -> Iterator[S3Server]:
    """The server; its faults end with the test."""
    server.asked.clear()
    yield server
    server.faults = []


@pytest.fixture
def uri(server: S3Server) -> str:
    """The URI of an empty bucket."""
    return server.put(f"s3a://bucket-{next(_NUMBERS)}", {})


def content(spark: SparkSession, output: str) -> dict[str, Any]:
    """Return image_scores by the last part of image_id; each row must be in one filtered table."""
    tables = Tables(spark, output)
    scores = tables.rows("image_scores")
    filtered = [image_id for table in FILTERED for image_id in tables.rows(table)]
    assert sorted(filtered) == sorted(scores)
    return {image_id.rpartition("/")[2]: row for image_id, row in scores.items()}


def unscored(rows: dict[str, Any]) -> dict[str, str]:
    return {name: row.status for name, row in rows.items() if row.status != "ok"}


def test_an_object_that_nobody_gets_is_one_row_until_it_is_allowed(
    spark: SparkSession, run: Run, store: S3Server, uri: str
) -> None:
    source, output = store.put(f"{uri}/photos", FILES), f"{uri}/out"
    faults = [
        Fault(FORBIDDEN, keys="07.png", operations=("GET",)),
        Fault(FORBIDDEN, keys="08.png", operations=READS),  # Spark's own listing job fails too
        Fault(GONE, keys="09.png", operations=READS),
        Fault(FORBIDDEN, keys="later.png", operations=("GET",)),
    ]
    store.faults = faults
    counts = run(source, output).counts
    assert (counts.images, counts.ok, counts.files_lost) == (len(FILES), len(FILES) - 3, 0)
    rows = content(spark, output)
    assert unscored(rows) == dict.fromkeys(("07.png", "08.png", "09.png"), "missing")
    assert all("the file was listed and" in rows[name].error for name in unscored(rows))
    store.put(source, {"new.png": png(seed=100), "later.png": png(seed=101)})
    counts = run(source, output).counts
    assert (counts.images, counts.ok) == (2, 1)
    assert run(source, output, rescore="changed").counts.ok == 0
    store.faults = []
    assert run(source, output, rescore="changed").counts.ok == len(faults)
    rows = content(spark, output)
    assert rows.keys() == {*FILES, "new.png", "later.png"}
    assert not unscored(rows)


def test_an_input_that_no_executor_can_open_is_refused_before_a_file_is_seen(
    run: Run, store: S3Server, uri: str
) -> None:
    source, output = store.put(f"{uri}/photos", {f"{i}.png": png(seed=i) for i in range(4)}), f"{uri}/out"
    store.faults = [Fault(FORBIDDEN, keys="photos/", operations=READS, client=PYTHON)]
    with pytest.raises(InputError, match=r"none of 4 that it tried. The first, s3a://.*ACCESS_DENIED"):
        run(source, output)
    store.faults = []
    assert run(source, output).counts.ok == 4


def parquet(first: int, num: int) -> bytes:
    """Return a Parquet file of three row groups."""
    images = [png(300, 200, seed=seed) for seed in range(first, first + num)]
    buffer = BytesIO()
    pq.write_table(pa.table({"image": images}), buffer, row_group_size=-(-num // 3))
    return buffer.getvalue()


NUM: Final = 12
ARCHIVES: Final = {
    "webdataset": {f"{i}.tar": tar(samples(NUM * i, NUM)) for i in range(4)},
    "parquet": {f"{i}.parquet": parquet(NUM * i, NUM) for i in range(3)},
}


@pytest.mark.parametrize("format_", ARCHIVES)
def test_what_a_store_fails_to_give_of_archives_is_all_there_after_the_next_run(
    spark: SparkSession, run: Run, store: S3Server, uri: str, format_: str
) -> None:
    files = ARCHIVES[format_]
    source, output = store.put(f"{uri}/archives", files), f"{uri}/out"
    half = len(next(iter(files.values()))) // 2
    store.faults = [
        Fault(None, keys=r"/1\.\w+$", operations=("GET",), client=PYTHON, cut_at=half),
        Fault(keys=r"/2\.\w+$", operations=READS, client=PYTHON, after=1),
    ]
    first = run(source, output).counts
    assert 0 < first.files_lost == len(unscored(content(spark, output)))
    assert NUM <= first.ok < NUM * len(files)
    store.faults = []
    assert run(source, output).counts.files_lost == 0
    rows = content(spark, output)
    assert len(rows) == NUM * len(files)
    assert not unscored(rows)


def test_a_bucket_is_an_input_like_a_directory(
    spark: SparkSession, run: Run, store: S3Server, uri: str
) -> None:
    source, output = store.put(uri, FILES), store.put(f"{uri}-2", {})
    assert run(f"{source}/", f"{output}/out").counts.images == len(FILES)
    assert run(f"{source}/", f"{output}/out", rescore="changed", prune=True).counts.images == 0
    for name in store.names(f"{output}/out/_checkpoints"):
        store.delete(f"{output}/out/_checkpoints", name)
    with pytest.raises(TableError, match="all would be scored twice"):
        run(f"{source}/", f"{output}/out")
    assert content(spark, f"{output}/out").keys() == FILES.keys()


def test_after_optimize_and_vacuum_the_filtered_tables_are_replaced(
    spark: SparkSession, run: Run, score: Run, filter_: Run, store: S3Server, uri: str
) -> None:
    """VACUUM on S3 leaves no commit, so only the missing files tell."""
    source, output = store.put(f"{uri}/photos", dict(list(FILES.items())[:8])), f"{uri}/out"
    run(source, output)
    store.put(source, {"new.png": png(seed=100)})
    score(source, output)
    check = "spark.databricks.delta.retentionDurationCheck.enabled"
    spark.conf.set(check, "false")
    spark.sql(f"OPTIMIZE delta.`{output}/image_scores`")
    spark.sql(f"VACUUM delta.`{output}/image_scores` RETAIN 0 HOURS")
    spark.conf.unset(check)
    assert filter_(output, 0.002).totals["image_scores"] == 9
    assert len(content(spark, output)) == 9


def test_of_a_store_that_fails_now_and_then_all_good_images_are_scored(
    spark: SparkSession, run: Run, store: S3Server, uri: str
) -> None:
    files = {**FILES, "text.png": b"Only its name says so."}
    source, output = store.put(f"{uri}/photos", files), f"{uri}/out"
    store.faults = [Fault(share=0.05), Fault(None, operations=("GET",), share=0.05)]
    counts = run(source, output).counts
    assert (counts.images, counts.files_lost) == (len(FILES) + 1, 0)
    assert unscored(content(spark, output)) == {"text.png": "undecodable"}
    assert store.asked["GET", "503 SlowDown"]
    assert store.asked["GET", "cut"]
