"""Hostile files: each ends with a right status, in bounded memory."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from nsfw_spark.cards import load_card
from nsfw_spark.decode import decode
from nsfw_spark.errors import ImageError, Status
from tests.corpus import hostile_files
from tests.hostile import damaged, foreign, others
from tests.hostile.made import Hostile

_GIGABYTE = 1 << 30
Files = dict[str, frozenset[Status]]
Outcomes = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hostile")


@pytest.fixture(scope="module")
def files(directory: Path) -> Files:
    """Write the corpus; return the names of its files, and the statuses that they may end with."""
    written = hostile_files(directory / "files")
    assert sorted((directory / "files").iterdir()) == sorted(path for path, _ in written), "names repeat"
    return {path.name: statuses for path, statuses in written}


@pytest.fixture(scope="module", params=[[], ["--strict"]], ids=["centre", "strict"])
def outcomes(directory: Path, files: Files, request: pytest.FixtureRequest) -> Outcomes:
    """Decode the corpus, once, in a program of its own that forks for each file."""
    command = [sys.executable, "-m", "tests.outcomes", str(directory / "files"), *request.param]
    run = subprocess.run(command, capture_output=True, check=True, cwd=Path(__file__).parents[2])
    found = [json.loads(line) for line in run.stdout.splitlines()]
    assert len(found) == len(files)
    return {outcome["name"]: outcome for outcome in found}


def test_hundreds_of_hostile_files_have_exactly_one_outcome_each(files: Files, outcomes: Outcomes) -> None:
    assert len(files) >= 300
    assert outcomes.keys() == files.keys()


def test_each_hostile_file_ends_with_an_expected_status(files: Files, outcomes: Outcomes) -> None:
    wrong = {
        name: (outcome["status"], outcome["message"])
        for name, outcome in outcomes.items()
        if outcome["status"] not in files[name]
    }
    assert not wrong


def test_jpegs_can_be_encoded_again_whatever_comes_with_their_pixels() -> None:
    """As open_nsfw's preprocessing does it; their comments may be longer than an encoder takes."""
    how = load_card("open-nsfw").preprocessing
    assert how.jpeg_reencode
    for hostile in others.jpegs():
        if "ok" in hostile.statuses:
            with suppress(ImageError):  # several statuses may be right
                decode(hostile.content, how)
    (comments,) = [each.content for each in others.jpegs() if each.name == "jpeg-many-comments.jpg"]
    assert decode(comments, how).pixels.shape == (224, 224, 3)


def test_no_hostile_file_takes_a_gigabyte(outcomes: Outcomes) -> None:
    peaks = {name: outcome["peak_bytes"] for name, outcome in outcomes.items()}
    assert max(peaks.values()) > _GIGABYTE / 4, "nothing was measured"
    assert not {name: peak for name, peak in peaks.items() if peak > _GIGABYTE}


def test_what_is_too_large_names_its_limit(outcomes: Outcomes) -> None:
    refused = [outcome["message"] for outcome in outcomes.values() if outcome["status"] == "too_large"]
    assert len(refused) > 10
    for message in refused:
        assert "(--max-pixels)" in message or "the limit is" in message


@pytest.mark.parametrize("make", [damaged.flipped, foreign.foreign])
def test_the_same_files_are_made_each_time(make: Any) -> None:  # noqa: ANN401 - a maker
    first: list[Hostile] = list(make())
    assert first == list(make())
