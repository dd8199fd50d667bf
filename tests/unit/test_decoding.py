"""Which decoder a task gets, and how often Spark tries a task."""

from __future__ import annotations

import logging
import signal
import sys
from types import SimpleNamespace
from typing import Any, cast

import pytest

pytest.importorskip("pyspark")

from pyspark import TaskContext
from pyspark.sql import SparkSession

from nsfw_spark.decode import decode
from nsfw_spark.isolation import GuardedDecoder, IsolatedDecoder
from nsfw_spark.spark.session import tries_once
from nsfw_spark.spark.worker import task_decoder
from tests.conftest import png
from tests.fakes import WAIT, card


@pytest.fixture
def attempt(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> int:
    """Be in a task, at this attempt."""
    number: int = request.param
    task = SimpleNamespace(attemptNumber=lambda: number)
    monkeypatch.setattr(TaskContext, "get", lambda: task)
    return number


@pytest.mark.parametrize(
    ("attempt", "isolated", "kind"),
    [
        (0, False, GuardedDecoder),
        (0, True, IsolatedDecoder),
        (1, False, IsolatedDecoder),
        (3, True, IsolatedDecoder),
    ],
    indirect=["attempt"],
)
@pytest.mark.usefixtures("attempt")
def test_after_a_failed_attempt_images_are_isolated(*, isolated: bool, kind: type) -> None:
    with task_decoder(WAIT, isolated=isolated) as decoder:
        assert isinstance(decoder, kind)
        assert decoder(png(), card().preprocessing, max_pixels=10_000).header.width == 60
    assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL


@pytest.mark.parametrize("isolated", [False, True])
def test_outside_of_spark_no_process_is_put_at_risk_or_started(*, isolated: bool) -> None:
    with task_decoder(WAIT, isolated=isolated) as decoder:
        assert decoder is decode


@pytest.mark.parametrize("attempt", [1], indirect=True)
@pytest.mark.usefixtures("attempt")
def test_where_no_child_process_can_start_the_task_decodes_itself_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with caplog.at_level(logging.WARNING), task_decoder(WAIT, isolated=False) as decoder:
        assert isinstance(decoder, GuardedDecoder)
    assert "no child process can be started here" in caplog.text


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"spark.master": "local"}, True),
        ({"spark.master": "local[4]"}, True),
        ({"spark.master": "local[*]"}, True),
        ({"spark.master": "local[*, 1]"}, True),
        ({"spark.master": "local[*, 4]"}, False),
        ({"spark.master": "local[2,4]", "spark.task.maxFailures": "1"}, False),
        ({"spark.master": "local-cluster[2,2,1024]"}, False),
        ({"spark.master": "yarn"}, False),
        ({"spark.master": "yarn", "spark.task.maxFailures": "1"}, True),
        ({"spark.master": "k8s://host", "spark.task.maxFailures": "4"}, False),
        ({}, False),
    ],
)
def test_how_often_spark_tries_a_task(settings: dict[str, Any], *, expected: bool) -> None:
    """Source: SparkContext.createTaskScheduler of Spark 4; a local master says it itself."""
    assert tries_once(cast("SparkSession", SimpleNamespace(conf=settings))) == expected
