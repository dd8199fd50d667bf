"""What unit tests share: a hub on this machine in the place of the internet."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import httpx2
import pytest
from huggingface_hub import set_client_factory
from huggingface_hub.utils._http import default_client_factory

from tests.hub import Hub


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
