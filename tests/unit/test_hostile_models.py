"""Models of strangers: no code in a card or in weights runs, and no file elsewhere is read."""

from __future__ import annotations

import io
import os
import pickle
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from nsfw_spark.cards import load_card
from nsfw_spark.errors import ConfigError, WeightsError
from nsfw_spark.model import ModelSpec, load_model
from nsfw_spark.model_card import ModelCard
from nsfw_spark.options import job_options
from nsfw_spark.weights import locate_weights
from tests.fakes import brightness_card, card, card_content


class Bomb:
    """Unpickling it makes a directory."""

    def __init__(self, crater: Path) -> None:
        self.crater = crater

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.crater),)


@pytest.fixture
def bomb(tmp_path: Path) -> Bomb:
    """A bomb that has not gone off."""
    return Bomb(tmp_path / "crater")


def torch_file(bomb: object) -> bytes:
    buffer = io.BytesIO()
    torch.save({"visual.proj": bomb}, buffer)
    return buffer.getvalue()


def legacy_torch_file(bomb: object) -> bytes:
    buffer = io.BytesIO()
    torch.save({"visual.proj": bomb}, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def npy(bomb: object) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([bomb], object), allow_pickle=True)
    return buffer.getvalue()


def laion_zip(bomb: object) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in ("variables/variables.index", "variables/variables.data-00000-of-00001"):
            archive.writestr(name, pickle.dumps(bomb))
    return buffer.getvalue()


BOMBS: dict[str, Callable[[object], bytes]] = {
    "pickle": pickle.dumps,
    "torch": torch_file,
    "old torch": legacy_torch_file,
    "npy": npy,
    "archive": laion_zip,
}
NAMES = ("w.pt", "w.pth", "w.bin", "w.npy", "w.safetensors", "w.onnx", "w.zip")
PLACES: dict[str, dict[str, Any]] = {
    "open_clip": {
        "library": "open_clip",
        "architecture": "ViT-B-32-quickgelu",
        "activation": "quick_gelu",
        "embedding_dim": 512,
    },
    "onnx": {"library": "onnx", "architecture": "x", "embedding_dim": 768},
    "head": {},
}


@pytest.mark.parametrize("kind", BOMBS)
def test_the_bombs_are_live(kind: str, bomb: Bomb) -> None:
    """Otherwise the test below could not fail."""
    content = io.BytesIO(BOMBS[kind](bomb))
    if kind == "npy":
        np.load(content, allow_pickle=True)
    elif kind == "archive":
        pickle.loads(zipfile.ZipFile(content).read("variables/variables.index"))  # noqa: S301 - on purpose
    elif kind == "pickle":
        pickle.load(content)  # noqa: S301 - on purpose
    else:
        torch.load(content, weights_only=False)
    assert bomb.crater.is_dir()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", BOMBS)
def test_pickled_weights_are_refused_and_not_run(tmp_path: Path, bomb: Bomb, kind: str, place: str) -> None:
    part = "head" if place == "head" else "encoder"
    for name in NAMES if place != "open_clip" else ("w.safetensors",):  # each costs it a second
        path = tmp_path / name
        path.write_bytes(BOMBS[kind](bomb))
        hostile = card(**{part: {**PLACES[place], "weights": {"path": path}}})
        with pytest.raises(WeightsError, match=rf"{name} is not "):
            load_model(ModelSpec(hostile, device="cpu"))
    assert not bomb.crater.exists()


def test_the_same_card_with_the_right_weights_loads(tmp_path: Path) -> None:
    """Otherwise the test above might fail for another reason."""
    bright = brightness_card(tmp_path / "bright.onnx")
    assert load_model(ModelSpec(bright, device="cpu")).device == "cpu"


def test_an_onnx_model_with_tensors_in_other_files_is_refused(tmp_path: Path) -> None:
    import onnx

    bright = brightness_card(tmp_path / "bright.onnx")
    model = onnx.load(tmp_path / "bright.onnx")
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")
    (tmp_path / "bright.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(WeightsError, match="in another file, which no sha256 vouches for"):
        load_model(ModelSpec(bright, device="cpu"))


def write_card(folder: Path, **weights: object) -> Path:
    content = card_content(encoder={"weights": weights})
    path = folder / "card.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../weights", "a/../../weights", "..", "a/..", "//host/weights", "", "a\0b"]
)
def test_a_card_names_no_path_outside_its_folder(tmp_path: Path, path: str) -> None:
    (tmp_path / "weights").write_bytes(b"secret")
    (tmp_path / "cards").mkdir()
    with pytest.raises(ConfigError, match=r"expected a path relative to the card.*beside the card"):
        load_card(write_card(tmp_path / "cards", path=path))


