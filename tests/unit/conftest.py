"""What unit tests share: commands, and a hub on this machine in the place of the internet."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import httpx2
import pytest
from huggingface_hub import set_client_factory
from huggingface_hub.utils._http import default_client_factory

from nsfw_spark import cli
from tests.hub import Hub


class Said(NamedTuple):
    """What a command left behind."""

    status: int
    out: str
    err: str


Command = Callable[..., Said]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """Return a function that runs a command in this process."""

    def command(*arguments: str | Path) -> Said:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main([str(argument) for argument in arguments])
        assert isinstance(stop.value.code, int)
        captured = capsys.readouterr()
        return Said(stop.value.code, captured.out, captured.err)

    return command


class _Here(httpx2.HTTPTransport):
    """Sends what is for GitHub to the hub on this machine, and lets nothing else out."""

    def __init__(self, hub: Hub) -> None:
        super().__init__()
        self._hub = hub

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        if request.url.host == "raw.githubusercontent.com":
            request.url = httpx2.URL(self._hub.url + request.url.raw_path.decode())
        if request.url.port != self._hub.server_port:
            raise httpx2.ConnectError("no route to host")
        return super().handle_request(request)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub for this process, and empty caches: as HF_ENDPOINT and HF_HOME set them at import."""
    with Hub() as hub:
        place = "huggingface_hub.constants"
        monkeypatch.setattr(f"{place}.ENDPOINT", hub.url)
        template = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(f"{place}.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(f"{place}.HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(f"{place}.HF_ASSETS_CACHE", str(tmp_path / "assets"))
        monkeypatch.setattr(f"{place}.HF_HUB_OFFLINE", False)
        monkeypatch.setattr(f"{place}.DOWNLOAD_CHUNK_SIZE", 1000)
        # The client waits a second before it takes up what broke.
        monkeypatch.setattr("huggingface_hub.file_download.time", SimpleNamespace(sleep=lambda _: None))
        set_client_factory(lambda: httpx2.Client(transport=_Here(hub), follow_redirects=True, timeout=30))
        yield hub
        set_client_factory(default_client_factory)
