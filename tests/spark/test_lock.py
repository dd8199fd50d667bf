"""One run at a time: the second is refused with a reason, and a killed run blocks nobody."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from pyspark.sql import SparkSession

from nsfw_spark.errors import TableError
from nsfw_spark.spark.fence import Fence
from nsfw_spark.spark.hadoop import read_text, write_text
from nsfw_spark.spark.lock import Holder, Lease, locked_file, one_run_at_a_time
from nsfw_spark.spark.tables import Output, at_once
from tests.cluster.conftest import within

NEVER = 1e9
HOLD = """
import subprocess, sys
from pathlib import Path
from nsfw_spark.spark.lock import locked_file

with locked_file(Path(sys.argv[1])):
    # Both live until the test closes their standard input.
    child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"])
    print(child.pid, flush=True)
    sys.stdin.read()
child.wait()
"""


@contextmanager
def other_process(path: Path) -> Iterator[tuple[subprocess.Popen[str], psutil.Process]]:
    """Hold a file's lock in another process; yield it and a program that it started."""
    command = [sys.executable, "-c", HOLD, str(path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment) as holder:
        assert holder.stdout is not None
        yield holder, psutil.Process(int(holder.stdout.readline()))


def try_lock(path: Path, patience_seconds: float = 0.0) -> None:
    with locked_file(path, patience_seconds=patience_seconds):
        pass


def test_a_second_process_is_refused_and_told_who_the_first_is(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "run.lock"
    with other_process(path) as (holder, _):
        for _ in range(2):  # to have been refused harms nothing
            with pytest.raises(TableError, match=rf"another run .*process {holder.pid};.*run\.lock"):
                try_lock(path)
        holder.communicate("")
    assert holder.returncode == 0
    try_lock(path)


def test_a_killed_process_holds_up_nobody_though_its_programs_live(tmp_path: Path) -> None:
    with other_process(tmp_path / "run.lock") as (holder, program):
        holder.kill()
        holder.wait()
        try_lock(tmp_path / "run.lock")
        assert program.is_running()


def test_a_run_waits_for_one_that_is_about_to_go(tmp_path: Path) -> None:
    path = tmp_path / "run.lock"
    with other_process(path) as (holder, _), ThreadPoolExecutor() as threads:
        with pytest.raises(TableError):
            try_lock(path)
        waiting = threads.submit(try_lock, path, 60.0)
        holder.kill()
        waiting.result()


def by_flock(_: SparkSession, folder: Path) -> AbstractContextManager[None]:
    return locked_file(folder / "run.lock", patience_seconds=0)


def by_lease(spark: SparkSession, folder: Path) -> AbstractContextManager[None]:
    return lease(spark, folder).held()


def lease(spark: SparkSession, folder: Path, *, stale_seconds: float = NEVER) -> Lease:
    """A lease in a local directory, as on an object store, but faster."""
    uri = (folder / "run.lock").as_uri()
    return Lease(spark, uri, renew_seconds=0.1, stale_seconds=stale_seconds, settle_seconds=0)


@pytest.mark.parametrize("lock", [by_flock, by_lease])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_run_that_fails_lets_go(
    spark: SparkSession,
    tmp_path: Path,
    lock: type[AbstractContextManager[None]],
    error: type[BaseException],
) -> None:
    with pytest.raises(error), lock(spark, tmp_path):
        raise error
    with lock(spark, tmp_path):
        pass


def put_lease(spark: SparkSession, folder: Path, holder: Holder, *, seconds_ago: float = 0) -> None:
    """Write the lease that a killed holder leaves."""
    path = folder / "run.lock"
    write_text(spark, path.as_uri(), holder.as_json(), overwrite=True)
    modified = path.stat().st_mtime - seconds_ago
    os.utime(path, (modified, modified))


def holder_in(path: Path) -> Holder:
    """Return the holder of a lease; while it is being renewed, the file is empty."""
    found: list[Holder] = []
    assert within(10, lambda: found.extend(filter(None, [Holder.from_json(path.read_text())])) or found)
    return found[0]


def elsewhere() -> Holder:
    """A holder on another machine, which may or may not live."""
    return replace(Holder.this_process(), host="elsewhere", machine="elsewhere")


def test_a_lease_is_renewed_and_the_second_refused(spark: SparkSession, tmp_path: Path) -> None:
    path = tmp_path / "run.lock"
    with lease(spark, tmp_path).held():
        first = holder_in(path)
        with pytest.raises(TableError, match=rf"another run .*process {os.getpid()};"):  # once it was renewed
            lease(spark, tmp_path).held().__enter__()
        assert holder_in(path) == first
    assert not list(tmp_path.glob("run.lock*"))


def test_a_lease_of_a_process_that_is_gone_is_nobodys(spark: SparkSession, tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    put_lease(spark, tmp_path, replace(Holder.this_process(), pid=gone.pid))
    with lease(spark, tmp_path).held():
        pass


def test_a_process_id_that_is_used_again_is_not_the_holder(spark: SparkSession, tmp_path: Path) -> None:
    before = replace(Holder.this_process(), started=psutil.Process().create_time() - 100)
    put_lease(spark, tmp_path, before)
    with lease(spark, tmp_path).held():
        pass


def test_a_lease_that_was_not_renewed_for_long_is_nobodys(spark: SparkSession, tmp_path: Path) -> None:
    put_lease(spark, tmp_path, elsewhere(), seconds_ago=1000)
    with lease(spark, tmp_path, stale_seconds=900).held():
        held = read_text(spark, (tmp_path / "run.lock").as_uri())
        assert f'"pid": {os.getpid()}' in held
        assert "elsewhere" not in held


def test_a_lease_of_unknown_fate_is_waited_for(
    spark: SparkSession, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    put_lease(spark, tmp_path, elsewhere())
    with lease(spark, tmp_path, stale_seconds=2).held():
        pass
    assert "waiting to see whether that run still lives" in capfd.readouterr().err


def a_minute_of_work(spark: SparkSession) -> None:
    """Run a Spark job of many short tasks: a minute of work."""
    spark.range(0, 1200, 1, 1200).selectExpr("java_method('java.lang.Thread', 'sleep', 100L)").collect()


@pytest.mark.parametrize("ended", [False, True])
def test_a_run_whose_lease_was_taken_over_stops_its_jobs(
    spark: SparkSession, tmp_path: Path, *, ended: bool
) -> None:
    """Its machine slept for longer than a lease is valid."""
    path = tmp_path / "run.lock"

    def run() -> None:
        with Lease(spark, path.as_uri(), renew_seconds=3, settle_seconds=0).held():  # no renewal meanwhile
            path.unlink() if ended else put_lease(spark, tmp_path, elsewhere())
            at_once(Output(spark, str(tmp_path), None), lambda _: a_minute_of_work(spark), ["a", "b"])

    with pytest.raises(TableError, match=r"^another run took over .* run the same command again$") as refused:
        run()
    assert ("and has ended" if ended else "on host elsewhere") in str(refused.value)
    assert path.exists() != ended  # it is no longer ours to delete
    assert spark.range(10).count() == 10  # a job of somebody else


def test_steps_at_once_share_the_tag_of_their_run_and_no_other_property(
    spark: SparkSession, tmp_path: Path
) -> None:
    """Spark keeps the id of a running query in a property: two queries must not share it."""
    jobs, both = spark.sparkContext, threading.Barrier(2)

    def step(name: str) -> tuple[set[str], str | None]:
        jobs.setLocalProperty("mine", name)
        both.wait(60)
        return set(jobs.getJobTags()), jobs.getLocalProperty("mine")

    jobs.addJobTag("of-the-run")
    try:
        found = at_once(Output(spark, str(tmp_path), None), step, ["a", "b"])
    finally:
        jobs.removeJobTag("of-the-run")
    assert found == [({"of-the-run"}, "a"), ({"of-the-run"}, "b")]


def test_a_run_that_cannot_renew_its_lease_stops_its_jobs(spark: SparkSession, tmp_path: Path) -> None:
    held = Lease(spark, (tmp_path / "run.lock").as_uri(), Fence(), NEVER, stale_seconds=2, settle_seconds=0)
    with (
        pytest.raises(TableError, match=r"could not renew its lock .* run the same command again$"),
        held.held(),
    ):
        a_minute_of_work(spark)


def test_a_run_that_lost_its_lease_begins_no_write_though_it_has_not_noticed(
    spark: SparkSession, tmp_path: Path
) -> None:
    """What it wrote would be there twice: the other run has written it too."""
    output, rows = Output(spark, str(tmp_path / "out"), None), spark.range(1)
    staging = replace(output, location=str(tmp_path / "staging"))

    def run() -> None:
        with Lease(spark, (tmp_path / "run.lock").as_uri(), output.fence, NEVER, NEVER, 0).held():
            output.writer("runs", rows)
            put_lease(spark, tmp_path, elsewhere())
            for each in (output, staging):
                with pytest.raises(TableError, match=r"^another run took over"):
                    each.writer("runs", rows)
            raise ValueError("whatever an interrupted write ends in")

    with pytest.raises(TableError, match=r"^another run took over"):
        run()


@pytest.fixture
def remote(spark: SparkSession, tmp_path: Path) -> str:
    """The URI of a file system that does not look like the driver's own."""
    assert spark._jsc is not None
    spark._jsc.hadoopConfiguration().set("fs.viewfs.mounttable.remote.link./data", tmp_path.as_uri())
    return "viewfs://remote/data"


@pytest.mark.parametrize("where", ["plain path", "file URI", "remote"])
def test_an_output_is_held_wherever_it_lies(
    spark: SparkSession, tmp_path: Path, remote: str, where: str
) -> None:
    location = {"plain path": str(tmp_path), "file URI": tmp_path.as_uri(), "remote": remote}[where]
    path = tmp_path / "_checkpoints" / "run.lock"
    with one_run_at_a_time(Output(spark, location, "/somewhere/else")) as is_held:
        assert is_held
        assert f'"pid": {os.getpid()}' in path.read_text(encoding="utf-8")
    assert path.exists() == (where != "remote")  # a lease is a file, a kernel's lock has one


def test_a_schema_without_a_directory_is_held_where_its_checkpoints_are(
    spark: SparkSession, tmp_path: Path
) -> None:
    with one_run_at_a_time(Output(spark, "main.safety", str(tmp_path))) as is_held:
        assert is_held
        assert (tmp_path / "run.lock").exists()
    with one_run_at_a_time(Output(spark, "main.safety", None)) as is_held:
        assert not is_held


def test_a_schema_has_one_lock_wherever_the_checkpoints_of_its_jobs_are(
    spark: SparkSession, tmp_path: Path
) -> None:
    schema = "spark_catalog.held"
    spark.sql(f"CREATE SCHEMA {schema} LOCATION '{tmp_path / 'schema'}'")
    try:
        with one_run_at_a_time(Output(spark, schema, str(tmp_path / "mine"))):
            for checkpoints in (str(tmp_path / "yours"), None):  # `filter` has none
                with (
                    pytest.raises(TableError, match="another run writes to this output"),
                    one_run_at_a_time(Output(spark, schema, checkpoints)),
                ):
                    pass
        with one_run_at_a_time(Output(spark, schema, None)) as is_held:
            assert is_held
        assert [path.name for path in (tmp_path / "schema").rglob("*")] == ["_nsfw_spark", "run.lock"]
    finally:
        spark.sql(f"DROP SCHEMA {schema} CASCADE")


@pytest.mark.parametrize("where", ["a file", "below a file", "a read-only file system"])
def test_an_output_that_cannot_be_written_is_refused_in_words(
    spark: SparkSession, tmp_path: Path, where: str
) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"mine")
    path = {"a file": file, "below a file": file / "out", "a read-only file system": Path("/proc/out")}[where]
    with (
        pytest.raises(
            TableError, match=rf"cannot write {path}/_checkpoints/run.lock .*Choose another --output"
        ),
        one_run_at_a_time(Output(spark, str(path), None)),
    ):
        pass
