"""How executors come to the weights, where their directories and caches are not the driver's."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

from tests.cluster.conftest import Cluster
from tests.fakes import brightness_card, card_content

EXECUTORS: Final = "local-cluster[2,2,1024]"
FILE: Final = "owner/bright/bright.onnx"
GREYS: Final = {str(value): pytest.approx(value / 255, abs=1e-6) for value in range(0, 240, 20)}


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A model directory with the weights of `card`."""
    path = tmp_path / "weights" / FILE
    path.parent.mkdir(parents=True)
    brightness_card(path)
    return tmp_path / "weights"


@pytest.fixture
def card(tmp_path: Path) -> Path:
    """A card file whose model's weights are on the hub, which nobody here reaches."""
    content = brightness_card(tmp_path / "unused.onnx").model_dump(mode="json", exclude_none=True)
    content["encoder"]["weights"] = {"huggingface": "owner/bright", "file": "bright.onnx"}
    path = tmp_path / "card.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


@pytest.fixture
def apart(cluster: Cluster) -> Cluster:
    """A cluster without a network, whose driver has a cache of its own."""
    cluster.environment |= {"HF_HOME": str(cluster.folder / "driver"), "HF_ENDPOINT": "http://127.0.0.1:9"}
    return cluster


def drive(cluster: Cluster, card: Path, **arguments: Any) -> dict[str, Any]:  # noqa: ANN401
    home = cluster.folder / "executors"
    said: dict[str, Any] = cluster.run("delivered", EXECUTORS, card=card, executors_home=home, **arguments)
    return said


def sent(cluster: Cluster) -> list[list[str]]:
    """Return what lies in the directory of each executor, of what was shipped to it."""
    executors = [path.parent for path in (cluster.folder / "spark" / "work").glob("*/*/stderr")]
    return [[path.name for path in executor.glob("*nsfw-spark-*")] for executor in executors]


@pytest.mark.long
def test_a_directory_that_all_share_is_read(apart: Cluster, card: Path, weights: Path) -> None:
    assert drive(apart, card, model_dir=weights) == GREYS
    assert sent(apart) == [[], []]


def test_a_directory_that_only_the_driver_has_is_an_error_that_says_so(
    apart: Cluster, card: Path, weights: Path
) -> None:
    error = drive(apart, card, model_dir=weights, gone=weights)["error"]
    assert "nsfw_spark.errors.WeightsError" in error
    assert str(weights / FILE) in error
    assert "on a cluster, each machine needs DIR, or pass --ship-weights" in error


def test_weights_are_shipped_once_to_each_executor(apart: Cluster, card: Path, weights: Path) -> None:
    assert drive(apart, card, model_dir=weights, gone=weights, ship_weights=True) == GREYS
    assert [len(names) for names in sent(apart)] == [1, 1]
    assert not list((apart.folder / "executors").rglob("bright.onnx"))


def test_each_node_takes_from_a_mirror_what_it_lacks(apart: Cluster, card: Path, weights: Path) -> None:
    assert drive(apart, card, model_source=weights) == GREYS
    for home in ("driver", "executors"):
        [path] = (apart.folder / home).rglob("bright.onnx*")
        assert path.read_bytes() == (weights / FILE).read_bytes()


@pytest.mark.long
def test_a_node_that_does_not_reach_the_mirror_says_so(apart: Cluster, card: Path, weights: Path) -> None:
    error = drive(apart, card, model_source=weights, gone=weights)["error"]
    assert "nsfw_spark.errors.WeightsError" in error
    assert f"{weights} (FileNotFoundError" in error


@pytest.mark.long
def test_a_head_is_shipped_to_score_embeddings(apart: Cluster, tmp_path: Path) -> None:
    """A file beside the card, which the executors need not have either."""
    mine = tmp_path / "mine"
    mine.mkdir()
    save_file(
        {"weight": np.ones((1, 768), np.float32), "bias": np.zeros(1, np.float32)}, mine / "head.safetensors"
    )
    head = {"library": "mlp", "layers": [1], "weights": {"path": "head.safetensors"}}
    content = card_content(name="mine", head=head)
    (mine / "card.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    vectors = tmp_path / "vectors"
    vectors.mkdir()
    np.save(vectors / "a.npy", np.eye(5, 768, dtype=np.float32))
    arguments = {"input": vectors, "format": "embeddings", "head_only": True, "output": tmp_path / "out"}
    said = drive(apart, mine / "card.yaml", ship_weights=True, **arguments)
    assert (said.get("images"), said.get("ok")) == (5, 5), said
    assert max(map(len, sent(apart))) == 1, "the head, once on each executor that had a task"
