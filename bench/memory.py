"""Does memory grow with the number of images?

Runs the job over small images and measures after each micro-batch: the resident memory of the Python workers,
of the driver's Python process and of its Java process (in local mode also the executor), and the live part of
the Java heap after a collection. Prints all of them, and the ratio of the last to the first.

    python bench/memory.py [--files 10000] [--files-per-batch 2000]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Any

from images import make_images
from pyspark.sql import SparkSession

from nsfw_spark.options import job_options
from nsfw_spark.spark.pipeline import run_job
from nsfw_spark.spark.session import get_session

_CARD = Path(__file__).parent / "free-encoder.yaml"
_MIB = 1 << 20


def main() -> None:
    """Run the benchmark and print its result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--files-per-batch", type=int, default=2_000)
    parser.add_argument("--work-dir", type=Path, default=Path(tempfile.gettempdir()) / "nsfw-spark-bench")
    given = parser.parse_args()

    images = given.work_dir / f"200x150-{given.files}"
    make_images(images, (200, 150), num_files=given.files, num_distinct=min(2_000, given.files))
    measured = _measure_while_running(images, given)
    first, last = measured[0], measured[-1]
    result = {
        "benchmark": "memory",
        "files": given.files,
        "files_per_batch": given.files_per_batch,
        "mib_after_each_micro_batch": measured,
        "last_over_first": {key: round(last[key] / first[key], 3) for key in first},
    }
    print(json.dumps(result, indent=2))


def _measure_while_running(images: Path, given: argparse.Namespace) -> list[dict[str, float]]:
    out = given.work_dir / "out"
    shutil.rmtree(out, ignore_errors=True)
    spark = get_session()
    options = job_options(
        {
            "input": str(images),
            "output": str(out),
            "model": str(_CARD),
            "allow_random_weights": True,
            "files_per_batch": given.files_per_batch,
        }
    )
    job = threading.Thread(target=run_job, args=(options,))
    job.start()
    measured: list[dict[str, float]] = []
    while job.is_alive():
        job.join(0.2)
        if len(_scored_batches(spark)) > len(measured):
            measured.append(_measure(spark))
    return measured


def _scored_batches(spark: SparkSession) -> list[Any]:
    return [p for query in spark.streams.active for p in query.recentProgress if p.numInputRows]


def _measure(spark: SparkSession) -> dict[str, float]:
    java = spark._jvm.java.lang  # type: ignore[union-attr]  # noqa: SLF001
    java.System.gc()
    runtime = java.Runtime.getRuntime()
    resident = _resident_of_descendants()
    return {
        "python_workers": sum(mib for command, mib in resident if "pyspark.daemon" in command),
        "driver_python": _processes()[os.getpid()][2],
        "driver_java": sum(mib for command, mib in resident if "SparkSubmit" in command),
        "driver_java_live": (runtime.totalMemory() - runtime.freeMemory()) / _MIB,
    }


def _resident_of_descendants() -> list[tuple[str, float]]:
    """Return the command and resident MiB of each descendant of this process."""
    processes = _processes()
    ours = {os.getpid()}
    for pid, (parent, _, _) in sorted(processes.items()):  # a child has a higher number than its parent
        if parent in ours:
            ours.add(pid)
    return [processes[pid][1:] for pid in ours if pid in processes]


def _processes() -> dict[int, tuple[int, str, float]]:
    """Return the parent, command and resident MiB of every process by its number."""
    listing = subprocess.run(
        ["ps", "-eo", "pid=,ppid=,rss=,args="], capture_output=True, text=True, check=True
    )
    rows = (line.split(maxsplit=3) for line in listing.stdout.splitlines())
    return {int(row[0]): (int(row[1]), row[3], int(row[2]) / 1024) for row in rows if len(row) == 4}


if __name__ == "__main__":
    main()
