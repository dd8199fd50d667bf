"""The lock file: pinned weights load, and all others are refused, wherever they come from."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from nsfw_spark.cards import load_card
from nsfw_spark.errors import ConfigError, WeightsError
from nsfw_spark.model_card import ModelCard
from nsfw_spark.weights import (
    LOCK_NAME,
    fetch_weights,
    fingerprint,
    known_sources,
    locate_weights,
    lock_weights,
    with_lock,
)
from tests.fakes import card, card_content
from tests.hub import COMMIT, Hub

CONTENT: Final = b"weights of a tower"
SHA256: Final = hashlib.sha256(CONTENT).hexdigest()
FILE: Final = "owner/tower/tower.safetensors"


def on_hub(**source: str) -> ModelCard:
    return card(encoder={"weights": {"huggingface": "owner/tower", "file": "tower.safetensors", **source}})


def lock(model: ModelCard, model_dir: Path) -> dict[str, Any]:
    """Fetch and lock a model; return the models of the lock file."""
    path = model_dir / LOCK_NAME
    lock_weights(path, model, known_sources(model, fetch_weights(model, model_dir)))
    said: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert said["version"] == 1
    return said["models"]  # type: ignore[no-any-return]


@pytest.fixture
def locked(hub: Hub, tmp_path: Path) -> Path:
    """A model directory with locked weights from the hub."""
    hub.files[FILE] = CONTENT
    lock(on_hub(), tmp_path / "weights")
    return tmp_path / "weights"


def test_it_says_commit_and_sha256_of_every_part(hub: Hub, tmp_path: Path) -> None:
    hub.files[FILE] = CONTENT
    parts = lock(on_hub(), tmp_path)["fake"]
    assert parts["encoder"] == {
        "huggingface": "owner/tower",
        "file": "tower.safetensors",
        "revision": COMMIT,
        "sha256": SHA256,
    }
    head = load_card("laion-vit-l-14").head.weights
    assert head is not None
    assert parts["head"] == head.model_dump(exclude_none=True)


def test_a_locked_card_is_pinned_and_has_the_same_fingerprint(locked: Path) -> None:
    pinned = with_lock(on_hub(), locked)
    assert (pinned.encoder.weights.revision, pinned.encoder.weights.sha256) == (COMMIT, SHA256)
    prints = [fingerprint(each, locate_weights(each, locked)) for each in (on_hub(), pinned)]
    assert prints[0] == prints[1]


def test_locating_refuses_another_file_than_the_locked_one(locked: Path) -> None:
    (locked / FILE).write_bytes(b"other weights")
    with pytest.raises(WeightsError, match=rf"{FILE} has sha256 .*lock file\) expects {SHA256}"):
        locate_weights(on_hub(), locked)
    (locked / LOCK_NAME).unlink()
    assert locate_weights(on_hub(), locked)["encoder"].path is not None, (
        "else the lock file was not the reason"
    )


def test_fetching_elsewhere_with_a_lock_file_takes_the_locked_commit(
    hub: Hub, locked: Path, tmp_path: Path
) -> None:
    hub.asked.clear()
    pinned = with_lock(on_hub(), lock=locked / LOCK_NAME)
    assert fetch_weights(pinned, tmp_path / "elsewhere")["encoder"].sha256 == SHA256
    asked = [each.path for each in hub.asked if "/resolve/" in each.path]
    assert asked
    assert all(COMMIT in path for path in asked), "not the branch main, which may have moved"


def test_fetching_elsewhere_refuses_what_the_hub_has_by_now(hub: Hub, locked: Path, tmp_path: Path) -> None:
    hub.files[FILE] = b"other weights"
    with pytest.raises(WeightsError, match=f"expected {SHA256}.*not kept"):
        fetch_weights(with_lock(on_hub(), lock=locked / LOCK_NAME), tmp_path / "elsewhere")


def test_locking_again_takes_what_lies_here_and_keeps_other_models(hub: Hub, locked: Path) -> None:
    other = card(name="other", encoder={"weights": {"random": 7}})
    assert set(lock(other, locked)) == {"fake", "other"}
    (locked / FILE).unlink()
    hub.files[FILE] = b"other weights"
    models = lock(on_hub(), locked)
    assert models["fake"]["encoder"]["sha256"] == hashlib.sha256(b"other weights").hexdigest()
    assert models["other"]["encoder"] == {"random": 7}


def test_offline_the_commit_stays_unknown_and_the_sha256_is_pinned(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hub.files[FILE] = CONTENT
    fetch_weights(on_hub(), tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    encoder = lock(on_hub(), tmp_path)["fake"]["encoder"]
    assert (encoder.get("revision"), encoder["sha256"]) == (None, SHA256)
    assert "HF_HUB_OFFLINE" in caplog.text


def test_a_commit_of_another_file_is_not_pinned(
    hub: Hub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hub.files[FILE] = CONTENT
    fetch_weights(on_hub(), tmp_path)
    hub.files[FILE] = b"other weights"
    assert "revision" not in lock(on_hub(), tmp_path)["fake"]["encoder"]
    assert "another file by now" in caplog.text


def test_a_file_beside_a_card_is_locked_by_its_name(tmp_path: Path) -> None:
    """Card, weights and lock file may move together."""
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.bin").write_bytes(CONTENT)
        content = card_content(name="mine", encoder={"weights": {"path": "mine.bin"}})
        (tmp_path / folder / "card.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    models = lock(load_card(tmp_path / "here" / "card.yaml"), tmp_path)
    assert models["mine"]["encoder"] == {"path": "mine.bin", "sha256": SHA256}
    there = load_card(tmp_path / "there" / "card.yaml")
    assert locate_weights(there, tmp_path)["encoder"].sha256 == SHA256
    (tmp_path / "there" / "mine.bin").write_bytes(b"other weights")
    with pytest.raises(WeightsError, match=SHA256):
        locate_weights(there, tmp_path)


def test_a_model_that_is_not_locked_is_refused(locked: Path) -> None:
    with pytest.raises(WeightsError, match=r"other is not in .*weights\.lock\.yaml.*models lock other"):
        locate_weights(card(name="other"), locked)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"huggingface": "owner/mast"}, "huggingface owner/mast and owner/tower"),
        ({"file": "mast.safetensors"}, "file mast.safetensors and tower.safetensors"),
        ({"revision": "main"}, f"revision main and {COMMIT}"),
        ({"sha256": "0" * 64}, f"sha256 {'0' * 64} and {SHA256}"),
    ],
)
def test_a_card_that_names_other_weights_is_refused(locked: Path, changed: dict[str, str], said: str) -> None:
    with pytest.raises(WeightsError, match=rf"fake\.encoder: the card and .*{said}.*models lock fake"):
        locate_weights(on_hub(**changed), locked)


def test_a_lock_file_without_one_of_the_parts_is_refused(locked: Path) -> None:
    path = locked / LOCK_NAME
    said = yaml.safe_load(path.read_text(encoding="utf-8"))
    del said["models"]["fake"]["encoder"]
    path.write_text(yaml.safe_dump(said), encoding="utf-8")
    with pytest.raises(WeightsError, match="has no encoder of fake"):
        locate_weights(on_hub(), locked)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("version: 2\nmodels: {}\n", "version"),
        ("version: 1\n", "models"),
        (
            "version: 1\nmodels: {fake: {encoder: {huggingface: a/b, file: c, sha: d}}}\n",
            r"fake\.encoder\.sha: unknown key",
        ),
        ("version: 1\nmodels: {fake: {encoder: {huggingface: a/b, file: ../c}}}\n", "relative path"),
        ("[", "is not YAML"),
    ],
)
def test_a_lock_file_that_is_wrong_is_a_config_error_that_names_the_field(
    tmp_path: Path, text: str, said: str
) -> None:
    (tmp_path / LOCK_NAME).write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=rf"weights\.lock\.yaml.*{said}"):
        locate_weights(card(), tmp_path)


def test_a_lock_file_that_was_named_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no\.yaml.*models lock"):
        with_lock(card(), lock=tmp_path / "no.yaml")
