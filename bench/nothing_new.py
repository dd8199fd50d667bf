"""How long does `run` take if nothing is new among many scored files?

Makes many tiny images, scores them once, and then runs the job again, each time in a fresh process. Spark is
up before the clock starts. The result is the cost of a nightly job in a quiet night.

    python bench/nothing_new.py [--files 100000] [--rounds 3]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from images import make_images

from nsfw_spark.options import job_options
from nsfw_spark.spark.pipeline import run_job
from nsfw_spark.spark.session import get_session

_CARD: Final = Path(__file__).parent / "free-encoder.yaml"
_SIZE: Final = (8, 8)
_DISTINCT: Final = 100


def main() -> None:
    """Run the benchmark and print its result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work-dir", type=Path, default=Path(tempfile.gettempdir()) / "nsfw-spark-bench")
    parser.add_argument("--once", action="store_true", help="only run the job and print its seconds")
    given = parser.parse_args()

    images, out = given.work_dir / f"tiny-{given.files}", given.work_dir / "nothing-new"
    if given.once:
        print(json.dumps(_run(images, out)))
        return
    make_images(images, _SIZE, num_files=given.files, num_distinct=_DISTINCT)
    shutil.rmtree(out, ignore_errors=True)
    first, *again = [_in_a_fresh_process() for _ in range(1 + given.rounds)]
    if first["images"] != given.files or any(each["images"] for each in again):
        sys.exit(f"got {[first, *again]}; expected {given.files} new images in the first run, then none")
    print(json.dumps(_result(given, first, again), indent=2))


def _in_a_fresh_process() -> dict[str, Any]:
    load = os.getloadavg()[0]  # over the minute before: other work on the machine
    command = [sys.executable, *sys.argv, "--once"]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    measured = {**json.loads(printed.splitlines()[-1]), "load_before": load}
    sys.stderr.write(json.dumps(measured) + "\n")
    return measured


def _run(images: Path, out: Path) -> dict[str, Any]:
    options = {"input": str(images), "output": str(out), "model": str(_CARD), "allow_random_weights": True}
    get_session()
    started = time.perf_counter()
    summary = run_job(job_options(options))
    return {"images": summary.counts.images, "seconds": round(time.perf_counter() - started, 2)}


def _result(given: argparse.Namespace, first: dict[str, Any], again: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "benchmark": "nothing_new",
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "versions": {library: metadata.version(library) for library in ("pyspark", "delta-spark")},
        "files": given.files,
        "seconds": statistics.median(each["seconds"] for each in again),
        "rounds": again,
        "scoring_them_first": first,
    }


if __name__ == "__main__":
    main()
