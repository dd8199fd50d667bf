"""A real S3 client and a server that fails: images, tars, Parquet files, tables and checkpoints on it."""

from __future__ import annotations

import random
import re
import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from io import BytesIO
from itertools import count
from pathlib import Path
from time import sleep
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from nsfw_spark.errors import InputError, StorageError, TableError
from nsfw_spark.spark import pipeline
from nsfw_spark.spark.progress import Counts
from tests.conftest import png
from tests.s3 import FORBIDDEN, GONE, PYTHON, READS, SPARK, Fault, S3Server
from tests.spark.conftest import THRESHOLD, Run, Tables
from tests.spark.test_sources import samples, tar

FILES: Final = {f"{i:02}.png": png(seed=i) for i in range(24)}
FILTERED: Final = ("safe_images", "flagged_images", "quarantined_images")
ROUNDS: Final = 20
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


def compact(spark: SparkSession, output: str) -> None:
    """Gather the rows of image_scores into one file, and delete the files that held them."""
    check = "spark.databricks.delta.retentionDurationCheck.enabled"
    spark.conf.set(check, "false")
    spark.sql(f"OPTIMIZE delta.`{output}/image_scores`")
    spark.sql(f"VACUUM delta.`{output}/image_scores` RETAIN 0 HOURS")
    spark.conf.unset(check)


def test_after_optimize_and_vacuum_the_filtered_tables_are_replaced(
    spark: SparkSession, run: Run, score: Run, filter_: Run, store: S3Server, uri: str
) -> None:
    """VACUUM on S3 leaves no commit, so only the missing files tell."""
    source, output = store.put(f"{uri}/photos", dict(list(FILES.items())[:8])), f"{uri}/out"
    run(source, output)
    store.put(source, {"new.png": png(seed=100)})
    score(source, output)
    compact(spark, output)
    assert filter_(output, 0.002).totals["image_scores"] == 9
    assert len(content(spark, output)) == 9


def test_of_a_store_that_fails_now_and_then_all_good_images_are_scored(
    spark: SparkSession, run: Run, store: S3Server, uri: str
) -> None:
    files = {**FILES, "text.png": b"Only its name says so."}
    source, output = store.put(f"{uri}/photos", files), f"{uri}/out"
    store.faults = [Fault(share=0.05), Fault(None, keys="/photos/", operations=("GET",), share=0.05)]
    counts = run(source, output).counts
    assert (counts.images, counts.files_lost) == (len(FILES) + 1, 0)
    assert unscored(content(spark, output)) == {"text.png": "undecodable"}
    assert store.asked["GET", "503 SlowDown"]
    assert store.asked["GET", "cut"]


def test_a_file_of_sparks_own_that_the_store_never_gives_in_full_ends_the_run_in_words(
    run: Run, store: S3Server, uri: str
) -> None:
    source, output = store.put(f"{uri}/photos", {"a.png": png(seed=1)}), f"{uri}/out"
    assert run(source, output).counts.ok == 1
    store.put(source, {"b.png": png(seed=2)})
    store.faults = [Fault(None, keys="/offsets/", operations=("GET",), client=SPARK)]
    with pytest.raises(
        StorageError, match=r"^reading or writing failed: .*and the same command does the rest"
    ):
        run(source, output)
    assert store.asked["GET", "cut"]
    store.faults = []
    assert run(source, output).counts.ok == 1


@pytest.mark.long
def test_in_a_week_of_nights_on_s3_alone_the_tables_add_up_each_night(
    spark: SparkSession, run: Run, filter_: Run, store: S3Server, uri: str, other_card_file: str
) -> None:
    source, output, numbers = f"{uri}/photos", f"{uri}/out", count()

    def night(num_new: int, **options: Any) -> Counts:  # noqa: ANN401
        """Let images arrive, run, and compare the tables with the images that exist."""
        store.put(source, {f"{next(numbers):05}.png": png(seed=next(_NUMBERS)) for _ in range(num_new)})
        counts = run(source, output, **options).counts
        assert content(spark, output).keys() == store.names(source).keys()
        return counts

    assert night(20).ok == 20
    assert night(10).ok == 10
    store.faults = [
        Fault(keys="/photos/.*[02468].png", operations=READS, client=PYTHON),
        Fault(client=SPARK, share=0.2, times=40),
    ]
    outage = night(6)
    assert (outage.ok, outage.files_lost) == (3, 3)
    store.faults = []
    assert night(3).ok == 3 + 3
    assert night(2, threshold=0.004).ok == 2
    assert night(1, model=other_card_file, rescore="all").ok == 42
    for name in ("00000.png", "00001.png", "00002.png"):
        store.delete(source, name)
    assert night(4, model=other_card_file, prune=True).ok == 4
    compact(spark, output)
    assert night(5, model=other_card_file).ok == 5
    compact(spark, output)
    assert filter_(output, 0.001).totals["image_scores"] == 48
    assert content(spark, output).keys() == store.names(source).keys()


def until_done(job: Callable[[], object], delay: float) -> None:
    """Run a job, again and again while another one refuses it."""
    sleep(delay)
    while True:
        try:
            job()
        except TableError as error:
            if not re.search("another (run|job)", str(error)):
                raise
            sleep(0.5)
        else:
            return


@pytest.mark.long
@pytest.mark.parametrize("is_locked", [True, False], ids=["locked", "without-a-lock"])
def test_two_jobs_and_a_filter_at_once_write_no_row_twice(  # noqa: PLR0913
    spark: SparkSession, run: Run, filter_: Run, store: S3Server, uri: str, tmp_path: Path, *, is_locked: bool
) -> None:
    """A schema's jobs have their own checkpoints; a job that is refused is tried again until it ends."""
    schema, seed = f"spark_catalog.at_once_{uri.rpartition('-')[2]}", secrets.randbits(32)
    print(f"\nseed {seed}")  # noqa: T201 - shown where the test fails
    chance = random.Random(seed)  # noqa: S311 - to be repeated, not to be secret
    spark.sql(f"CREATE SCHEMA {schema} LOCATION '{tmp_path}/tables'")
    inputs = {f"{uri}/{name}": f"{uri}/checkpoints-{name}" for name in "ab"}

    for number in range(ROUNDS):
        for source in inputs:
            store.put(source, {f"{source[-1]}{number}-{i}.png": png(seed=next(_NUMBERS)) for i in range(2)})
        jobs = [partial(run, source, schema, checkpoints=place) for source, place in inputs.items()]
        if not number:  # the first makes the tables
            until_done(jobs.pop(), 0)
        jobs.append(partial(filter_, schema, THRESHOLD))
        with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(len(jobs)) as threads:
            if not is_locked:
                patch.setattr(pipeline, "one_run_at_a_time", lambda _: nullcontext(enter_result=False))
            done = [threads.submit(until_done, job, chance.uniform(0, 4)) for job in jobs]
            for each in done:
                each.result()
        filter_(schema, THRESHOLD)
        expected = sum(len(store.names(source)) for source in inputs)
        assert len(content(spark, f"{tmp_path}/tables")) == expected
