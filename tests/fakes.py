"""Stand-ins for models: numpy, deterministic, in a microsecond. Each says which property it gives."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

import numpy as np
import numpy.typing as npt
import psutil

from nsfw_spark.encoders import Encoded, Encoder
from nsfw_spark.heads import Predictions
from nsfw_spark.host import HostedModel, HostSpec, Owner
from nsfw_spark.host.directory import HostDirectory
from nsfw_spark.model import ModelSpec, Predictor
from nsfw_spark.model_card import ModelCard

if TYPE_CHECKING:  # tasks' processes import this module, and need no pytest
    import pytest

T = TypeVar("T")
Batch = npt.NDArray[np.uint8]
SMALL: Final = 28
"""Pixels: the size of images where it does not matter."""
WAIT: Final = 30.0
"""Seconds that a test waits for what is a matter of moments, however busy the machine is."""


class FakeEncoder(Encoder):
    """An image's embedding is a point on the unit circle that tells its mean brightness.

    Its first number is the brightness, 0 for black and 1 for white; so with `FakeHead` the score of a grey
    image of value v is v / 255, which tells from a score whose it is. `batches` lists the sizes of the
    batches that were encoded.
    """

    def __init__(self) -> None:
        self.device = "cpu"
        self.batches: list[int] = []

    def start(self, parts: Sequence[npt.NDArray[np.uint8]]) -> Callable[[], Encoded]:
        pixels = np.concatenate(parts)
        self.batches.append(len(pixels))
        brightness = pixels.reshape(len(pixels), -1).mean(axis=1) / 255  # (N,)
        encoded = Encoded(np.stack([brightness, np.sqrt(1 - brightness**2)], axis=1).astype(np.float32))
        return lambda: encoded


class FakeHead:
    """The score is the embedding's first number; above `broken_above` it is NaN, as a broken model's."""

    def __init__(self, broken_above: float = 1.0) -> None:
        self._broken_above = broken_above

    def score(self, encoded: Encoded) -> Predictions:
        assert encoded.embeddings is not None
        scores = encoded.embeddings[:, 0]
        return Predictions(np.where(scores > self._broken_above, np.float32(np.nan), scores))


CARD: dict[str, Any] = {
    "name": "fake",
    "summary": "Sampled pixels and a real head",
    "source": "https://example.org",
    "licence": "none",
    "encoder": {
        "library": "sampled_pixels",
        "architecture": "none",
        "embedding_dim": 768,
        "weights": {"random": 1},
    },
    "head": {
        "library": "laion",
        "weights": {"package": "nsfw_spark", "file": "models/laion/clip_autokeras_binary_nsfw.safetensors"},
    },
    "preprocessing": {"size": 224, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
    "seconds_per_image": {"cpu": 0.001, "cuda": 0.001},
}
"""The content of `card()`, for tests that write card files."""


def card_content(**changes: Any) -> dict[str, Any]:  # noqa: ANN401 - any value, wrong ones too
    """Return the content of a card; what `changes` says of a section is merged into it."""
    merged = {key: dict(value) if isinstance(value, dict) else value for key, value in CARD.items()}
    for key, value in changes.items():
        if isinstance(value, dict) and key in merged:
            merged[key].update(value)
        else:
            merged[key] = value
    return merged


def card(**changes: Any) -> ModelCard:  # noqa: ANN401
    """Return a small valid card: no download, no torch; reproducible scores that depend on the image.

    Its embeddings are `sampled_pixels` of seed 1, its head is LAION's for ViT-L/14. `changes` are those of
    `card_content`: `card(encoder={"weights": {"random": 2}})`.
    """
    return ModelCard.model_validate(card_content(**changes))


def perceptron(seed: int, layers: Sequence[int | str], score: str = "sigmoid") -> dict[str, Any]:
    """Return the section of a card that is a head with random weights."""
    return {"library": "mlp", "weights": {"random": seed}, "layers": list(layers), "score": score}


def brightness_card(path: Path, *, capacity: int = 16, breaks: bool = False) -> ModelCard:
    """Write an ONNX model whose score is an image's brightness, 0 to 1, and return its card.

    It is real in what a small device does: it asks for 64 TiB where a batch has more than `capacity` images.
    One that `breaks` takes a single image, as the built-in test image is, and none else.
    """
    from onnx import TensorProto, helper, numpy_helper, save

    constants = {"axes": [1, 2, 3], "column": [1], "full": [capacity + 1], "too_much": [2**44]}
    constants["one_image"], taken = [1, 8, 8, 3], "single" if breaks else "pixels"
    nodes = [helper.make_node("Reshape", ["pixels", "one_image"], ["single"])] if breaks else []
    nodes += [
        helper.make_node("ReduceMean", [taken, "axes"], ["brightness"], keepdims=0),  # (N,)
        helper.make_node("Unsqueeze", ["brightness", "column"], ["bright"]),  # (N, 1)
        helper.make_node("Sub", ["one", "bright"], ["dark"]),
        helper.make_node("Concat", ["dark", "bright"], ["both"], axis=1),  # (N, 2)
        helper.make_node("Shape", ["brightness"], ["num_images"]),
        helper.make_node("Div", ["num_images", "full"], ["is_too_large"]),  # 0 where it fits
        helper.make_node("Mul", ["is_too_large", "too_much"], ["num_floats"]),
        helper.make_node("ConstantOfShape", ["num_floats"], ["memory"]),
        helper.make_node("ReduceSum", ["memory"], ["zero"], keepdims=0),
        helper.make_node("Add", ["both", "zero"], ["probabilities"]),
    ]
    graph = helper.make_graph(
        nodes,
        "brightness",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["N", 8, 8, 3])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", 2])],
        [numpy_helper.from_array(np.array(values), name) for name, values in constants.items()]
        + [numpy_helper.from_array(np.float32(1), "one")],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), str(path))
    content = card_content(
        encoder={"library": "onnx", "weights": {"path": path, "random": None}, "embedding_dim": None},
        preprocessing={"size": 8, "mean": [0, 0, 0], "std": [1, 1, 1]},
    )
    content["head"] = {"library": "classes", "classes": ["dark", "bright"], "score": "probability:bright"}
    return ModelCard.model_validate(content)


def batches_of(num_batches: int, *, size: int = SMALL, first: int = 0) -> list[Batch]:
    """Return batches of 16 images, size x size: no two images are alike."""
    return [
        np.random.default_rng(first + i).integers(0, 256, (16, size, size, 3), np.uint8)
        for i in range(num_batches)
    ]


def scores_of(predictor: Predictor, batches: Iterable[Batch]) -> list[float]:
    """Return the scores of a stream, one after the other."""
    return [score for part in predictor.predict_each(batches) for score in part.nsfw_scores.tolist()]


def until(is_so: Callable[[], T], seconds: float = WAIT) -> T:
    """Wait until something is so, and return what it said; fail where it does not come true."""
    deadline = time.monotonic() + seconds
    while not (said := is_so()):
        assert time.monotonic() < deadline, f"not so after {seconds} s"
        time.sleep(0.03)
    return said


class FakeExecutor:
    """An executor: a process that owns model hosts, a temporary directory for them, and tasks.

    At its end its hosts must end too: one that outlives its owner and does not heed SIGTERM fails the test.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="nsfw-", dir="/tmp"))  # short: it is for sockets
        patch.setenv("TMPDIR", str(self.directory))
        patch.setenv("FAKE_EXECUTOR", str(self.directory))  # tells its hosts from all others
        patch.setattr(tempfile, "tempdir", None)  # Python remembers the one before
        self.process = subprocess.Popen(["sleep", "600"])  # noqa: S607
        self.owner = Owner.process(self.process.pid)
        self.threads = ThreadPoolExecutor(8)
        self._tasks: list[FakeTasks] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for tasks in self._tasks:
            tasks.kill()
        self.end()
        try:
            for host in self.hosts():
                with suppress(psutil.NoSuchProcess):
                    host.terminate()
            until(lambda: not self.hosts())
        finally:
            for host in self.hosts():
                with suppress(psutil.NoSuchProcess):
                    host.kill()
            self.threads.shutdown()
            shutil.rmtree(self.directory)

    def end(self) -> None:
        """Die, as an executor does that is killed."""
        self.process.kill()
        self.process.wait()

    def spec(self, card_: ModelCard | None = None, **changes: Any) -> HostSpec:  # noqa: ANN401
        """Return what a host of this executor holds; `changes` are those of a `HostSpec`."""
        model = ModelSpec(card_ or card(preprocessing={"size": SMALL}), device="cpu")
        return replace(HostSpec((model,), self.owner, timeout_seconds=WAIT, idle_seconds=2 * WAIT), **changes)

    def tasks(self, spec: HostSpec, num_batches: int = 0, num: int = 1) -> FakeTasks:
        """Start tasks in processes of their own."""
        self._tasks.append(FakeTasks(spec, num_batches, num))
        return self._tasks[-1]

    def hosts(self) -> list[psutil.Process]:
        """Return all hosts of this executor that run."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if process.cmdline()[1:3] == ["-m", "nsfw_spark.host"]:
                    found += [process] * (process.environ().get("FAKE_EXECUTOR") == str(self.directory))
        return found

    def directories(self) -> list[Path]:
        """Return the directories of hosts in the temporary directory."""
        return sorted(self.directory.glob("nsfw-spark-*"))

    def is_clean(self) -> bool:
        """Whether there is no host, and nothing that one left."""
        return not self.hosts() and not self.directories()


def host_of(spec: HostSpec) -> psutil.Process:
    """Return the host of a spec, as soon as it listens."""
    return psutil.Process(until(HostDirectory.of(spec.identity).read_host)["pid"])


def log_of(spec: HostSpec) -> str:
    """Return what the hosts of a spec have said, the dead ones included."""
    return HostDirectory.of(spec.identity).log.read_text()


def num_connected(spec: HostSpec) -> int:
    """Return how many tasks are connected to a spec's host."""
    directory = HostDirectory.of(spec.identity)
    if (host := directory.read_host()) is None:
        return 0
    sockets = psutil.Process(host["pid"]).net_connections("unix")
    return sum(each.laddr == str(directory.socket) for each in sockets) - 1  # it listens at one


