"""The core imports no Spark, and a model imports only its own library."""

from __future__ import annotations

import subprocess
import sys
import types

import pytest

import nsfw_spark
from tests.conftest import PHOTOS

PHOTO = PHOTOS / "photos" / "cat.jpg"

BLOCKED = """
import sys
from pathlib import Path

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"pyspark", "py4j", "delta", "pandas", "pyarrow"}:
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
"""

SCORING = """
import nsfw_spark
scorer = nsfw_spark.load_scorer("open-nsfw", device="cpu")
good, bad = scorer.score([Path(sys.argv[1]).read_bytes(), b"text"])
assert good.status == "ok" and 0 <= good.nsfw_score <= 1, good
assert bad.status == "undecodable", bad
heavy = {"torch", "open_clip", "timm", "pyspark", "delta", "pandas"} & set(sys.modules)
assert not heavy, heavy
"""

IMPORTING = """
import nsfw_spark
heavy = {"torch", "open_clip", "timm", "onnx", "onnxruntime", "huggingface_hub", "pyspark", "pandas"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", BLOCKED + code, str(PHOTO)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("code", [IMPORTING, SCORING], ids=["importing", "scoring"])
def test_without_spark_and_pandas_and_without_loading_torch_it_works(code: str) -> None:
    done = run(code)
    assert done.returncode == 0, done.stderr


def test_the_blockade_holds() -> None:
    """Without this, the test above could not fail."""
    done = run("import pandas")
    assert "pandas is blocked" in done.stderr


def test_all_is_true() -> None:
    public = {
        name
        for name, value in vars(nsfw_spark).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType) and name != "annotations"
    }
    assert public | {"__version__"} == set(nsfw_spark.__all__)
    assert len(nsfw_spark.__all__) == len(set(nsfw_spark.__all__))
