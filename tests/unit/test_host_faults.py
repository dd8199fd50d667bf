"""The model host dies, hangs, fails to load, or is no longer needed: tasks continue or receive the reason."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from safetensors.numpy import load_file, save_file

import nsfw_spark
from nsfw_spark.cards import load_card
from nsfw_spark.errors import ConfigError, DeviceError, NsfwSparkError, WeightsError
from nsfw_spark.host import HostedModel, HostSpec, HostUnavailableError, Owner
from nsfw_spark.host.directory import HostDirectory
from nsfw_spark.model import load_model
from nsfw_spark.model_card import ModelCard
from tests.fakes import (
    SMALL,
    WAIT,
    Batch,
    FakeExecutor,
    batches_of,
    brightness_card,
    card,
    host_of,
    log_of,
    num_connected,
    scores_of,
    until,
)

HEAD = Path(nsfw_spark.__file__).parent / str(card().head.weights and card().head.weights.file)
ENDS_SECONDS = 10.0
"""A host that is no longer needed must end within this time."""


@pytest.fixture
def executor(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[FakeExecutor]:
    tmp_path_factory.getbasetemp()  # before the executor changes the temporary directory
    with FakeExecutor(monkeypatch) as executor:
        yield executor


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeExecutor]:
    """An executor for tests that can start with the host of the test before."""
    tmp_path_factory.getbasetemp()
    with pytest.MonkeyPatch.context() as patch, FakeExecutor(patch) as executor:
        yield executor


class SlowWeights:
    """Weights of a head that take as long to read as a test wants: a hole of 64 GiB, until it is filled."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("wb") as file:
            file.truncate(1 << 36)

    def card(self, sha256: str | None = None) -> ModelCard:
        weights = {"path": self.path, "sha256": sha256}
        return card(head={"weights": weights}, preprocessing={"size": SMALL})

    def fill(self) -> Path:
        """Replace the hole by the head for later readers; return the hole's new path."""
        hole = self.path.rename(self.path.with_suffix(".hole"))
        shutil.copyfile(HEAD, self.path)
        return hole


def scores_here(spec: HostSpec, num_batches: int) -> list[float]:
    return scores_of(load_model(spec.models[0]), batches_of(num_batches))


def waiting(executor: FakeExecutor, spec: HostSpec, num: int) -> list[Future[HostedModel]]:
    """Start tasks that wait for a slow model; return them when they are connected."""
    tasks = [executor.threads.submit(HostedModel, spec) for _ in range(num)]
    until(lambda: num_connected(spec) == num)
    return tasks


def with_deaths(num_batches: int, deaths: dict[int, Callable[[], object]]) -> Iterator[Batch]:
    """Yield batches; before a batch, call its entry in `deaths`."""
    for i, batch in enumerate(batches_of(num_batches)):
        deaths.get(i, int)()
        yield batch


@pytest.mark.parametrize(
    ("death", "before"),
    [("killed", 0), ("killed", 5), ("told to end", 2), ("directory removed", 3)],
)
def test_a_stream_outlives_its_host(shared: FakeExecutor, death: str, before: int) -> None:
    spec = shared.spec()

    def end() -> None:
        host = host_of(spec)
        match death:
            case "killed":
                host.kill()
            case "told to end":
                host.terminate()
            case "directory removed":
                shutil.rmtree(HostDirectory.of(spec.identity).path)
        until(lambda: host not in shared.hosts())

    with HostedModel(spec) as hosted:
        assert scores_of(hosted, with_deaths(9, {before: end})) == scores_here(spec, 9)
    assert shared.hosts() == [host_of(spec)]


def test_batches_that_the_host_took_to_its_grave_are_sent_again(shared: FakeExecutor) -> None:
    spec = shared.spec()
    with HostedModel(spec) as hosted:
        host = host_of(spec)
        killer = threading.Timer(0.3, host.kill)  # with batches in flight

        def end() -> None:
            host.suspend()  # so it is not answered
            killer.start()

        assert scores_of(hosted, with_deaths(9, {4: end})) == scores_here(spec, 9)
        killer.join()


