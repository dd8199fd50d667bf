"""The scorer of a task, outside Spark: with the model host, and where none can start."""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

pytest.importorskip("pyspark")

from nsfw_spark import WeightsError
from nsfw_spark.model import ModelSpec, load_model
from nsfw_spark.scorer import Scorer
from nsfw_spark.spark.worker import ScorerSpec, task_scorer
from tests.conftest import png
from tests.fakes import card

MODEL = ModelSpec(card(), device="cpu")
CONTENTS = [png(seed=1), None, png(seed=2)]


@pytest.fixture(autouse=True)
def executor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An executor as Spark describes it; with its directory its model host ends."""
    directory = tmp_path / "blockmgr"
    directory.mkdir()
    monkeypatch.setenv("SPARK_LOCAL_DIRS", str(directory))
    yield
    shutil.rmtree(directory)


@pytest.mark.parametrize("host", ["auto", "off"])
def test_where_the_model_is_does_not_change_a_score(host: Literal["auto", "off"]) -> None:
    model = load_model(MODEL)
    with task_scorer(ScorerSpec(MODEL, host=host), model.fingerprint) as scorer:
        found = scorer.score(CONTENTS)
    expected = Scorer(MODEL.card, model).score(CONTENTS)
    assert [score.nsfw_score for score in found] == [score.nsfw_score for score in expected]


@pytest.mark.parametrize("host", ["auto", "off"])
def test_another_fingerprint_than_the_drivers_is_refused(host: Literal["auto", "off"]) -> None:
    with (
        pytest.raises(WeightsError, match="driver's another"),
        task_scorer(ScorerSpec(MODEL, host=host), "another"),
    ):
        pass


# The last test here: from then on this process does without hosts, as a Python worker would.
def test_where_no_child_process_can_start_the_model_is_loaded_here_and_it_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    expected = load_model(MODEL)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            with task_scorer(ScorerSpec(MODEL), expected.fingerprint) as scorer:
                assert [score.status for score in scorer.score(CONTENTS)] == ["ok", "missing", "ok"]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "no model host can be started here" in caplog.text
    assert "--host off" in caplog.text
