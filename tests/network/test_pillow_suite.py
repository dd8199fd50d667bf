"""Every image of Pillow's own test suite ends as one row with a sensible status: docs/pillow-suite.md."""

from __future__ import annotations

import os
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import PIL
import pytest
from deltalake import DeltaTable
from PIL import Image

from nsfw_spark.decode import FORMATS
from tests import java
from tests.pillow_suite import outcomes, page, suite

_ROOT = Path(__file__).parents[2]
_PAGE = _ROOT / "docs" / "pillow-suite.md"
_NAMES = (".jpg", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".avif", ".mpo")
_GIGABYTE = 1 << 30


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return suite(tmp_path_factory.mktemp("pillow"))


@pytest.fixture(scope="module")
def rows(images: Path) -> list[dict[str, Any]]:
    return outcomes(images)


def test_each_file_is_one_row_with_a_status(images: Path, rows: list[dict[str, Any]]) -> None:
    assert sorted(row["name"] for row in rows) == sorted(path.name for path in images.iterdir())
    assert {row["status"] for row in rows} <= {"ok", "unsupported", "undecodable", "too_large"}


def test_a_run_gives_each_file_the_same_status(
    images: Path, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "nsfw_spark", "run", images, "--output", tmp_path / "out"]
    options = ["--format", "files", "--model", "open-nsfw", "--max-error-rate", "1"]
    subprocess.run([*command, *options], check=True, env={**os.environ, **java.quick()}, cwd=_ROOT)
    table = DeltaTable(tmp_path / "out" / "image_scores").to_pyarrow_table(columns=["image_id", "status"])
    found = [(row["image_id"].rpartition("/")[2], row["status"]) for row in table.to_pylist()]
    assert sorted(found) == sorted((row["name"], row["status"]) for row in rows)


def test_most_files_with_a_decoded_formats_name_are_ok(rows: list[dict[str, Any]]) -> None:
    named = [row["status"] for row in rows if row["name"].endswith(_NAMES)]
    assert len(named) > 600
    assert named.count("ok") / len(named) > 0.9


@pytest.mark.filterwarnings("ignore")  # of odd metadata
def test_what_is_not_decoded_pillow_does_not_decode_either(images: Path, rows: list[dict[str, Any]]) -> None:
    damaged = [row["name"] for row in rows if row["status"] == "undecodable"]
    assert len(damaged) > 10
    for name in damaged:
        with pytest.raises(Exception):  # noqa: B017, PT011 - whatever it raises
            Image.open(BytesIO((images / name).read_bytes()), formats=FORMATS).load()


def test_none_takes_a_gigabyte(rows: list[dict[str, Any]]) -> None:
    assert not [row["name"] for row in rows if row["peak_bytes"] > _GIGABYTE]


def test_the_page_lists_those_that_are_not_ok_with_their_reasons(rows: list[dict[str, Any]]) -> None:
    written = _PAGE.read_text(encoding="utf-8")
    if f"Pillow {PIL.__version__}" not in written:
        pytest.skip(f"docs/pillow-suite.md is of another Pillow than {PIL.__version__}, the installed one")
    assert page(rows) == written
