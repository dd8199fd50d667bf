"""The command on an S3 server, with as many files as a small night has."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from tests import java
from tests.cluster.commands import FILTERED, Row, rows, running
from tests.conftest import png
from tests.s3 import FORBIDDEN, PYTHON, READS, Fault, S3Server
from tests.spark.test_s3 import QUICK, parquet
from tests.spark.test_sources import samples, tar

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("own_tmpdir")]

FORMATS: Final = {"webdataset": ("tar", 20, 14), "parquet": ("parquet", 5, 4)}
"""Suffix, number of files, and how many of them the store gives out in part, or not at all."""
NUM: Final = 50
"""Images of a tar, or of a Parquet file."""

Night = Callable[..., Row]


@pytest.fixture
def store() -> Iterator[S3Server]:
    """A server of this test's own."""
    java.s3_jars()
    with S3Server() as server:
        yield server


@pytest.fixture
def night(store: S3Server, card: Path, tmp_path: Path) -> Night:
    """Runs the command over s3a://bucket/in, with options; returns its JSON document."""
    settings = {f"spark.hadoop.{key}": value for key, value in {**store.settings, **QUICK}.items()}
    model = ("--model", card, "--allow-random-weights", "--device", "cpu", "--threshold", 0.002)

    def run(*options: object, status: int = 0) -> Row:
        words = ("run", "s3a://bucket/in", "--output", "s3a://bucket/out", *model, *options)
        with running(tmp_path / "cwd", *words, settings=settings) as command:
            return command.end(status)

    return run


def scored(store: S3Server, folder: Path) -> dict[str, Row]:
    """Return image_scores by the image's name; each row is in one filtered table."""
    store.copy_to(folder, "s3a://bucket/out")
    found = rows(folder / "image_scores")
    assert sorted(image_id for table in FILTERED for image_id in rows(folder / table)) == sorted(found)
    return {image_id.rpartition("/")[2]: row for image_id, row in found.items()}


@pytest.mark.parametrize("format_", FORMATS)
def test_a_store_that_fails_while_archives_are_read_costs_no_image(
    store: S3Server, night: Night, tmp_path: Path, format_: str
) -> None:
    suffix, num_files, num_lost = FORMATS[format_]
    make = parquet if format_ == "parquet" else lambda first, num: tar(samples(first, num))
    files = {f"{i:02}.{suffix}": make(NUM * i, NUM) for i in range(num_files)}
    store.put("s3a://bucket/in", files)
    half = len(files[f"00.{suffix}"]) // 2
    store.faults = [
        Fault(None, keys=rf"/0[02]\.{suffix}", operations=("GET",), client=PYTHON, cut_at=half),
        Fault(keys=rf"/(1\d|0[34])\.{suffix}", operations=READS, client=PYTHON),
    ]
    said = night("--format", format_, status=3)
    assert said["files_lost"] == num_lost
    assert NUM * (num_files - num_lost) <= said["ok"] < NUM * num_files
    store.faults = []
    said = night("--format", format_)
    found = scored(store, tmp_path / "first")
    assert (len(found), {row["status"] for row in found.values()}) == (NUM * num_files, {"ok"})
    assert said["files_lost"] == 0
    store.put("s3a://bucket/in", {f"new.{suffix}": make(NUM * num_files, NUM)})
    assert night("--format", format_)["ok"] == NUM
    assert len(scored(store, tmp_path / "second")) == NUM * (num_files + 1)


def test_one_forbidden_object_of_a_thousand_is_one_row_and_new_images_are_scored(
    store: S3Server, night: Night, tmp_path: Path
) -> None:
    num = 1_000
    store.put("s3a://bucket/in", {f"{i:04}.png": png(seed=i) for i in range(num)})
    store.faults = [Fault(FORBIDDEN, keys="0500.png", operations=READS)]
    said = night()
    assert (said["images"], said["ok"], said["quarantined"], said["files_lost"]) == (num, num - 1, 1, 0)
    found = scored(store, tmp_path / "first")
    assert len(found) == num
    assert found["0500.png"]["status"] == "missing"
    assert "could not be read" in found["0500.png"]["error"]
    store.put("s3a://bucket/in", {f"new-{i}.png": png(seed=num + i) for i in range(10)})
    assert night()["ok"] == 10
    assert len(scored(store, tmp_path / "second")) == num + 10