def test_a_second_death_is_an_error_with_the_end_of_the_hosts_log(shared: FakeExecutor) -> None:
    spec = shared.spec()

    def kill() -> None:
        host_of(spec).kill()

    with (
        HostedModel(spec) as hosted,
        pytest.raises(DeviceError, match=r"(?s)died twice in this task.*end of its log: .*loaded fake on"),
    ):
        scores_of(hosted, with_deaths(9, {3: kill, 6: kill}))
    with HostedModel(spec) as hosted:
        assert scores_of(hosted, batches_of(2)) == scores_here(spec, 2), "the next task starts another"


def test_tasks_that_see_the_same_death_start_one_host(executor: FakeExecutor) -> None:
    spec = executor.spec()
    tasks = executor.tasks(spec, num_batches=6, num=5)
    tasks.hear()
    tasks.go_on()
    assert tasks.hear() == [{"waits": "in the middle"}] * 5
    host_of(spec).kill()
    tasks.go_on()
    assert tasks.hear() == [{"scores": scores_here(spec, 6)}] * 5
    assert log_of(spec).count("loaded fake") == 2
    assert "Traceback" not in log_of(spec), "no other was started"
    assert executor.hosts() == [host_of(spec)]


def test_a_host_that_hangs_is_killed_and_replaced(executor: FakeExecutor) -> None:
    spec = executor.spec()
    with HostedModel(spec):
        first = host_of(spec)

    def task() -> list[float]:
        with HostedModel(replace(spec, timeout_seconds=3.0)) as hosted:
            return scores_of(hosted, with_deaths(6, {3: first.suspend}))

    assert executor.threads.submit(task).result(WAIT) == scores_here(spec, 6)
    assert executor.hosts() == [host_of(spec)] != [first]


def test_a_host_that_hangs_is_replaced_when_a_task_comes(executor: FakeExecutor) -> None:
    spec = executor.spec()
    with HostedModel(spec):
        first = host_of(spec)
        first.suspend()

    def task() -> list[float]:
        with HostedModel(replace(spec, timeout_seconds=3.0)) as hosted:
            return scores_of(hosted, batches_of(2))

    assert executor.threads.submit(task).result(WAIT) == scores_here(spec, 2)
    assert executor.hosts() == [host_of(spec)] != [first]


def test_a_model_that_breaks_is_an_error_that_says_how(executor: FakeExecutor, tmp_path: Path) -> None:
    spec = executor.spec(brightness_card(tmp_path / "model.onnx", breaks=True))
    with HostedModel(spec) as hosted, pytest.raises(DeviceError, match=r"(?s)twice.*model broke.*reshape"):
        scores_of(hosted, batches_of(1, size=8))
    until(lambda: not executor.hosts())


def test_other_weights_in_the_next_host_are_an_error(executor: FakeExecutor, tmp_path: Path) -> None:
    path = tmp_path / "head.safetensors"
    shutil.copyfile(HEAD, path)
    spec = executor.spec(card(head={"weights": {"path": path}}, preprocessing={"size": SMALL}))

    def change() -> None:
        save_file(load_file(path), path, {"note": "another sha256"})
        host_of(spec).kill()

    with (
        HostedModel(spec) as hosted,
        pytest.raises(WeightsError, match="Do not change weights while a job runs"),
    ):
        scores_of(hosted, with_deaths(9, {3: change}))


def test_a_model_that_takes_longer_to_load_than_a_hang_is_waited_for(
    executor: FakeExecutor, tmp_path: Path
) -> None:
    slow = SlowWeights(tmp_path / "head.safetensors")
    spec = executor.spec(slow.card(), timeout_seconds=3.0)
    (task,) = waiting(executor, spec, 1)
    connected = time.monotonic()
    until(lambda: time.monotonic() > connected + 4)
    os.truncate(slow.fill(), 0)  # its reader reaches the end, then reads the head
    with task.result(WAIT) as hosted:
        assert len(scores_of(hosted, batches_of(2))) == 32
    assert log_of(spec).count("loaded fake") == 1


