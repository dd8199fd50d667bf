"""Paths: an image with any name that a file system allows is one row under that name, in each format."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from tests.conftest import png
from tests.spark.conftest import Run, Tables, image_id
from tests.spark.test_sources import tar, vectors

NAMES = (
    " a  b ",
    """it's "b" `c` \\d""",
    "line\nbreak\ttab",
    "#hash 100% %41%2F ?query=1&x;y",
    "*[a-b]{c,d}^$(e)|f!g",
    "key=value",
    "a:b",
    "größe 日本 \U0001f408",
    unicodedata.normalize("NFC", "é"),
    unicodedata.normalize("NFD", "é"),
)
"""Names in a directory."""

AWKWARD = """a 'b' "c" `d` #e 100%41 ?f=g *h[i]{j,k} \\l\nm é"""
"""A name with all special characters."""

MAX_PATH = 4_095  # Linux': PATH_MAX without the byte that ends it
MAX_NAME = 255


def deep(folder: Path, num_characters: int) -> Path:
    """Return a path below the folder that is as long as this."""
    path = folder
    while (left := num_characters - len(str(path).encode())) > MAX_NAME + 1:
        path /= "d" * min(MAX_NAME, left - 3)
    return path / ("e" * (left - 1))


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def places(folder: Path, suffix: str) -> list[Path]:
    """Return paths of files: one of each name, and one of 4,000 characters."""
    named = [folder / f"{name}{suffix}" for name in NAMES]
    return [*named, deep(folder, 4_000 - len(suffix)).with_suffix(suffix)]


class Input(NamedTuple):
    """An input, its images and its options."""

    uri: Path
    image_ids: set[str]
    options: dict[str, Any]


def files(folder: Path, _: SparkSession) -> Input:
    paths = [write(path, png(seed=i)) for i, path in enumerate(places(folder, ".png"))]
    return Input(folder, set(map(image_id, paths)), {"format": "files"})


def tars(folder: Path, _: SparkSession) -> Input:
    content = tar([(f"{name}.png", png(seed=i)) for i, name in enumerate(NAMES)])
    paths = [write(path, content) for path in places(folder, ".tar")]
    ids = {f"{image_id(path)}!/{name}.png" for path in paths for name in NAMES}
    return Input(folder, ids, {"format": "webdataset"})


def parquet_files(folder: Path, _: SparkSession) -> Input:
    content = pa.table({"image": [png(seed=1), png(seed=2)], "caption": ["a", "b"]})
    paths = places(folder, ".parquet")
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(content, path)
    ids = {f"{image_id(path)}#{row}" for path in paths for row in range(2)}
    return Input(folder, ids, {"format": "parquet"})


def delta_table(folder: Path, spark: SparkSession) -> Input:
    rows = [(name, bytearray(png(seed=i))) for i, name in enumerate(NAMES)]
    spark.createDataFrame(rows, "image_id string, image binary").write.format("delta").save(str(folder))
    return Input(folder, set(NAMES), {"format": "delta"})


def embeddings(folder: Path, _: SparkSession) -> Input:
    paths = places(folder, ".npy")
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, vectors(4)[3:])
    ids = {f"{image_id(path)}#0" for path in paths}
    return Input(folder, ids, {"format": "embeddings", "model": "laion-vit-l-14"})


SOURCES: Iterable[Callable[[Path, SparkSession], Input]] = (
    files,
    tars,
    parquet_files,
    delta_table,
    embeddings,
)


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.__name__)
def test_each_image_is_a_row_under_its_name(
    spark: SparkSession, run: Run, tmp_path: Path, source: Callable[[Path, SparkSession], Input]
) -> None:
    given = source(tmp_path / AWKWARD, spark)
    output = tmp_path / f"out {AWKWARD}"
    summary = run(given.uri, output, **given.options)
    rows = Tables(spark, output).rows("image_scores")
    assert {key: row.status for key, row in rows.items()} == dict.fromkeys(given.image_ids, "ok")
    assert summary.totals["safe_images"] + summary.totals["flagged_images"] == len(given.image_ids)
    assert run(given.uri, output, **given.options).counts.images == 0
