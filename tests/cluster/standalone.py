"""A standalone cluster on this machine: a master, two workers with a GPU each, and spark-submit.

The GPUs are pretended: each worker finds an `nvidia-smi` that lists one. Driver and executors run the Python
of an environment with the built wheel. Its files for spark-submit are used, and it cannot see these sources.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import psutil
import pyspark

from tests import java
from tests.cluster.commands import Command, killed_at_the_end
from tests.cluster.conftest import ROOT, command, within
from tests.unit.test_conf import put_nvidia_smi

SPARK: Final = Path(pyspark.__file__).parent
WORKERS: Final = (1, 2)
CORES: Final = 2
"""Of a worker, and so of its executor; they share a GPU."""
QUICK: Final = {**java.COLD, "spark.ui.enabled": "false"}


def install_wheel(folder: Path) -> Path:
    """Install the wheel of these sources; return its environment, which sees the packages of this one too."""
    uv, environment = Path(sys.executable).with_name("uv"), folder / "environment"
    build = ("--wheel", "--python", sys.executable, "--out-dir", folder / "dist", ROOT)
    subprocess.run([uv, "build", "--quiet", *build], check=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    install = ("--python", environment / "bin" / "python", "--no-deps", *folder.glob("dist/*.whl"))
    subprocess.run([uv, "pip", "install", "--quiet", *install], check=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    # Python reads no .pth files in a directory that a .pth file adds: it sees no editable install.
    (packages / "this.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    return environment


class Standalone:
    """A master and two workers, each in a process group of its own."""

    def __init__(self, folder: Path, environment: Path, hosts: Path) -> None:
        """Start nothing yet.

        Args:
            folder: For logs, the executors' directories, and settings.
            environment: Of `install_wheel`.
            hosts: TMPDIR; its name is short, as it becomes part of a socket's.
        """
        self.folder, self.hosts = folder, hosts
        self.share = environment / "share" / "nsfw-spark"
        self._python = environment / "bin" / "python"
        ours = ("PYTHON", "PYSPARK_", "SPARK_", "CUDA_VISIBLE_DEVICES", "VIRTUAL_ENV")
        path = os.environ["PATH"].split(os.pathsep)
        self._environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith(ours)},
            # Without the Python that sees these sources.
            "PATH": os.pathsep.join(entry for entry in path if entry != str(Path(sys.executable).parent)),
            "SPARK_HOME": str(SPARK),
            "SPARK_LOCAL_IP": "127.0.0.1",
            "SPARK_LOCAL_DIRS": str(folder / "local"),
            "SPARK_DAEMON_MEMORY": "256m",
            "TMPDIR": str(hosts),
            "NSFW_SPARK_LOG": "DEBUG",
            "JDK_JAVA_OPTIONS": java.OPTIONS,
        }
        self._daemons: dict[str | int, Command] = {}
        self._master = ""

    def start(self) -> None:
        """Start the master and the workers, once the jars that the properties file names are downloaded."""
        java.s3_jars()
        self._daemons["master"] = self._daemon("master", "Master", "--port", 0)
        self._master = self._said("master", r"Starting Spark master at (spark://\S+)")
        for number in WORKERS:
            self.start_worker(number)
        for number in WORKERS:
            self._said(number, "(Successfully registered)")

    def start_worker(self, number: int) -> None:
        """Start a worker with a GPU."""
        path = self.folder / f"gpu-{number}"
        path.mkdir(exist_ok=True)
        put_nvidia_smi(path, f"{number}, GPU-{number}, Disabled\n")
        gpu = "-Dspark.worker.resource.gpu"
        options = f"{gpu}.amount=1 {gpu}.discoveryScript={self.share}/conf/discover_gpus.sh"
        more = {
            "PATH": f"{path}{os.pathsep}{self._environment['PATH']}",
            "SPARK_WORKER_CORES": str(CORES),
            "SPARK_WORKER_MEMORY": "1g",
            "SPARK_WORKER_OPTS": options,
        }
        work = ("--work-dir", self.folder / "work" / str(number))
        self._daemons[number] = self._daemon(f"worker-{number}", "Worker", *work, self._master, **more)

    def kill_worker(self, number: int) -> None:
        """Kill a worker and its executor."""
        self._daemons[number].kill()

    def kill_executor(self, number: int) -> None:
        """Kill a worker's executor; the worker starts another."""
        for child in psutil.Process(self._daemons[number].process.pid).children():
            if any("CoarseGrainedExecutorBackend" in word for word in command(child)):
                child.kill()

    @contextmanager
    def submitted(self, folder: Path, *arguments: object) -> Iterator[Command]:
        """Submit `jobs/run.py` with conf/standalone-gpu.conf; kill the driver if the test leaves early."""
        quick = [word for key, value in QUICK.items() for word in ("--conf", f"{key}={value}")]
        words = [SPARK / "bin" / "spark-submit", "--properties-file", self._settings(), *quick]
        words += [self.share / "jobs" / "run.py", *arguments]
        with killed_at_the_end(Command(folder, *words, environment=self._environment)) as submitted:
            yield submitted

    def executors(self, number: int | str = "*") -> list[Path]:
        """Return the directories of the executors of a worker, or of all."""
        return sorted(path.parent for path in self.folder.glob(f"work/{number}/app-*/*/stderr"))

    def log(self, number: int | str = "*") -> str:
        """Return what these executors wrote, the lines of their model hosts among it."""
        return "".join((path / "stderr").read_text() for path in self.executors(number))

    def tasks_with_images(self, number: int) -> int:
        """Return how many tasks of a worker have scored images."""
        return len(re.findall(r"model host \d+: task .*: [1-9]\d* images on", self.log(number)))

    def left_behind(self) -> list[str]:
        """Return what drivers have left, 10 seconds after their end at the latest."""
        within(10, lambda: not self._left_behind())
        return self._left_behind()

    def stop(self) -> None:
        """Kill all that is left."""
        for daemon in self._daemons.values():
            daemon.kill()

    def _left_behind(self) -> list[str]:
        ours = {daemon.process.pid for daemon in self._daemons.values()}
        others = [process for process in psutil.process_iter() if process.pid not in ours]
        left = [" ".join(command(process)) for process in others if self._is_of_cluster(process)]
        return [*filter(None, left), *map(str, self.hosts.glob("nsfw-spark-*"))]

    def _is_of_cluster(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get("TMPDIR") == str(self.hosts)
        except psutil.Error:
            return False

    def _daemon(self, name: str, kind: str, *arguments: object, **more: str) -> Command:
        environment = {**self._environment, **more}
        its_class = f"org.apache.spark.deploy.{kind.lower()}.{kind}"
        words = (SPARK / "bin" / "spark-class", its_class, "--host", "127.0.0.1", "--webui-port", 0)
        return Command(self.folder / name, *words, *arguments, environment=environment)

    def _said(self, name: str | int, pattern: str) -> str:
        """Wait until a daemon has written something; return the group of the pattern."""
        daemon = self._daemons[name]
        daemon.until(lambda: re.search(pattern, daemon.stderr()))
        found = re.search(pattern, daemon.stderr())
        assert found, daemon.stderr()
        return found[1]

    def _settings(self) -> Path:
        """Write conf/standalone-gpu.conf, with the edits that its comments ask for."""
        text = (self.share / "conf" / "standalone-gpu.conf").read_text(encoding="utf-8")
        edits = {
            "spark.master": self._master,
            "spark.pyspark.python": self._python,
            "spark.cores.max": CORES * len(WORKERS),
            "spark.executor.cores": CORES,
            "spark.task.resource.gpu.amount": 1 / CORES,
            "spark.executor.memory": "1g",
            "spark.driver.memory": "1g",
        }
        for key, value in edits.items():
            text, num = re.subn(rf"^({re.escape(key)} +)\S+$", rf"\g<1>{value}", text, flags=re.MULTILINE)
            assert num == 1, key
        path = self.folder / "standalone-gpu.conf"
        path.write_text(text, encoding="utf-8")
        return path
