"""The scorer of a task, outside Spark: with the model host, and where none can start."""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

pytest.importorskip("pyspark")

from nsfw_spark import DeviceError, WeightsError
from nsfw_spark.model import ModelSpec, load_model
from nsfw_spark.scorer import Scorer
from nsfw_spark.spark.scorer_spec import ScorerSpec
from nsfw_spark.spark.worker import task_scorer
from tests.conftest import png
from tests.fakes import card
from tests.hidden import HIDDEN

MODEL = ModelSpec(card(), device="cpu")
ALTERED = Path(__file__).parents[1] / "altered"
"""For the path of processes in which Pillow is to be another version."""
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
    with task_scorer(ScorerSpec((MODEL,), host=host), model.fingerprint) as scorer:
        found = scorer.score(CONTENTS)
    expected = Scorer(MODEL.card, model).score(CONTENTS)
    assert [score.nsfw_score for score in found] == [score.nsfw_score for score in expected]


@pytest.mark.parametrize("host", ["auto", "off"])
def test_another_fingerprint_than_the_drivers_is_refused(host: Literal["auto", "off"]) -> None:
    with (
        pytest.raises(WeightsError, match="driver's another"),
        task_scorer(ScorerSpec((MODEL,), host=host), "another"),
    ):
        pass


@pytest.mark.parametrize("host", ["auto", "off"])
def test_a_model_with_the_same_weights_that_computes_something_else_is_refused(
    host: Literal["auto", "off"],
) -> None:
    model = load_model(MODEL)
    assert model.self_check is not None
    same = ScorerSpec((MODEL,), host=host, self_check=model.self_check)
    with task_scorer(same, model.fingerprint) as scorer:
        assert scorer.self_check == model.self_check
    other = replace(model.self_check, nsfw_score=model.self_check.nsfw_score + 0.001)
    with (
        pytest.raises(DeviceError, match=r"fake computes other scores on .* than image_scores has"),
        task_scorer(replace(same, self_check=other), model.fingerprint),
    ):
        pass


def test_an_executor_with_another_version_of_a_library_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same card, weights and fingerprint; but in the host's process Pillow's filter is another one."""
    spec = ModelSpec(card(preprocessing={"resizer": "pillow"}), device="cpu")
    model = load_model(spec)
    with task_scorer(ScorerSpec((spec,), self_check=model.self_check), model.fingerprint) as scorer:
        assert scorer.self_check == model.self_check
    monkeypatch.syspath_prepend(ALTERED)
    other = replace(spec, batch_size=8)  # of which there is no host yet
    with (
        pytest.raises(DeviceError, match="install the same versions"),
        task_scorer(ScorerSpec((other,), self_check=model.self_check), model.fingerprint),
    ):
        pass


def test_the_limits_are_those_of_the_spec() -> None:
    expected = load_model(MODEL).fingerprint
    for limits in ({"max_pixels": 1}, {"max_bytes": 10}):
        with task_scorer(ScorerSpec((MODEL,), host="off", decode=limits), expected) as scorer:
            assert "too_large" in {score.status for score in scorer.score(CONTENTS)}


def test_a_strict_scorer_is_strict_and_has_a_fingerprint_of_its_own() -> None:
    model = load_model(MODEL)
    spec = ScorerSpec((MODEL,), host="off", decode={"strict": True})
    with task_scorer(spec, f"{model.fingerprint}-strict") as scorer:
        assert scorer.score([HIDDEN["animated.gif"].content])[0].frames_scored == 6
    with pytest.raises(WeightsError, match="has the fingerprint"), task_scorer(spec, model.fingerprint):
        pass


def test_where_no_model_host_can_start_a_gpu_is_not_filled_with_models(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    spec = ScorerSpec((replace(MODEL, device="cuda"),))
    for _ in range(2):  # the next task of this Python worker too
        with pytest.raises(DeviceError, match=r"no model host can be .* the GPU \(cuda:0\).*--host off"):
            task_scorer(spec, "").__enter__()


# The last test here: from then on this process does without hosts, as a Python worker would.
def test_where_no_child_process_can_start_the_model_is_loaded_here_and_it_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    expected = load_model(MODEL)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            with task_scorer(ScorerSpec((MODEL,)), expected.fingerprint) as scorer:
                assert [score.status for score in scorer.score(CONTENTS)] == ["ok", "missing", "ok"]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "no model host can be started here" in caplog.text
    assert "--host off" in caplog.text
