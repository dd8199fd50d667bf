"""Downloads by several processes and by killed ones, with the real command."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
import yaml

from tests.fakes import card_content, until
from tests.hub import COMMIT, Hub

COMMAND: Final = [sys.executable, "-c", "from nsfw_spark.cli import main; main()", "models"]
CONTENT: Final = os.urandom(1 << 20) * 24  # the hub's client writes 10 MiB at once
FILE: Final = "owner/tower/tower.safetensors"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as hub:
        hub.files[FILE] = CONTENT
        yield hub


@pytest.fixture
def card(tmp_path: Path) -> Path:
    path = tmp_path / "card.yaml"
    weights = {"huggingface": "owner/tower", "file": "tower.safetensors", "revision": COMMIT}
    path.write_text(yaml.safe_dump(card_content(encoder={"weights": weights})), encoding="utf-8")
    return path


def start(hub: Hub, home: Path, *arguments: object, **environment: str) -> subprocess.Popen[str]:
    settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"}
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        env={**os.environ, **settings, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def done(process: subprocess.Popen[str], status: int = 0) -> tuple[str, str]:
    out, err = process.communicate()
    assert process.returncode == status, err
    return out, err


def test_a_download_that_was_killed_goes_on_where_it_stopped(hub: Hub, card: Path, tmp_path: Path) -> None:
    weights, released = tmp_path / "weights", threading.Event()
    hub.hold = released.wait
    killed = start(hub, tmp_path, "fetch", card, "--model-dir", weights)
    until(lambda: sum(path.stat().st_size for path in weights.rglob("*.partial")) >= 10 << 20)
    killed.kill()
    killed.communicate()
    released.set()
    out, err = done(start(hub, tmp_path, "fetch", card, "--model-dir", weights))
    whole, rest = hub.downloads()
    assert whole is None
    assert rest is not None
    assert int(rest.removeprefix("bytes=").removesuffix("-")) >= 10 << 20
    assert hashlib.sha256(CONTENT).hexdigest() in out
    assert err.count("\n") == 1, "no progress bar where there is no terminal"
    assert "resuming at" in err
    assert [path.name for path in weights.rglob("*") if path.is_file()] == ["tower.safetensors"]


def test_of_many_that_ask_at_once_one_downloads(hub: Hub, card: Path, tmp_path: Path) -> None:
    def num_waiting() -> int:
        return len([each for each in hub.asked if each.method == "HEAD"])

    num = 3
    hub.hold = lambda: until(lambda: num_waiting() == num)
    processes = [start(hub, tmp_path, "fetch", card) for _ in range(num)]
    said = {done(process)[0] for process in processes}
    assert len(said) == 1, "all have the same file"
    assert hub.downloads() == [None]


def test_offline_is_as_the_environment_says(hub: Hub, card: Path, tmp_path: Path) -> None:
    _, err = done(start(hub, tmp_path, "fetch", card, HF_HUB_OFFLINE="1"), 2)
    assert "HF_HUB_OFFLINE is set" in err
    assert hub.asked == []


def test_a_proxy_is_used_as_the_environment_says(hub: Hub, card: Path, tmp_path: Path) -> None:
    """The hub is its own proxy here: clients send proxies a whole URL."""
    _, err = done(
        start(hub, tmp_path, "fetch", card, HF_ENDPOINT="http://example.invalid", http_proxy=hub.url), 2
    )
    assert [each.path for each in hub.asked if "tower" in each.path] == [
        f"http://example.invalid/owner/tower/resolve/{COMMIT}/tower.safetensors"
    ]
    assert "the hub (" in err


def test_on_a_terminal_the_progress_is_shown(hub: Hub, card: Path, tmp_path: Path) -> None:
    main, terminal = os.openpty()
    termios.tcsetwinsize(terminal, (24, 80))
    process = subprocess.Popen(
        [*COMMAND, "fetch", str(card)],
        env={**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=terminal,
    )
    os.close(terminal)
    shown = b""
    try:
        while some := os.read(main, 4096):
            shown += some
    except OSError:  # how Linux says that nobody has the terminal any more
        pass
    finally:
        os.close(main)
    assert process.communicate()[0].count(b"sha256") == 2
    assert b"100%" in shown
    assert b"tower.safetensors" in shown
