"""A hub and a GitHub on this machine, over real HTTP, with the failures of a real network.

The hub answers like huggingface.co for large files: a redirect to another host, with the commit, and with the
sha256 as ETag. GitHub answers with the file.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final, Self

COMMIT: Final = "0123456789abcdef0123456789abcdef01234567"
"""The commit of all files on this hub."""


@dataclass(frozen=True)
class Asked:
    """A request to the hub."""

    method: str
    path: str
    range: str | None
    authorization: str | None


class Hub(ThreadingHTTPServer):
    """Serves `files` (keys `owner/name/file`) and records the requests in `asked`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.asked: list[Asked] = []
        self.cut_after: list[int] = []
        """The next downloads break off after these numbers of bytes, in this order."""
        self.hold: Callable[[], object] = lambda: None
        """Called in the middle of each download."""
        self.ignores_ranges = False
        self.sends: dict[str, bytes] = {}
        """Wrong contents, sent in place of the right ones."""
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def cdn(self) -> str:
        """The same server under another name, which clients take for another host."""
        return f"http://localhost:{self.server_port}"

    def downloads(self) -> list[str | None]:
        """Return the ranges of the downloads; None means a whole file."""
        files = [each for each in self.asked if COMMIT in each.path and "/resolve/" not in each.path]
        return [each.range for each in files if each.method == "GET"]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        """Print nothing, because tests kill clients."""


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None:
        """Print nothing."""

    def _answer(self) -> None:
        headers = self.headers
        if not self.path.startswith("/api/"):  # what the hub's client sends of itself
            asked = Asked(self.command, self.path, headers.get("Range"), headers.get("Authorization"))
            self.server.asked.append(asked)
        on_hub = re.fullmatch(r"/(\w+/\w+)/resolve/([\w.-]+)/(.+)", self.path)
        if on_hub and f"{on_hub[1]}/{on_hub[3]}" in self.server.files:
            self._redirect(f"{on_hub[1]}/{on_hub[3]}")
        elif (elsewhere := re.fullmatch(r"/(\w+/\w+)/[0-9a-f]{40}/(.+)", self.path)) and (
            content := self.server.files.get(f"{elsewhere[1]}/{elsewhere[2]}")
        ) is not None:
            self._send(self.server.sends.get(f"{elsewhere[1]}/{elsewhere[2]}", content))
        else:
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()

    def _redirect(self, name: str) -> None:
        content = self.server.files[name]
        owner, repository, file = name.split("/", 2)
        self.send_response(302)
        self.send_header("Location", f"{self.server.cdn}/{owner}/{repository}/{COMMIT}/{file}")
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("X-Linked-ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Linked-Size", str(len(content)))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(self, content: bytes) -> None:
        start, asked = 0, self.headers.get("Range")
        if asked and not self.server.ignores_ranges:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha1(content, usedforsecurity=False).hexdigest()}"')
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if self.command == "HEAD":
            return
        rest = content[start:]
        if self.server.cut_after:
            self.wfile.write(rest[: self.server.cut_after.pop(0)])
            self.close_connection = True
            return
        self.wfile.write(rest[: len(rest) // 2])
        self.wfile.flush()
        self.server.hold()
        self.wfile.write(rest[len(rest) // 2 :])
