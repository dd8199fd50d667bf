"""What can be wrong with weights: one line that names the file, what was expected and what to do."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from nsfw_spark.cards import load_card
from nsfw_spark.errors import ConfigError, NsfwSparkError, WeightsError
from nsfw_spark.model import ModelSpec, load_model
from tests.fakes import card_content

GOOD = {"0.weight": torch.ones(1, 768), "0.bias": torch.ones(1)}


def load(folder: Path, **head: Any) -> None:  # noqa: ANN401
    """Load a model whose card lies in a folder, beside its head's weights."""
    mlp = {"library": "mlp", "layers": [1], "weights": {"path": "head.safetensors"}}
    path = folder / "card.yaml"
    path.write_text(yaml.safe_dump(card_content(head={**mlp, **head})), encoding="utf-8")
    load_model(ModelSpec(load_card(path), device="cpu"))


def test_the_right_weights_load(tmp_path: Path) -> None:
    """Else the tests below might fail for another reason."""
    save_file(GOOD, tmp_path / "head.safetensors")
    load(tmp_path)


def said_of(error: type[NsfwSparkError], folder: Path, **head: Any) -> str:  # noqa: ANN401
    with pytest.raises(error) as caught:
        load(folder, **head)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_unknown_key(tmp_path: Path) -> None:
    save_file(GOOD, tmp_path / "head.safetensors")
    said = said_of(ConfigError, tmp_path, weights={"path": "head.safetensors", "sha": "0"})
    assert "card.yaml: head.weights.sha: unknown key, did you mean" in said


def test_a_head_of_another_dimension_than_its_encoder(tmp_path: Path) -> None:
    save_file({"0.weight": torch.ones(1, 512), "0.bias": torch.ones(1)}, tmp_path / "head.safetensors")
    said = said_of(WeightsError, tmp_path)
    assert str(tmp_path / "head.safetensors") in said
    assert "[1, 512]" in said
    assert "768" in said


def test_a_missing_file(tmp_path: Path) -> None:
    said = said_of(WeightsError, tmp_path)
    assert f"the card names {tmp_path / 'head.safetensors'}, and there is no such file" in said


def test_a_wrong_sha256(tmp_path: Path) -> None:
    save_file(GOOD, tmp_path / "head.safetensors")
    said = said_of(WeightsError, tmp_path, weights={"path": "head.safetensors", "sha256": "0" * 64})
    assert str(tmp_path / "head.safetensors") in said
    assert "0" * 64 in said
    assert "Delete it and fetch it again" in said


def test_a_truncated_download(tmp_path: Path) -> None:
    save_file(GOOD, tmp_path / "whole")
    (tmp_path / "head.safetensors").write_bytes((tmp_path / "whole").read_bytes()[:-100])
    said = said_of(WeightsError, tmp_path)
    assert str(tmp_path / "head.safetensors") in said
    assert "fetch it again" in said


def test_pickled_weights(tmp_path: Path) -> None:
    (tmp_path / "head.safetensors").write_bytes(pickle.dumps(GOOD))
    assert f"{tmp_path / 'head.safetensors'} is not a safetensors file" in said_of(WeightsError, tmp_path)
