"""Clusters on this machine: separate executors, pretended GPUs, and what their logs say afterwards."""

from __future__ import annotations

import fcntl
import json
import os
import pickle
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psutil
import pytest
import yaml

from tests import java
from tests.fakes import card_content

if TYPE_CHECKING:
    from tests.cluster.kills import Undisturbed

HERE: Final = Path(__file__).parent
ROOT: Final = HERE.parents[1]


@pytest.fixture(scope="session", autouse=True)
def _need_spark() -> None:
    java.need_spark()


@pytest.fixture(scope="session")
def card(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A card file whose model costs nothing."""
    path = tmp_path_factory.mktemp("card") / "sampled.yaml"
    path.write_text(yaml.safe_dump(card_content(name="sampled")), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """Sources and outputs of undisturbed runs, read only: the first test process makes them, all use them."""
    from tests.cluster.kills import Undisturbed

    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    made = shared / "undisturbed.pickle"
    with (shared / "undisturbed.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            made.write_bytes(pickle.dumps(Undisturbed(shared / "undisturbed")))
    undisturbed: Undisturbed = pickle.loads(made.read_bytes())  # noqa: S301 - written above
    return undisturbed


@pytest.fixture(scope="module")
def own_tmpdir() -> Iterator[None]:
    """A TMPDIR for killed commands, removed with what they left; its name is short, as sockets' must be."""
    short = tempfile.TemporaryDirectory(prefix="k", dir="/tmp", ignore_cleanup_errors=True)
    with short as directory, pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", directory)
        yield


@dataclass
class Cluster:
    """Runs a driver of `drivers.py` on a cluster of its own, and reads what it left.

    Spark's home is a copy in links, so that the executors' logs lie in the test's own directory; the model
    hosts' homes lie in a directory of the test too, so that one can see what they leave behind.
    """

    folder: Path
    hosts: Path
    """TMPDIR of driver and executors; its name is short, as it becomes part of a socket's."""
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        import pyspark

        home = self.folder / "spark"
        home.mkdir(parents=True)
        for entry in Path(pyspark.__file__).parent.iterdir():
            if entry.name != "work":  # where executors write, if anybody ran them in pyspark's own home
                (home / entry.name).symlink_to(entry)
        path = [str(ROOT), *filter(None, sys.path)]
        self.environment = {
            **{key: value for key, value in os.environ.items() if key != "CUDA_VISIBLE_DEVICES"},
            "PYTHONPATH": os.pathsep.join(path),
            "PYSPARK_PYTHON": sys.executable,
            "SPARK_HOME": str(home),
            "TMPDIR": str(self.hosts),
            "NSFW_SPARK_LOG": "DEBUG",
            **java.quick(),
        }

    def start(self, driver: str, master: str, **arguments: object) -> subprocess.Popen[str]:
        """Start a driver: a function of `drivers.py`."""
        # An empty folder, which no executor has as its own: what is relative must fail there.
        cwd = self.folder / "cwd"
        cwd.mkdir(exist_ok=True)
        with (self.folder / "stderr").open("a") as stderr:
            return subprocess.Popen(
                [
                    sys.executable,
                    str(HERE / "drivers.py"),
                    driver,
                    master,
                    json.dumps(arguments, default=str),
                ],
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                cwd=cwd,
                env=self.environment,
            )

    def result(self, process: subprocess.Popen[str]) -> Any:  # noqa: ANN401 - whatever the driver prints
        """Wait for a driver; return the JSON of its last line."""
        said, _ = process.communicate()
        assert process.returncode == 0, (self.folder / "stderr").read_text()[-20_000:]
        return json.loads(said.splitlines()[-1])

    def run(self, driver: str, master: str, **arguments: object) -> Any:  # noqa: ANN401
        return self.result(self.start(driver, master, **arguments))

    def log(self) -> str:
        """Return what driver and executors wrote to standard error, the hosts' lines among it."""
        executors = sorted((self.folder / "spark" / "work").glob("*/*/stderr"))
        return "".join(path.read_text() for path in [self.folder / "stderr", *executors])

    def loads(self) -> list[str]:
        """Return the requested device of each load that the hosts report."""
        return re.findall(r"model host \d+: loaded \S+ on \S+ \(requested: (\S+)\)", self.log())

    def running_hosts(self) -> list[psutil.Process]:
        """Return the hosts that run now."""
        return [
            process
            for process in psutil.process_iter()
            if _is_host(process) and str(self.hosts) in " ".join(command(process))
        ]

    def left_behind(self) -> list[str]:
        """Return what hosts have left, 10 seconds after the end at the latest."""
        within(10, lambda: not self.running_hosts() and not list(self.hosts.glob("nsfw-spark-*")))
        return [*map(str, self.running_hosts()), *map(str, self.hosts.glob("nsfw-spark-*"))]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A cluster's folders; fails the test if a model host is still there 10 seconds after its end."""
    with tempfile.TemporaryDirectory(prefix="h", dir="/tmp", ignore_cleanup_errors=True) as hosts:
        cluster = Cluster(tmp_path / "cluster", Path(hosts))
        yield cluster
        assert cluster.left_behind() == []


def within(seconds: float, condition: Callable[[], object]) -> bool:
    """Wait until a condition is true; return whether it became so in time."""
    deadline = time.monotonic() + seconds
    while True:
        begun = time.monotonic()
        if condition():
            return True
        now = time.monotonic()
        if now > deadline:
            return False
        time.sleep(max(0.01, 4 * (now - begun)))  # a fifth of a core: the tested processes need the others


def _is_host(process: psutil.Process) -> bool:
    return "nsfw_spark.host" in command(process)


def command(process: psutil.Process) -> list[str]:
    """Return a process's command line; nothing of one that has ended."""
    try:
        return [] if process.status() == psutil.STATUS_ZOMBIE else process.cmdline()
    except psutil.Error:
        return []