def test_a_model_whose_load_hangs_is_an_error_that_says_so(executor: FakeExecutor, tmp_path: Path) -> None:
    slow = SlowWeights(tmp_path / "head.safetensors")
    spec = executor.spec(slow.card(), load_seconds=1.0)
    for task in waiting(executor, spec, 3):
        error = task.exception(WAIT)
        assert type(error) is DeviceError
        assert "fake was not loaded on cpu within 1 s: a file system" in str(error)
    until(executor.is_clean, ENDS_SECONDS)


def test_a_host_that_may_open_no_more_files_goes_on_and_later_accepts_tasks(executor: FakeExecutor) -> None:
    spec = executor.spec()
    with HostedModel(spec) as hosted:
        host = host_of(spec)
        limits = host.rlimit(psutil.RLIMIT_NOFILE)
        host.rlimit(psutil.RLIMIT_NOFILE, (3, limits[1]))
        late = executor.threads.submit(HostedModel, spec)
        until(lambda: "cannot accept a task now" in log_of(spec))
        assert len(scores_of(hosted, batches_of(1))) == 16
        host.rlimit(psutil.RLIMIT_NOFILE, limits)
        with late.result(WAIT) as second:
            assert len(scores_of(second, batches_of(2))) == 32
    assert executor.hosts() == [host]


