"""What do hostile files cost a run, and does each of them end as one row?

Makes two directories: good photographs alone, and the same with the corpus of `tests/hostile` among them.
`nsfw-spark run` scores each in a process of its own, as for a user, interleaved, in several rounds. The
result has the exit status, the seconds, the rows by status, the files without exactly one row, and the failed
attempts of tasks (from Spark's event log), where a storm of retries would show.

    python bench/hostile.py [--model open-nsfw] [--good 2000] [--size 500x375] [--rounds 3]
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
from collections import Counter
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

from deltalake import DeltaTable
from images import make_images

_ROOT: Final = Path(__file__).parent.parent
sys.path.insert(0, str(_ROOT))
from tests.corpus import hostile_files  # noqa: E402 - beside the package, not in it

_FREE: Final = str(Path(__file__).parent / "free-encoder.yaml")


def main() -> None:
    """Run the benchmark and print its result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="open-nsfw", help="model card; `free` costs nothing")
    parser.add_argument("--good", type=int, default=2_000)
    parser.add_argument("--size", default="500x375", help="width x height of the good images")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work-dir", type=Path, default=Path(tempfile.gettempdir()) / "nsfw-spark-bench")
    given = parser.parse_args()

    good, both, num_hostile = _directories(given)
    rounds = []
    for _ in range(given.rounds):
        ways = {"good": _run(given, good), "with_hostile": _run(given, both)}
        rounds.append({**ways, "ratio": round(ways["with_hostile"]["seconds"] / ways["good"]["seconds"], 2)})
        sys.stderr.write(f"{json.dumps(rounds[-1])}\n")
    print(json.dumps(_result(given, num_hostile, rounds), indent=2))


def _directories(given: argparse.Namespace) -> tuple[Path, Path, int]:
    """Return the directories without and with hostile files, and how many are hostile; make them first."""
    width, height = (int(side) for side in given.size.split("x"))
    good = given.work_dir / f"good-{given.size}-{given.good}"
    make_images(good, (width, height), num_files=given.good, num_distinct=min(given.good, 1_000))
    both = given.work_dir / f"hostile-{given.size}-{given.good}"
    shutil.rmtree(both, ignore_errors=True)
    shutil.copytree(good, both, copy_function=os.link)
    return good, both, len(hostile_files(both / "hostile"))


def _run(given: argparse.Namespace, images: Path) -> dict[str, Any]:
    output, logs = given.work_dir / "hostile-out", given.work_dir / "hostile-events"
    for directory in (output, logs):
        shutil.rmtree(directory, ignore_errors=True)
    logs.mkdir()
    log = {"enabled": "true", "dir": logs.as_uri(), "compress": "false"}
    settings = " ".join(f"--conf spark.eventLog.{name}={value}" for name, value in log.items())
    model = [_FREE, "--allow-random-weights"] if given.model == "free" else [given.model]
    command = [sys.executable, "-m", "nsfw_spark", "run", images, "--output", output, "--model", *model]
    started = time.perf_counter()
    process = subprocess.run(
        command, env={**os.environ, "PYSPARK_SUBMIT_ARGS": f"{settings} pyspark-shell"}, check=False
    )
    seconds = time.perf_counter() - started
    return {
        "seconds": round(seconds, 1),
        "exit_status": process.returncode,
        **_rows(images, output),
        **_attempts(logs),
    }


def _rows(images: Path, output: Path) -> dict[str, Any]:
    """Count the rows by status, and name the files without exactly one row."""
    table = DeltaTable(output / "image_scores").to_pyarrow_table(columns=["image_id", "status"])
    rows = Counter(unquote(id_.removeprefix("file:")) for id_ in table["image_id"].to_pylist())
    files = {str(path) for path in images.rglob("*") if path.is_file()}
    return {
        "files": len(files),
        "without_one_row": sorted(path for path in files | set(rows) if rows[path] != 1 or path not in files),
        "statuses": dict(Counter(table["status"].to_pylist()).most_common()),
    }


def _attempts(logs: Path) -> dict[str, int]:
    """Count the attempts of tasks in Spark's event log."""
    events = [json.loads(line) for path in logs.rglob("*events*") if path.is_file() for line in path.open()]
    ends = [
        event["Task End Reason"]["Reason"] for event in events if event["Event"] == "SparkListenerTaskEnd"
    ]
    return {"attempts": len(ends), "failed_attempts": sum(reason != "Success" for reason in ends)}


def _result(given: argparse.Namespace, num_hostile: int, rounds: list[dict[str, Any]]) -> dict[str, Any]:
    packages = ("pyspark", "delta-spark", "pillow", "numpy", "pyarrow")
    return {
        "command": f"bench/hostile.py {' '.join(sys.argv[1:])}".strip(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": given.model,
        "hostile_files": num_hostile,
        "median_ratio": statistics.median(each["ratio"] for each in rounds),
        "rounds": rounds,
        "machine": {
            "cores": os.cpu_count(),
            "platform": platform.platform(),
            "python": sys.version.split()[0],
        },
        "versions": {name: metadata.version(name) for name in packages},
    }


if __name__ == "__main__":
    main()
