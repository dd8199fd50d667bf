"""The guarded decoder of this process: its limits, its deadline, and the state that it restores."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from nsfw_spark.decode import decode
from nsfw_spark.errors import ImageError
from nsfw_spark.isolation import GuardedDecoder
from tests.conftest import jpeg, png
from tests.fakes import WAIT, card
from tests.poison import POISONOUS

ROOT = Path(__file__).parents[2]
SQUARE = card().preprocessing

DECODING = """
import sys
from nsfw_spark.errors import ImageError
from nsfw_spark.isolation import GuardedDecoder
from tests.fakes import card
from tests.poison import poisoned

with GuardedDecoder(2) as decoder:
    try:
        decoder(poisoned(sys.argv[1]), card().preprocessing)
    except ImageError as error:
        print(error.status, error)
"""


def decoding(poison: str) -> subprocess.CompletedProcess[str]:
    """Decode an image with this poison by a guarded decoder in another process."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(POISONOUS), str(ROOT)])}
    command = [sys.executable, "-c", DECODING, poison]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_native_code_that_hangs_and_keeps_the_interpreters_lock_is_ended_by_the_kernel() -> None:
    done = decoding("hang")
    assert done.returncode == -signal.SIGALRM
    assert "in _hang" in done.stderr, "the log does not say where it hung"


def test_an_image_that_takes_all_memory_is_too_large_and_the_process_lives() -> None:
    done = decoding("hoard")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("too_large decoding it takes more than 2.3 GB of memory")
    assert "max_pixels = 100000000" in done.stdout


def test_a_library_that_does_not_survive_the_limit_on_memory_ends_the_process() -> None:
    assert decoding("exhaust").returncode == -signal.SIGABRT


@pytest.fixture
def alarm() -> Iterator[None]:
    """Restore SIGALRM to the state of a new process."""
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)


@pytest.mark.usefixtures("alarm")
def test_good_and_bad_images_are_as_without_it_and_afterwards_no_limit_is_left() -> None:
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with GuardedDecoder(WAIT) as decoder:
        for content in (png(), jpeg(400, 300)):
            assert np.array_equal(decoder(content, SQUARE).pixels, decode(content, SQUARE).pixels)
            with pytest.raises(ImageError, match="damaged"):
                decoder(content[:200], SQUARE)
            assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
            assert resource.getrlimit(resource.RLIMIT_DATA) == before
    assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL


@pytest.mark.usefixtures("alarm")
def test_a_timer_of_somebody_else_runs_on() -> None:
    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 3600)
    with GuardedDecoder(WAIT) as decoder:
        decoder(png(), SQUARE)
        assert signal.getitimer(signal.ITIMER_REAL)[0] > WAIT
    assert callable(signal.getsignal(signal.SIGALRM))