def test_a_task_that_may_open_no_more_files_leaves_the_host_of_others_alone(
    executor: FakeExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> str:
        raise OSError(errno.EMFILE, "Too many open files")

    spec = executor.spec()
    with HostedModel(spec) as hosted:
        host = host_of(spec)
        with monkeypatch.context() as patch:
            patch.setattr(Path, "read_text", fail)
            with pytest.raises(HostUnavailableError, match="Too many open files"):
                HostedModel(spec)
        assert len(scores_of(hosted, batches_of(2))) == 32
    assert executor.hosts() == [host_of(spec)] == [host]


def test_tasks_whose_host_is_killed_while_it_loads_get_their_model_from_the_next(
    executor: FakeExecutor, tmp_path: Path
) -> None:
    slow = SlowWeights(tmp_path / "head.safetensors")
    spec = executor.spec(slow.card())
    tasks = waiting(executor, spec, 5)
    first = host_of(spec)
    slow.fill()
    first.kill()
    for task in tasks:
        with task.result(WAIT) as hosted:
            assert scores_of(hosted, batches_of(2)) == scores_here(spec, 2)
    assert executor.hosts() == [host_of(spec)] != [first]
    assert log_of(spec).count("loaded fake") == 1


def test_a_task_that_dies_while_the_model_loads_harms_nobody(executor: FakeExecutor, tmp_path: Path) -> None:
    slow = SlowWeights(tmp_path / "head.safetensors")
    spec = executor.spec(slow.card())
    (there,) = waiting(executor, spec, 1)
    dying = executor.tasks(spec)
    dying.hear()
    dying.go_on()
    until(lambda: num_connected(spec) == 2)
    dying.kill()
    until(lambda: num_connected(spec) == 1)
    os.truncate(slow.fill(), 0)  # its reader reaches the end, then reads the head
    with there.result(WAIT) as hosted:
        assert len(scores_of(hosted, batches_of(2))) == 32
    assert log_of(spec).count("loaded fake") == 1


def test_a_task_that_is_killed_while_it_starts_the_host_harms_nobody(executor: FakeExecutor) -> None:
    spec = executor.spec()
    dying = executor.tasks(spec)
    dying.hear()
    dying.go_on()
    until(executor.hosts)
    dying.kill()
    with HostedModel(spec) as hosted:
        assert scores_of(hosted, batches_of(2)) == scores_here(spec, 2)
        assert executor.hosts() == [host_of(spec)]


def test_a_host_that_is_killed_while_it_starts_is_started_again(executor: FakeExecutor) -> None:
    spec = executor.spec()
    task = executor.threads.submit(HostedModel, spec)
    until(executor.hosts)[0].kill()
    with task.result(WAIT) as hosted:
        assert scores_of(hosted, batches_of(2)) == scores_here(spec, 2)


def broken_spec(executor: FakeExecutor, what: str, tmp_path: Path) -> HostSpec:
    absent, garbage = tmp_path / "absent", tmp_path / "garbage.onnx"
    garbage.write_bytes(b"garbage")
    match what:
        case "absent weights":
            return executor.spec(card(head={"weights": {"path": absent}}))
        case "no GPU":
            spec = executor.spec(load_card("open-nsfw"))
            return replace(spec, models=(replace(spec.models[0], device="cuda"),))
        case "wrong card":
            return executor.spec(card(encoder={"embedding_dim": 5}))
        case "defect":
            return executor.spec(card(encoder={"weights": {"random": -1}}))  # numpy refuses such a seed
        case _:
            onnx = brightness_card(tmp_path / "model.onnx").encoder
            weights = onnx.weights.model_copy(update={"path": garbage})
            encoder = onnx.model_copy(update={"weights": weights})
            good = brightness_card(tmp_path / "model.onnx")
            return executor.spec(good.model_copy(update={"encoder": encoder}))


@pytest.mark.parametrize(
    ("what", "error", "message"),
    [
        ("absent weights", WeightsError, "there is no such file"),
        ("no GPU", DeviceError, "device is cuda, and this onnxruntime"),
        ("wrong card", ConfigError, "the head expects embeddings of 768 numbers"),
        ("damaged graph", WeightsError, "is not an ONNX model that can be run"),
        ("defect", NsfwSparkError, "unexpected ValueError in the model host"),
    ],
)
def test_what_is_wrong_with_the_model_is_the_error_of_each_task(
    executor: FakeExecutor, tmp_path: Path, what: str, error: type[NsfwSparkError], message: str
) -> None:
    spec = broken_spec(executor, what, tmp_path)
    tasks = [executor.threads.submit(HostedModel, spec) for _ in range(8)]
    for task in tasks:
        raised = task.exception(WAIT)
        assert type(raised) is error
        assert message in str(raised)
    until(executor.is_clean, ENDS_SECONDS)


def test_tasks_that_wait_hear_within_a_second_that_the_model_cannot_be_loaded(
    executor: FakeExecutor, tmp_path: Path
) -> None:
    slow = SlowWeights(tmp_path / "head.safetensors")
    tasks = waiting(executor, executor.spec(slow.card(sha256="0" * 64)), 5)
    os.truncate(slow.path, 0)  # its reader reaches the end
    known = time.monotonic()
    for task in tasks:
        assert type(task.exception(WAIT)) is WeightsError
    assert time.monotonic() - known < 1
    until(executor.is_clean, ENDS_SECONDS)


@pytest.mark.parametrize(
    ("end", "is_connected"),
    [("owner killed", True), ("owner killed", False), ("directory removed", True), ("told to end", True)],
)
def test_it_ends_and_leaves_nothing(executor: FakeExecutor, end: str, is_connected: bool) -> None:  # noqa: FBT001
    directory = executor.directory / "of the owner"
    directory.mkdir()
    spec = executor.spec(owner=replace(executor.owner, directory=str(directory)))
    with HostedModel(spec) as hosted:
        host = host_of(spec)
        if not is_connected:
            hosted.close()
        match end:
            case "owner killed":
                executor.process.kill()  # and nobody waits for it: a zombie
            case "directory removed":
                directory.rmdir()
            case "told to end":
                host.send_signal(signal.SIGTERM)
        until(executor.is_clean, ENDS_SECONDS)


def test_it_ends_while_it_loads_when_its_owner_does(executor: FakeExecutor, tmp_path: Path) -> None:
    (task,) = waiting(executor, executor.spec(SlowWeights(tmp_path / "head.safetensors").card()), 1)
    executor.end()
    assert isinstance(task.exception(WAIT), DeviceError)
    until(executor.is_clean, ENDS_SECONDS)


def test_it_ends_when_no_task_came_for_a_while_and_not_before(executor: FakeExecutor) -> None:
    spec = executor.spec(idle_seconds=0.5)
    with HostedModel(spec) as hosted:
        host, connected_until = host_of(spec), time.monotonic() + 2.0
        while time.monotonic() < connected_until:
            assert executor.hosts() == [host]
        assert scores_of(hosted, batches_of(1)) == scores_here(spec, 1)
        assert executor.hosts() == [host], "a task is connected"
    until(executor.is_clean, ENDS_SECONDS)
    with HostedModel(spec) as hosted:
        assert scores_of(hosted, batches_of(1)) == scores_here(spec, 1), "the next task starts another"


def abandoned_directory(executor: FakeExecutor) -> HostDirectory:
    """Return the directory of a killed host of a killed executor."""
    with subprocess.Popen(["sleep", "600"]) as owner:  # noqa: S607
        spec = executor.spec(owner=Owner.process(owner.pid))
        with HostedModel(spec):
            host, directory = host_of(spec), HostDirectory.of(spec.identity)
            host.kill()
            owner.kill()
    until(lambda: host not in executor.hosts())
    assert directory.read_host() is not None
    return directory


def test_the_next_host_clears_away_what_is_abandoned_and_nothing_else(executor: FakeExecutor) -> None:
    killed, running = executor.spec(num_threads=1), executor.spec(num_threads=2)
    with HostedModel(killed), HostedModel(running):
        host_of(killed).kill()  # its log tells the tasks of its executor why it died
    abandoned = [abandoned_directory(executor).path]
    for i in range(4):
        abandoned.append(abandoned[0].with_name(f"{abandoned[0].name}-{i}"))
        shutil.copytree(abandoned[0], abandoned[-1], ignore=shutil.ignore_patterns("socket"))
    strange = ["{}", "null", '{"owner": 1}', '{"pid": "x", "started": [], "owner": [1, 2]}']
    for i, content in enumerate(2 * strange):
        path = abandoned[0].with_name(f"{abandoned[0].name}-strange-{i}")
        path.mkdir(mode=0o755 if i < len(strange) else 0o700)
        (path / "host.json").write_text(content)
    with HostedModel(executor.spec()):
        until(lambda: not any(path.exists() for path in abandoned))
    assert "loaded fake" in log_of(killed)
    assert host_of(running) in executor.hosts()


def test_it_clears_away_too_what_is_not_in_the_temporary_directory(
    executor: FakeExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = executor.directory / ("x" * 80)  # too long for a socket: directories are elsewhere
    long.mkdir()
    monkeypatch.setenv("TMPDIR", str(long))
    monkeypatch.setattr(tempfile, "tempdir", None)
    directory = abandoned_directory(executor)
    try:
        with HostedModel(executor.spec()):
            until(lambda: not directory.path.exists())
    finally:
        directory.remove()


def test_what_another_has_cleared_away_is_not_made_again(executor: FakeExecutor) -> None:
    """Two GPUs have two hosts, which start at the same time and find the same directories to remove."""
    directory = abandoned_directory(executor)
    with ExitStack() as lock:
        lock.enter_context(directory.locked())
        with HostedModel(executor.spec()):
            host = host_of(executor.spec())
            until(lambda: str(directory.path / "lock") in [file.path for file in host.open_files()])
            num_threads = host.num_threads()  # one of them waits for the lock
            directory.remove()
            lock.close()
            until(lambda: host.num_threads() < num_threads)
    assert not directory.path.exists()