class FakeTasks:
    """Tasks in processes of their own, which stop where a test wants to do something to them.

    That is before they ask for the model, all at once, and again in the middle of their batches.
    """

    def __init__(self, spec: HostSpec, num_batches: int, num: int) -> None:
        self._num = num
        code = "from tests.fakes import run_tasks; run_tasks()"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, spec.as_json(), str(num_batches), str(num)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[1],
            start_new_session=True,
        )
        self._watchdog = threading.Timer(2 * WAIT, self.kill)
        self._watchdog.start()

    def hear(self) -> list[dict[str, Any]]:
        """Wait for what each says next: that it waits, or at last its scores or its error."""
        assert self.process.stdout is not None
        said = [self.process.stdout.readline() for _ in range(self._num)]
        assert all(said), "a task ended, or was silent for too long and was killed"
        return [json.loads(line) for line in said]

    def go_on(self) -> None:
        """Let each go on from where it waits."""
        assert self.process.stdin is not None
        self.process.stdin.write("." * self._num)
        self.process.stdin.flush()

    def kill(self) -> None:
        """Kill them, as the kernel does."""
        self._watchdog.cancel()
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()


def run_tasks() -> None:
    """Be one of `FakeTasks`."""
    spec, num_batches, num = HostSpec.from_json(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    any(os.fork() == 0 for _ in range(num - 1))  # a child makes no more

    def say(**content: Any) -> None:  # noqa: ANN401 - as JSON has it
        os.write(1, (json.dumps(content) + "\n").encode())

    def wait(where: str) -> None:
        say(waits=where)
        os.read(0, 1)

    def batches() -> Iterator[Batch]:
        for i, batch in enumerate(batches_of(num_batches, size=spec.models[0].card.preprocessing.size)):
            if i == num_batches // 2:
                wait("in the middle")
            yield batch

    wait("at the start")
    try:
        with HostedModel(spec) as model:
            scores = scores_of(model, batches())
    except Exception as error:  # noqa: BLE001 - the test judges it
        say(error=type(error).__name__, message=str(error))
    else:
        say(scores=scores)