@pytest.mark.parametrize("path", ["weights", "./weights", "below/weights", "..weights", "a b/ü#%2e%2e"])
def test_a_card_names_what_lies_in_its_folder_or_below(tmp_path: Path, path: str) -> None:
    file = tmp_path / path
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"weights")
    loaded = load_card(write_card(tmp_path, path=path))
    assert locate_weights(loaded)["encoder"].path == file.resolve()


def test_a_link_beside_the_card_is_followed(tmp_path: Path) -> None:
    """As in the cache of the Hugging Face hub; a card cannot make one."""
    (tmp_path / "blob").write_bytes(b"weights")
    (tmp_path / "cards").mkdir()
    (tmp_path / "cards" / "w").symlink_to(tmp_path / "blob")
    loaded = load_card(write_card(tmp_path / "cards", path="w"))
    assert locate_weights(loaded)["encoder"].path == tmp_path / "blob"


@pytest.mark.parametrize(
    "weights",
    [
        {"huggingface": "../etc", "file": "passwd"},
        {"huggingface": "/etc", "file": "passwd"},
        {"huggingface": "owner/..", "file": "w"},
        {"huggingface": "a/b/c", "file": "w"},
        {"huggingface": "https://host/a", "file": "w"},
        {"huggingface": "a/b", "file": "../../w"},
        {"huggingface": "a/b", "file": "/etc/passwd"},
        {"huggingface": "a/b", "file": "w", "revision": "../../main"},
        {"package": "nsfw_spark", "file": "../../secret"},
        {"package": "nsfw_spark", "file": "/etc/passwd"},
        {"package": "nsfw_spark.models", "file": "w"},
        {"package": "../evil", "file": "w"},
    ],
)
def test_a_card_names_no_file_outside_a_repository_or_package(
    tmp_path: Path, weights: dict[str, str]
) -> None:
    with pytest.raises(ConfigError, match=r"encoder\.weights\.(huggingface|file|revision|package)"):
        load_card(write_card(tmp_path, **weights))


@pytest.mark.parametrize("name", ["hf-hub:owner/evil", "local-dir:/etc", "../evil"])
def test_a_card_names_no_architecture_that_would_be_fetched(name: str) -> None:
    with pytest.raises(ValueError, match="architecture"):
        card(encoder={"library": "open_clip", "architecture": name})


EVIL = "raise SystemExit('a card ran this')"


def test_naming_a_package_runs_nothing_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "evil_package").mkdir()
    (tmp_path / "evil_package" / "__init__.py").write_text(EVIL)
    (tmp_path / "evil_package" / "w").write_bytes(b"weights")
    (tmp_path / "evil_module.py").write_text(EVIL)
    monkeypatch.syspath_prepend(tmp_path)
    in_package = card(encoder={"weights": {"package": "evil_package", "file": "w", "random": None}})
    assert locate_weights(in_package)["encoder"].path == tmp_path / "evil_package" / "w"
    for name in ("evil_module", "antigravity", "__main__", "sys"):
        with pytest.raises(WeightsError, match=f"in the Python package {name}"):
            locate_weights(card(encoder={"weights": {"package": name, "file": "w", "random": None}}))
    assert not {"evil_package", "evil_module", "antigravity"} & set(sys.modules)


LAUGHS = "a0: &a0 lol\n" + "".join(f"a{i}: &a{i} [{f'*a{i - 1}, ' * 9}]\n" for i in range(1, 30))


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.mkdir [CRATER]",
        "encoder: !!python/object/apply:os.mkdir [CRATER]",
        LAUGHS,
        "[" * 5_000,
        "name: 2026-99-99",
    ],
    ids=["object", "inner object", "aliases", "deep", "date"],
)
def test_a_card_and_a_config_file_are_plain_data(tmp_path: Path, bomb: Bomb, text: str) -> None:
    path = tmp_path / "card.yaml"
    path.write_text(text.replace("CRATER", str(bomb.crater)), encoding="utf-8")
    for read in (load_card, lambda file: job_options({"output": "out"}, file)):
        with pytest.raises(ConfigError, match=r"card\.yaml is not YAML") as caught:
            read(path)
        assert len(str(caught.value)) < 1_000
    assert not bomb.crater.exists()


def test_a_wrong_value_is_shown_in_short(tmp_path: Path) -> None:
    path = tmp_path / "card.yaml"
    path.write_text(yaml.safe_dump(card_content(licence=[["x" * 1_000] * 1_000])), encoding="utf-8")
    with pytest.raises(ConfigError, match="licence: ") as caught:
        load_card(path)
    assert len(str(caught.value)) < 500


def test_a_card_that_travels_to_executors_keeps_its_absolute_path(tmp_path: Path) -> None:
    """It was checked where it was read; an executor has no folder of the card to check against."""
    (tmp_path / "w").write_bytes(b"weights")
    loaded = load_card(write_card(tmp_path, path="w"))
    assert ModelCard.model_validate_json(loaded.model_dump_json()) == loaded
