"""The model host: the scores are the model's own, tasks share one, and nobody else gets in."""

from __future__ import annotations

import os
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nsfw_spark import wire
from nsfw_spark.cards import load_card
from nsfw_spark.errors import DeviceError, WeightsError
from nsfw_spark.heads import Predictions
from nsfw_spark.host import HostedModel, HostSpec, HostUnavailableError, Owner
from nsfw_spark.host.directory import HostDirectory
from nsfw_spark.host.protocol import VERSION
from nsfw_spark.model import ModelSpec, load_model
from nsfw_spark.scorer import Scorer
from tests.conftest import PHOTOS
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

IMAGE_BYTES = SMALL * SMALL * 3
PIXELS = b'{"kind": "pixels"}'


@pytest.fixture
def executor(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[FakeExecutor]:
    tmp_path_factory.getbasetemp()  # before the executor changes the temporary directory
    with FakeExecutor(monkeypatch) as executor:
        yield executor


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeExecutor]:
    """An executor for tests that share its host and do not harm it."""
    tmp_path_factory.getbasetemp()
    with pytest.MonkeyPatch.context() as patch, FakeExecutor(patch) as executor:
        yield executor


def scores_here(spec: HostSpec, batches: list[Batch]) -> list[float]:
    """Return the scores of the model in this process."""
    return scores_of(load_model(spec.models[0]), batches)


def test_scores_are_those_of_this_process_to_the_last_bit(shared: FakeExecutor) -> None:
    spec, batches = shared.spec(card()), batches_of(5, size=224)
    here = load_model(spec.models[0])
    with HostedModel(spec) as hosted:
        assert (hosted.fingerprint, hosted.device, hosted.batch_size) == (here.fingerprint, "cpu", 16)
        assert hosted.self_check == here.self_check != None  # noqa: E711 - all three
        for one, other in zip(hosted.predict_each(batches), here.predict_each(batches), strict=True):
            assert np.array_equal(one.nsfw_scores, other.nsfw_scores)
            assert one.class_scores is None
            assert one.embeddings is not None
            assert other.embeddings is not None
            assert np.array_equal(one.embeddings, other.embeddings)
            assert one.batch_slots == 16
            assert min(one.wait_seconds, one.encode_seconds) > 0


