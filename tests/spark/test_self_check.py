"""A table remembers what its model made of the test image; what computes another score is stopped."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest
import torch
import yaml
from delta import DeltaTable
from pyspark.sql import SparkSession
from safetensors.torch import save_file

import nsfw_spark
from nsfw_spark.errors import DeviceError, TableError
from nsfw_spark.self_check import SelfCheck
from nsfw_spark.spark.tables import Output, self_check
from tests import java
from tests.conftest import png
from tests.fakes import card_content, perceptron
from tests.spark.conftest import GOOD, Run, Tables, write_files
from tests.unlike import ALTERED, pillow_card

ROOT: Final = Path(__file__).parents[2]
PROPERTY: Final = "nsfw_spark.self_check"


def remembered(spark: SparkSession, output: Path) -> SelfCheck:
    found = self_check(Output(spark, f"file:{output}", None))
    assert found is not None
    return found


def remember(spark: SparkSession, output: Path, found: SelfCheck | None) -> None:
    table, said = f"delta.`{output}/image_scores`", "" if found is None else f" = '{found.as_json()}'"
    spark.sql(f"ALTER TABLE {table} {'UN' if found is None else ''}SET TBLPROPERTIES ('{PROPERTY}'{said})")


def changed(found: SelfCheck, precision: str, by: float) -> SelfCheck:
    return SelfCheck(precision, found.nsfw_score + by, tuple(each + by for each in found.features))


def add_image(images: Path) -> Path:
    """Copy the images, and one that is new."""
    return write_files(images, {**GOOD, "new.png": png(seed=99)})


def test_a_table_remembers_the_self_check_of_its_model(
    spark: SparkSession, scored: Path, card_file: str
) -> None:
    assert remembered(spark, scored) == nsfw_spark.load_scorer(card_file).self_check


def test_a_table_is_continued_by_a_model_that_computes_the_same(
    spark: SparkSession, run: Run, tmp_path: Path
) -> None:
    """A CPU goes on where a GPU began, whose precision is coarser; and the table remembers the first."""
    images, output = write_files(tmp_path / "images", GOOD), tmp_path / "out"
    run(images, output)
    began = changed(remembered(spark, output), "float16", 0.005)
    remember(spark, output, began)
    assert run(add_image(images), output).counts.ok == 1
    assert remembered(spark, output) == began


@pytest.mark.parametrize("precision", ["float32", pytest.param("bfloat16", marks=pytest.mark.long)])
def test_a_model_that_computes_something_else_adds_no_row(
    spark: SparkSession, run: Run, tmp_path: Path, precision: str
) -> None:
    images, output = write_files(tmp_path / "images", GOOD), tmp_path / "out"
    run(images, output)
    began = changed(remembered(spark, output), precision, 0.001 if precision == "float32" else 0.5)
    remember(spark, output, began)
    before = Tables(spark, output).rows("image_scores")
    with pytest.raises(DeviceError, match=r"sampled computes other scores on .* than image_scores has"):
        run(add_image(images), output)
    assert Tables(spark, output).rows("image_scores") == before
    assert run(images, output, rescore="all").counts.images == len(GOOD) + 1
    assert remembered(spark, output) != began


def test_where_there_are_no_rows_the_model_is_asked_again(
    spark: SparkSession, run: Run, tmp_path: Path
) -> None:
    """What a table without rows says may come from the one machine that was not like the others."""
    images, output = write_files(tmp_path / "images", GOOD), tmp_path / "out"
    run(images, output)
    found = remembered(spark, output)
    DeltaTable.forPath(spark, f"{output}/image_scores").delete()
    remember(spark, output, changed(found, "float32", 0.1))
    assert run(add_image(images), output).counts.ok == 1
    assert remembered(spark, output) == found


def test_a_table_of_an_earlier_version_learns_it(
    spark: SparkSession, run: Run, images: Path, output: Path
) -> None:
    found = remembered(spark, output)
    remember(spark, output, None)
    run(images, output)
    assert remembered(spark, output) == found


def command_with(library: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own, with another version of a library first on its PYTHONPATH."""
    arguments = ["run", "images", "--output", "out", "--model", "pillow.yaml", "--allow-random-weights"]
    return subprocess.run(
        [sys.executable, "-m", "nsfw_spark", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(library), str(ROOT), *sys.path]),
            "PYSPARK_PYTHON": sys.executable,
            **java.quick(),
        },
    )


def test_another_version_of_a_library_ends_the_command_with_status_1_and_writes_nothing(
    spark: SparkSession, run: Run, tmp_path: Path
) -> None:
    """The same card, the same weights, the same fingerprint; but Pillow's bicubic filter is another one."""
    model = str(pillow_card(tmp_path))
    images, output = write_files(tmp_path / "images", GOOD), tmp_path / "out"
    run(images, output, model=model)
    before = Tables(spark, output).rows("image_scores")
    add_image(images)
    altered = command_with(ALTERED, tmp_path)
    assert altered.returncode == 1, altered.stderr
    said = altered.stderr.splitlines()[-1]
    assert said.startswith(f"nsfw-spark: pillow computes other scores on {platform.node()} than image_scores")
    assert "--rescore all" in said
    assert not altered.stdout
    assert Tables(spark, output).rows("image_scores") == before
    assert run(images, output, model=model).counts.images == 1


HEAD: Final = {**perceptron(1, [1]), "weights": {"path": "head.safetensors"}}


def write_model(folder: Path, **changes: Any) -> str:  # noqa: ANN401
    """Write a card whose head lies beside it; `changes` are those of `card_content`."""
    tensors = {"weight": torch.linspace(-1, 1, 768)[None], "bias": torch.zeros(1)}
    save_file(tensors, folder / "head.safetensors")
    path = folder / "own.yaml"
    path.write_text(
        yaml.safe_dump(card_content(**{"name": "own", "head": HEAD, **changes})), encoding="utf-8"
    )
    return str(path)


def change_one_weight(folder: Path) -> None:
    tensors = {"weight": torch.linspace(-1, 1, 768)[None], "bias": torch.zeros(1)}
    tensors["weight"][0, 99] += 1e-6
    save_file(tensors, folder / "head.safetensors")


def test_a_change_of_what_decides_a_score_is_refused(
    spark: SparkSession, run: Run, images: Path, tmp_path: Path, subtests: pytest.Subtests
) -> None:
    output = tmp_path / "out"
    model = write_model(tmp_path)
    run(images, output, model=model)
    before = Tables(spark, output).rows("image_scores")
    files = sorted(output.rglob("*"))
    changes: dict[str, Callable[[], object]] = {
        "one weight": partial(change_one_weight, tmp_path),
        "filter": partial(write_model, tmp_path, preprocessing={"interpolation": "bilinear"}),
        "resizer": partial(write_model, tmp_path, preprocessing={"resizer": "pillow"}),
        "precision": partial(write_model, tmp_path, encoder={"precision": "bfloat16"}),
    }
    for name, change in changes.items():
        change()
        refused = pytest.raises(TableError, match=r"scores of own with the fingerprint .* do not compare")
        with subtests.test(name), refused:
            run(images, output, model=model)
        write_model(tmp_path)
    assert sorted(output.rglob("*")) == files
    assert run(images, output, model=model).counts.images == 0, "as it was, it goes on"
    assert Tables(spark, output).rows("image_scores") == before
