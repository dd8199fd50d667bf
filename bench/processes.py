"""Runs a piece of work in fresh processes that all begin at the same moment, and measures what it takes.

Work is a generator function: it yields when it is ready, is resumed when all are, and yields what there is to
say when it is done: a dictionary with at least the number of `images`. What it does before and after that
costs nothing. Memory is read at its end, while all processes still live.
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
    """Of one process."""

    uss_mib: float
    """Unique memory: what would be free if it ended."""
    rss_mib: float
    """Resident memory, with what it shares."""
    peak_mib: float | None
    """The most that was ever resident; None where the system does not say."""
    cpu_seconds: float
    """User and system, while the work was done."""


@dataclass(frozen=True)
class Run:
    """Some work, done once."""

    seconds: float
    said: list[dict[str, Any]]
    """By each process."""
    usage: list[Usage]
    """Of each process."""
    other: Usage | None
    """Of the other process that was watched."""
    watts: float | None
    """Mean power of the GPU."""

    @property
    def images_per_second(self) -> float:
        """Of all processes together."""
        return self.total("images") / self.seconds

    def total(self, what: str) -> float:
        """Add up what the processes said."""
        return float(sum(said[what] for said in self.said))


def run(
    work: Work,
    shares: Sequence[tuple[Any, ...]],
    *,
    num_threads: int = 1,
    other: psutil.Process | None = None,
    gpu: int | None = None,
) -> Run:
    """Do some work in as many processes as there are shares.

    Args:
        work: A function of a module.
        shares: Its arguments in each process.
        num_threads: Of the numeric libraries of each; Spark gives a task's Python one.
        other: A process that is watched too.
        gpu: Whose power is watched.

    Raises:
        EOFError: A process died; its standard error says of what.
    """
    context = multiprocessing.get_context("spawn")
    pipes, children = [], []
    with _environment(num_threads):
        for share in shares:
            ours, theirs = context.Pipe()
            child = context.Process(target=_work, args=(theirs, work, share), daemon=True)
            child.start()
            theirs.close()  # so that its death ends the pipe
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
        said = [pipe.recv() for pipe in pipes]
        seconds = time.perf_counter() - started
    usage = [_usage(process, cpu) for process, cpu in zip(watched, cpu_before, strict=True)]
    for pipe, child in zip(pipes, children, strict=True):
        pipe.send("end")
        child.join()
    return Run(seconds, said, usage[: len(shares)], usage[-1] if other else None, power.mean_watts)


@contextmanager
def _environment(num_threads: int) -> Iterator[None]:
    """Set the number of threads for processes that are started meanwhile."""
    # Small products of matrices are slower on two threads of OpenBLAS, which burn a core while they wait.
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
    """Do the work in this process, step by step as the other end says."""
    for said in work(*share):
        pipe.send(said)
        pipe.recv()


def _usage(process: psutil.Process, cpu_before: float) -> Usage:
    memory = process.memory_full_info()
    cpu_seconds = _cpu_seconds(process) - cpu_before
    return Usage(memory.uss / _MIB, memory.rss / _MIB, _peak_mib(process.pid), cpu_seconds)


def _peak_mib(pid: int) -> float | None:
    """Read it from Linux: getrusage would count the process that started this one."""
    try:
        peak = re.search(r"VmHWM:\s*(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return None
    return int(peak[1]) / 1024 if peak else None


def _cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


class _Power:
    """Has nvidia-smi tell a GPU's power once a second."""

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