def test_open_nsfw_gives_the_same_scores_of_photographs(
    shared: FakeExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")  # the order of sums depends on it
    model = load_card("open-nsfw")
    files = [*sorted((PHOTOS / "photos").iterdir())[:18], *(PHOTOS / "corrupt").iterdir()]
    contents = [file.read_bytes() for file in files]
    spec = shared.spec(model, num_threads=2)
    here = Scorer(model, load_model(spec.models[0])).score(contents)
    with HostedModel(spec) as hosted:
        there = Scorer(model, hosted).score(contents)
        assert host_of(spec).environ()["OMP_NUM_THREADS"] == "2"
    for one, other in zip(here, there, strict=True):
        assert replace(one, embedding=None) == replace(other, embedding=None)
        assert (one.embedding is None) == (other.embedding is None)
        assert one.embedding is None or np.array_equal(one.embedding, np.asarray(other.embedding))


def test_scores_do_not_depend_on_the_batch_size(shared: FakeExecutor) -> None:
    spec = shared.spec()
    images = [image for batch in batches_of(2) for image in batch]
    with HostedModel(replace(spec, models=(replace(spec.models[0], batch_size=7),))) as hosted:
        assert hosted.batch_size == 7
        for size in (1, 7):
            scores = scores_of(hosted, [images[at : at + size] for at in range(0, len(images), size)])
            np.testing.assert_allclose(scores, scores_here(spec, batches_of(2)), rtol=0, atol=1e-6)


def test_empty_batches_keep_their_place(shared: FakeExecutor) -> None:
    one, two, three = batches_of(3)
    with HostedModel(shared.spec()) as hosted:
        found = list(hosted.predict_each([one[:0], one, one[:0], one[:0], two, three, one[:0]]))
        assert [len(each) for each in found] == [0, 16, 0, 0, 16, 16, 0]
        assert scores_of(hosted, []) == scores_of(hosted, [batches_of(1)[0][:0]]) == []
    assert all_scores(found) == scores_here(shared.spec(), [one, two, three])


def all_scores(found: list[Predictions]) -> list[float]:
    return [score for each in found for score in each.nsfw_scores.tolist()]


def test_a_stream_that_was_left_leaves_nothing_to_the_next_one(shared: FakeExecutor) -> None:
    with HostedModel(shared.spec()) as hosted:
        left = hosted.predict_each(batches_of(9, first=100))
        next(left)
        left.close()  # type: ignore[attr-defined]
        assert scores_of(hosted, batches_of(3)) == scores_here(shared.spec(), batches_of(3))


def test_a_stream_that_broke_leaves_nothing_to_the_next_one(shared: FakeExecutor) -> None:
    def breaking() -> Iterator[Batch]:
        yield from batches_of(1, first=100)
        raise KeyError

    with HostedModel(shared.spec()) as hosted:
        with pytest.raises(KeyError):
            scores_of(hosted, breaking())
        assert scores_of(hosted, batches_of(3)) == scores_here(shared.spec(), batches_of(3))


def test_two_streams_of_a_task_each_get_their_own_scores(shared: FakeExecutor) -> None:
    ours, others = batches_of(4), batches_of(4, first=100)
    with HostedModel(shared.spec()) as hosted:
        stream = hosted.predict_each(ours)
        first = next(stream)
        assert scores_of(hosted, others) == scores_here(shared.spec(), others)
        assert all_scores([first, *stream]) == scores_here(shared.spec(), ours)


def test_the_end_of_a_task_hangs_up_in_the_middle_of_a_stream_too(shared: FakeExecutor) -> None:
    spec = shared.spec(num_threads=1)
    with HostedModel(spec) as hosted:
        stream = hosted.predict_each(batches_of(9))
        next(stream)
        assert num_connected(spec) == 2
    until(lambda: num_connected(spec) == 0, 5.0)
    del stream


def test_8_tasks_that_begin_at_once_share_one_host(executor: FakeExecutor) -> None:
    tasks = executor.tasks(executor.spec(), num_batches=4, num=8)
    assert tasks.hear() == [{"waits": "at the start"}] * 8
    tasks.go_on()
    assert tasks.hear() == [{"waits": "in the middle"}] * 8
    assert len(executor.hosts()) == 1
    tasks.go_on()
    assert tasks.hear() == [{"scores": scores_here(executor.spec(), batches_of(4))}] * 8
    assert log_of(executor.spec()).count("loaded fake") == 1
    assert "Traceback" not in log_of(executor.spec()), "no other was started"


def test_a_host_outlives_the_task_that_started_it_and_serves_the_next(executor: FakeExecutor) -> None:
    first = executor.tasks(executor.spec())
    first.hear()
    first.go_on()
    assert first.hear() == [{"scores": []}]
    first.kill()
    host = host_of(executor.spec())
    for _ in range(2):
        with HostedModel(executor.spec()) as hosted:
            assert len(scores_of(hosted, batches_of(1))) == 16
            assert executor.hosts() == [host]


def test_another_model_or_another_owner_has_another_host(shared: FakeExecutor) -> None:
    spec = shared.spec()
    other = shared.spec(card(encoder={"weights": {"random": 2}}, preprocessing={"size": SMALL}))
    impatient = shared.spec(timeout_seconds=20.0, idle_seconds=20.0)
    assert shared.spec(owner=Owner.process(os.getpid())).identity != spec.identity
    assert shared.spec(num_threads=1).identity != spec.identity
    with HostedModel(spec) as one, HostedModel(other) as two, HostedModel(impatient) as three:
        assert one.fingerprint == three.fingerprint != two.fingerprint
        assert host_of(spec) == host_of(impatient) != host_of(other)


TASK = """
import sys
import numpy as np
from nsfw_spark.host import HostedModel, HostSpec
with HostedModel(HostSpec.from_json(sys.argv[1])) as hosted:
    (scores,) = hosted.predict_each([[np.zeros((224, 224, 3), np.uint8)] * 3])
assert len(scores) == 3 and scores.embeddings.shape == (3, 1024)
heavy = {"torch", "open_clip", "onnx", "onnxruntime", "huggingface_hub", "pyspark", "pandas"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""


def test_two_models_of_a_cascade_share_one_host(executor: FakeExecutor) -> None:
    """Each model has its own card and image size, so a mix-up would show."""
    small, large = (
        card(preprocessing={"size": size}, encoder={"weights": {"random": size}}) for size in (8, 16)
    )
    spec = executor.spec(models=(ModelSpec(small, device="cpu"), ModelSpec(large, device="cpu")))
    here = [load_model(model) for model in spec.models]
    with HostedModel(spec) as first, HostedModel(spec, model_index=1) as second:
        for i, (hosted, model) in enumerate(zip((first, second), here, strict=True)):
            batches = batches_of(3, size=spec.models[i].card.preprocessing.size)
            assert scores_of(hosted, batches) == scores_of(model, batches)
            assert hosted.fingerprint == model.fingerprint
        assert first.fingerprint != second.fingerprint
        assert len(executor.hosts()) == 1
        assert log_of(spec).count("loaded fake on cpu") == 2


def test_a_second_model_that_cannot_be_loaded_ends_the_host_with_its_reason(executor: FakeExecutor) -> None:
    absent = card(encoder={"weights": {"path": "/absent/weights", "random": None}})
    spec = executor.spec()
    spec = replace(spec, models=(*spec.models, ModelSpec(absent, device="cpu")))
    with pytest.raises(WeightsError, match="/absent/weights"):
        HostedModel(spec, model_index=1)
    until(lambda: not executor.hosts())


def test_a_task_loads_no_model_library(shared: FakeExecutor) -> None:
    spec = shared.spec(load_card("open-nsfw"), num_threads=2).as_json()
    done = subprocess.run([sys.executable, "-c", TASK, spec], check=False, timeout=2 * WAIT)
    assert done.returncode == 0


def test_batches_that_become_smaller_do_not_lose_those_on_their_way(
    executor: FakeExecutor, tmp_path: Path
) -> None:
    spec = executor.spec(brightness_card(tmp_path / "model.onnx", capacity=5))
    images = np.arange(64, dtype=np.uint8).repeat(8 * 8 * 3).reshape(4, 16, 8, 8, 3)
    with HostedModel(spec) as hosted:
        scores = scores_of(hosted, list(images))
        np.testing.assert_allclose(scores, np.arange(64) / 255, atol=1e-6)
        scores = scores_of(hosted, list(images))
        np.testing.assert_allclose(scores, np.arange(64) / 255, atol=1e-6)
    assert log_of(spec).count("from now on") == 2, "8, then 4 at once"


def test_a_request_may_be_larger_than_the_hosts_batches_are_by_now(
    executor: FakeExecutor, tmp_path: Path
) -> None:
    """A task learns the batch size once; later it may shrink, or another host may answer."""
    spec = executor.spec(brightness_card(tmp_path / "model.onnx", capacity=5))
    images = np.arange(16, dtype=np.uint8).repeat(8 * 8 * 3).reshape(16, 8, 8, 3)
    with HostedModel(spec) as before:
        assert before.batch_size == 16
        with HostedModel(spec) as other:
            scores_of(other, [images])
        np.testing.assert_allclose(
            scores_of(before, [images] * 2), np.tile(np.arange(16) / 255, 2), atol=1e-6
        )


def test_a_device_without_room_for_one_image_is_an_error_that_says_so(
    executor: FakeExecutor, tmp_path: Path
) -> None:
    """The host scores the built-in test image when it loads the model."""
    spec = executor.spec(brightness_card(tmp_path / "model.onnx", capacity=0))
    with pytest.raises(DeviceError, match="a batch of 1 images does not fit into cpu"):
        HostedModel(spec)
    until(executor.is_clean)


def test_its_directory_is_closed_to_others(shared: FakeExecutor) -> None:
    with HostedModel(shared.spec()):
        path = HostDirectory.of(shared.spec().identity).path
        assert path.parent == shared.directory
        assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_names_that_are_taken_are_left_alone(executor: FakeExecutor) -> None:
    name = f"nsfw-spark-{os.getuid()}-{executor.spec().identity}"
    open_to_all, file, link, to_nowhere = (
        executor.directory / f"{name}{suffix}" for suffix in ("", "-1", "-2", "-3")
    )
    elsewhere = executor.directory / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    open_to_all.mkdir()
    open_to_all.chmod(0o755)
    file.touch()
    link.symlink_to(elsewhere)
    to_nowhere.symlink_to(executor.directory / "nowhere")
    with HostedModel(executor.spec()), HostedModel(executor.spec()):
        assert len(executor.hosts()) == 1
        assert HostDirectory.of(executor.spec().identity).path.name == f"{name}-4"
    assert not [*elsewhere.iterdir(), *open_to_all.iterdir()]
    assert not (executor.directory / "nowhere").exists()
    assert file.read_bytes() == b""


def test_a_long_path_is_no_place_for_a_socket(
    executor: FakeExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = executor.directory / ("x" * 80)
    long.mkdir()
    monkeypatch.setenv("TMPDIR", str(long))
    monkeypatch.setattr(tempfile, "tempdir", None)
    with HostedModel(executor.spec()) as hosted:
        assert len(scores_of(hosted, batches_of(1))) == 16
        directory = HostDirectory.of(executor.spec().identity)
        assert len(os.fsencode(directory.socket)) < 107
        assert directory.read_host() is not None
    executor.end()
    until(lambda: not directory.path.exists())
    assert not list(long.iterdir())


def connected(spec: HostSpec) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(WAIT)
    connection.connect(str(HostDirectory.of(spec.identity).socket))
    return connection


def key_of(spec: HostSpec) -> str:
    return str((HostDirectory.of(spec.identity).read_host() or {})["key"])


def ready(spec: HostSpec) -> socket.socket:
    """Return a connection that may send pixels."""
    connection = connected(spec)
    hello = {"kind": "hello", "version": VERSION, "key": key_of(spec), "task": "a test", "model": 0}
    wire.send(connection, hello)
    kind = None
    while kind != "ready":
        message = wire.receive(connection)
        assert message is not None
        kind = message[0]["kind"]
    return connection


def start(head_length: int, body_length: int) -> bytes:
    return struct.pack("<4sIQ", b"NSFW", head_length, body_length)


def pixels_message(num_images: int) -> bytes:
    return start(len(PIXELS), num_images * IMAGE_BYTES) + PIXELS + bytes(num_images * IMAGE_BYTES)


def is_hung_up(connection: socket.socket) -> bool:
    """Return whether the host closes a connection without an answer."""
    with connection:
        try:
            return connection.recv(1) == b""
        except ConnectionResetError:  # it did not read everything
            return True


@contextmanager
def unharmed(spec: HostSpec) -> Iterator[None]:
    """Assert that a host still serves earlier and later tasks, and that nothing broke in it."""
    with HostedModel(spec) as hosted:
        host, said_before = host_of(spec), len(log_of(spec))
        yield
        batches = batches_of(3)
        with HostedModel(spec) as another:
            assert scores_of(hosted, batches) == scores_of(another, batches) == scores_here(spec, batches)
        assert host_of(spec) == host
        assert "Traceback" not in log_of(spec)[said_before:]


def test_who_has_no_key_gets_nothing(shared: FakeExecutor) -> None:
    spec = shared.spec()
    with unharmed(spec):
        key, version = key_of(spec), VERSION
        for hello in (
            {"version": version},
            {"version": version, "key": ""},
            {"version": version, "key": "0" * 64},
            {"version": version, "key": key[:-1]},
            {"version": version, "key": [key]},
            {"version": version, "key": "\udcff"},  # not valid in any encoding
            {"version": version + 1, "key": key},
        ):
            connection = connected(spec)
            wire.send(connection, {"kind": "hello", "task": "a stranger", "model": 0, **hello})
            assert is_hung_up(connection)


def test_garbage_is_hung_up_on(shared: FakeExecutor) -> None:
    spec = shared.spec()
    with unharmed(spec):
        for garbage in (
            b"GET / HTTP/1.1\r\n\r\n",
            bytes(16),
            os.urandom(100_000),
            pixels_message(1),
            start(2**32 - 1, 0),
            start(2, 2**63) + b"{}",
            start(2, 0) + b"[]",
            start(2, 0) + b"\xff\xff",
        ):
            connection = connected(spec)
            with suppress(BrokenPipeError, ConnectionResetError):
                connection.sendall(garbage)
            assert is_hung_up(connection)


def test_pixels_of_a_wrong_length_are_hung_up_on(shared: FakeExecutor) -> None:
    spec = shared.spec()
    with unharmed(spec):
        for length in (0, 1, IMAGE_BYTES - 1, IMAGE_BYTES * 65, IMAGE_BYTES << 50, 2**64 - 1):
            connection = ready(spec)
            connection.sendall(start(len(PIXELS), length) + PIXELS)
            assert is_hung_up(connection)


def test_a_task_that_dies_while_it_sends_harms_nobody(shared: FakeExecutor) -> None:
    spec = shared.spec()
    with unharmed(spec):
        sent = pixels_message(16)
        for num_bytes in (0, 7, 16, 17, 16 + len(PIXELS) + IMAGE_BYTES, len(sent) - 1, len(sent)):
            with ready(spec) as connection:
                connection.sendall(sent[:num_bytes])


def test_one_that_says_nothing_keeps_nobody_waiting(shared: FakeExecutor) -> None:
    with unharmed(shared.spec()), connected(shared.spec()):
        started = time.monotonic()
        with HostedModel(shared.spec()):
            assert time.monotonic() - started < 4, "a silent one is hung up on after 5 s"


@pytest.mark.parametrize("python", ["/bin/false", "/bin/true", "/no/such/python", ""])
def test_where_no_process_can_start_there_is_no_host_and_nothing_is_left(
    executor: FakeExecutor, monkeypatch: pytest.MonkeyPatch, python: str
) -> None:
    monkeypatch.setattr(sys, "executable", python)
    with pytest.raises(HostUnavailableError):
        HostedModel(executor.spec())
    assert executor.is_clean()


def test_the_log_of_a_host_that_did_not_start_is_in_the_error(
    executor: FakeExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = executor.directory / "python"
    program.write_text("#!/bin/sh\necho no module named nsfw_spark >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    with pytest.raises(HostUnavailableError, match="The end of its log: no module named nsfw_spark"):
        HostedModel(executor.spec())
