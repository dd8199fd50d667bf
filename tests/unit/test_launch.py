"""A quiet start: what a JVM prints is held back, shown if the start fails, and passed on later."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("pyspark")

ROOT = Path(__file__).parents[2]
CHILD_SECONDS = 4
CHILD = (  # like a JVM: inherits standard error, prints, and lives on
    "sh -c 'echo noise >&2; echo 12:00:00 ERROR Core: lost >&2; sleep 1; echo later >&2; sleep 3; "
    "echo last >&2'"
)


def run(body: str) -> subprocess.CompletedProcess[str]:
    code = (
        "import os, subprocess, sys, time\n"
        "from nsfw_spark.spark.launch import quiet_start\n"
        f"def start(): return subprocess.Popen({CHILD!r}, shell=True, stdout=subprocess.DEVNULL)\n{body}"
    )
    environment = {"PYTHONPATH": ":".join([str(ROOT), *sys.path]), "PATH": "/usr/bin:/bin"}
    return subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, env=environment, timeout=60
    )


def test_noise_is_dropped_and_errors_and_later_messages_are_shown() -> None:
    done = run(
        "with quiet_start(None):\n    child = start(); time.sleep(0.5)\n"
        "sys.stderr.write('mine\\n'); sys.stderr.flush(); child.wait()"
    )
    assert done.stderr.splitlines() == ["12:00:00 ERROR Core: lost", "mine", "later", "last"]


def test_a_start_that_fails_shows_everything() -> None:
    done = run(
        "try:\n  with quiet_start(None):\n    start(); time.sleep(0.5); raise RuntimeError\n"
        "except RuntimeError: time.sleep(1)"
    )
    assert done.stderr.splitlines() == ["noise", "12:00:00 ERROR Core: lost", "later"]


def test_the_end_of_the_process_waits_for_no_jvm() -> None:
    start = time.monotonic()
    done = run("with quiet_start(None):\n    child = start(); time.sleep(0.5)\ntime.sleep(1)")
    assert done.stderr.splitlines() == ["12:00:00 ERROR Core: lost", "later"]
    assert time.monotonic() - start < CHILD_SECONDS


def test_more_than_a_pipe_holds_blocks_nobody() -> None:
    done = run(
        "with quiet_start(None):\n"
        "    subprocess.run(['sh', '-c', 'yes noise | head -c 1000000 >&2'], check=True)\n"
        "    late = subprocess.Popen(['sh', '-c', 'sleep 1; yes later | head -c 1000000 >&2'])\n"
        "late.wait()"
    )
    assert len(done.stderr) == 1_000_000
    assert done.stderr.startswith("later\nlater\n")


def test_a_closed_standard_error_is_no_problem() -> None:
    done = run("os.close(2)\nwith quiet_start('Delta Lake', 0): time.sleep(0.2)\nprint('done')")
    assert (done.returncode, done.stdout) == (0, "done\n")


def test_a_download_that_takes_long_is_told_of() -> None:
    done = run("with quiet_start('Delta Lake', 0.1): time.sleep(0.5)\nwith quiet_start('more', 9): pass")
    assert done.stderr == "nsfw-spark: downloading the jars of Delta Lake, once…\n"
