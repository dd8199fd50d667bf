"""Run work in fresh processes that start at the same moment, and measure time, CPU, memory and power.

Work is a generator function. It yields once when it is ready, continues when all processes are ready, and
yields its result: a dictionary with at least the number of `images`. The clock runs between the two yields.
Memory is read at the end, while all processes still live.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final, Self

import psutil

Work = Callable[..., Iterator[dict[str, Any]]]
_MIB: Final = 1 << 20


@dataclass(frozen=True)
class Usage:
    """Memory and CPU time of one process."""

    uss_mib: float
    """Unique memory: the end of the process would free it."""
    rss_mib: float
    """Resident memory, including shared memory."""
    peak_mib: float | None
    """Peak resident memory; None if the system does not report it."""
    cpu_seconds: float
    """User and system time, while the clock ran."""


@dataclass(frozen=True)
class Run:
    """One run of the work."""

    seconds: float
    results: list[dict[str, Any]]
    """The result of each process."""
    usage: list[Usage]
    """The usage of each process."""
    other: Usage | None
    """The usage of the other process that was watched."""
    watts: float | None
    """Mean power of the GPU."""

    @property
    def images_per_second(self) -> float:
        """Throughput of all processes together."""
        return self.total("images") / self.seconds

    def total(self, name: str) -> float:
        """Return the sum of a number over the results of all processes."""
        return float(sum(result[name] for result in self.results))


def run(
    work: Work,
    shares: Sequence[tuple[Any, ...]],
    *,
    num_threads: int = 1,
    other: psutil.Process | None = None,
    gpu: int | None = None,
) -> Run:
    """Run work in one process for each share.

    Args:
        work: A function of a module.
        shares: Its arguments in each process.
        num_threads: Threads of the numeric libraries in each process; Spark gives a task one.
        other: Another process to watch.
        gpu: Index of a GPU, to measure its power.

    Raises:
        EOFError: A process died; its standard error says why.
    """
    context = multiprocessing.get_context("spawn")
    pipes, children = [], []
    with _environment(num_threads):
        for share in shares:
            ours, theirs = context.Pipe()
            child = context.Process(target=_work, args=(theirs, work, share), daemon=True)
            child.start()
            theirs.close()  # so that the death of the child closes the pipe
            pipes.append(ours)
            children.append(child)
    for pipe in pipes:
        pipe.recv()
    watched = [*(psutil.Process(child.pid) for child in children), *([other] if other else [])]
    cpu_before = [_cpu_seconds(process) for process in watched]
    with _Power(gpu) as power:
        started = time.perf_counter()
        for pipe in pipes:
            pipe.send("go")
        results = [pipe.recv() for pipe in pipes]
        seconds = time.perf_counter() - started
    usage = [_usage(process, cpu) for process, cpu in zip(watched, cpu_before, strict=True)]
    for pipe, child in zip(pipes, children, strict=True):
        pipe.send("end")
        child.join()
    return Run(seconds, results, usage[: len(shares)], usage[-1] if other else None, power.mean_watts)


@contextmanager
def _environment(num_threads: int) -> Iterator[None]:
    """Set the number of threads for processes that start in this context."""
    # OpenBLAS is slower with two threads for small matrices: they use a core while they wait.
    ours = {"OMP_NUM_THREADS": str(num_threads), "OPENBLAS_NUM_THREADS": "1"}
    before = dict(os.environ)
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            del os.environ[name]
        os.environ.update(before)


def _work(pipe: Connection, work: Work, share: tuple[Any, ...]) -> None:
    """Run the work in this process, one step for each message of the parent."""
    for result in work(*share):
        pipe.send(result)
        pipe.recv()


def _usage(process: psutil.Process, cpu_before: float) -> Usage:
    memory = process.memory_full_info()
    cpu_seconds = _cpu_seconds(process) - cpu_before
    return Usage(memory.uss / _MIB, memory.rss / _MIB, _peak_mib(process.pid), cpu_seconds)


def _peak_mib(pid: int) -> float | None:
    """Read the peak from Linux: getrusage would count the parent too."""
    try:
        peak = re.search(r"VmHWM:\s*(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return None
    return int(peak[1]) / 1024 if peak else None


def _cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


class _Power:
    """Mean power of a GPU, which nvidia-smi reports once a second."""

    def __init__(self, gpu: int | None) -> None:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        self._gpu = visible.split(",")[gpu] if visible and gpu is not None else gpu
        self._process: subprocess.Popen[str] | None = None
        self.mean_watts: float | None = None

    def __enter__(self) -> Self:
        if self._gpu is not None and shutil.which("nvidia-smi"):
            command = "nvidia-smi --query-gpu=power.draw --format=csv,noheader,nounits --loop=1"
            self._process = subprocess.Popen(
                [*command.split(), f"--id={self._gpu}"], stdout=subprocess.PIPE, text=True
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.terminate()
            watts = re.findall(r"^ *([\d.]+) *$", self._process.communicate()[0], re.MULTILINE)
            self.mean_watts = statistics.mean(map(float, watts)) if watts else None
