"""`nsfw-spark models fetch`, `verify` and `lock`, against a hub on this machine."""

from __future__ import annotations

import functools
import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
import yaml

from nsfw_spark.cards import built_in_models
from nsfw_spark.weights import LOCK_NAME
from tests.fakes import card_content
from tests.hub import COMMIT, Hub
from tests.unit.conftest import Command

CONTENT: Final = b"weights of a tower"
SHA256: Final = hashlib.sha256(CONTENT).hexdigest()
FILE: Final = "owner/tower/tower.safetensors"
WRONG: Final = 2


@pytest.fixture
def command(command: Command) -> Command:
    """Return a function that runs `nsfw-spark models …` in this process."""
    return functools.partial(command, "models")


@pytest.fixture
def card(hub: Hub, tmp_path: Path) -> Path:
    """A card file with encoder weights on the hub."""
    hub.files[FILE] = CONTENT
    weights = {"huggingface": "owner/tower", "file": "tower.safetensors"}
    path = tmp_path / "card.yaml"
    path.write_text(yaml.safe_dump(card_content(encoder={"weights": weights})), encoding="utf-8")
    return path


def test_fetch_then_verify_without_a_network(
    command: Command, card: Path, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, out, err = command("fetch", card, "--model-dir", tmp_path / "weights")
    assert (status, err) == (0, "")
    assert f"encoder: {tmp_path / 'weights' / FILE}  sha256 {SHA256}" in out
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    hub.asked.clear()
    assert command("verify", card, "--model-dir", tmp_path / "weights") == (0, out, "")
    assert command("fetch", card, "--model-dir", tmp_path / "weights") == (0, out, "")
    assert hub.asked == []


def test_verify_downloads_nothing(command: Command, card: Path, hub: Hub, tmp_path: Path) -> None:
    status, out, err = command("verify", card, "--model-dir", tmp_path / "weights")
    assert (status, out) == (WRONG, "")
    assert "models fetch fake" in err
    assert hub.asked == []


def test_verify_names_what_was_damaged(command: Command, card: Path, tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    assert command("lock", card, "--model-dir", weights)[0] == 0
    (weights / FILE).write_bytes(CONTENT[:-1])
    status, _, err = command("verify", card, "--model-dir", weights)
    assert status == WRONG
    assert str(weights / FILE) in err
    assert SHA256 in err


def test_lock_fetches_and_pins(command: Command, card: Path, tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    status, out, err = command("lock", card, "--model-dir", weights)
    assert status == 0
    assert SHA256 in out
    assert err == f"pinned in {weights / LOCK_NAME}\n"
    assert COMMIT in (weights / LOCK_NAME).read_text(encoding="utf-8")
    assert command("verify", card, "--model-dir", weights) == (0, out, "")


def test_a_lock_file_elsewhere_pins_what_is_fetched(
    command: Command, card: Path, hub: Hub, tmp_path: Path
) -> None:
    lock = tmp_path / "committed" / "lock.yaml"
    assert command("lock", card, "--model-dir", tmp_path / "weights", "--weights-lock", lock)[0] == 0
    assert not (tmp_path / "weights" / LOCK_NAME).exists()
    hub.files[FILE] = b"other weights"
    other = ("--model-dir", tmp_path / "other")
    status, _, err = command("fetch", card, *other, "--weights-lock", lock)
    assert (status, SHA256 in err) == (WRONG, True)
    assert command("fetch", card, *other)[0] == 0, "else the lock file was not the reason"
    assert command("verify", card, *other, "--weights-lock", lock)[0] == WRONG


def test_lock_needs_a_place_for_the_file(command: Command, card: Path) -> None:
    status, _, err = command("lock", card)
    assert status == WRONG
    assert "--weights-lock" in err


def test_fetch_from_a_mirror(command: Command, card: Path, hub: Hub, tmp_path: Path) -> None:
    path = tmp_path / "mirror" / FILE
    path.parent.mkdir(parents=True)
    path.write_bytes(b"of the mirror")
    arguments = ("--model-dir", tmp_path / "weights", "--model-source", tmp_path / "mirror")
    status, out, _ = command("fetch", card, *arguments)
    assert status == 0
    assert hashlib.sha256(b"of the mirror").hexdigest() in out
    assert hub.asked == []


def test_a_model_that_fails_does_not_keep_the_others_from_it(
    command: Command, card: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.yaml"
    weights = {"huggingface": "owner/none", "file": "none.safetensors"}
    bad.write_text(yaml.safe_dump(card_content(name="bad", encoder={"weights": weights})), encoding="utf-8")
    status, out, err = command("fetch", bad, card, "--model-dir", tmp_path / "weights")
    assert status == WRONG
    assert (tmp_path / "weights" / FILE).is_file()
    assert SHA256 in out
    assert err.count("\n") == 1
    assert "bad: owner/none/none.safetensors was not found" in err


@pytest.mark.usefixtures("hub")
def test_all_is_every_model_that_can_be_had_here(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`all` tries each model, and names the ones that it skips for a missing package."""
    monkeypatch.setattr("sys.path_hooks", [_without("nudenet", hook) for hook in sys.path_hooks])
    monkeypatch.setattr("sys.path_importer_cache", {})
    monkeypatch.delitem(sys.modules, "nudenet", raising=False)  # whoever has it needs no finder
    status, out, err = command("fetch", "all", "--model-dir", tmp_path)
    assert status == WRONG, "this hub has none of them"
    assert "nudenet-320n is left out: its weights come with pip install nudenet" in err
    downloaded = set(built_in_models()) - {"nudenet-320n", "open-nsfw"}
    assert all(f"{name}: " in err for name in downloaded)
    assert "open-nsfw  fingerprint" in out


def _without(package: str, hook: Callable[[str], object]) -> Callable[[str], object]:
    """Return a path hook that hides a package, as if it were not installed."""

    def hooked(path: str) -> object:
        finder = hook(path)
        find = finder.find_spec  # type: ignore[attr-defined]
        finder.find_spec = lambda name, *rest: None if name == package else find(name, *rest)  # type: ignore[attr-defined]
        return finder

    return hooked
