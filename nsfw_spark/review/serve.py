"""Serves a page to the browsers of this machine.

In: the text of a page. It is at one address on 127.0.0.1, with a word in it that other users of this machine
cannot guess. Answers nothing else, and no request that names another host.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final

from nsfw_spark.errors import ConfigError
from nsfw_spark.review.page import content_security_policy

_HOST: Final = "127.0.0.1"  # no other machine can connect


def serve(html: str, port: int = 0, on_ready: Callable[[str], object] = print) -> None:
    """Serve a page until Ctrl-C.

    Args:
        html: The page of `render`.
        port: 0 takes a free one. Browsers keep labels by address, so another port is without them.
        on_ready: Called once with the page's address.

    Raises:
        ConfigError: The port is taken, or may not be opened.
    """
    server = open_server(html, port)
    with server:
        on_ready(server.url)
        with suppress(KeyboardInterrupt):
            server.serve_forever(poll_interval=0.2)


class PageServer(ThreadingHTTPServer):
    """The server of one page."""

    daemon_threads = True

    def __init__(self, html: str, port: int) -> None:
        super().__init__((_HOST, port), _Handler)
        self.page = html.encode()
        self.path = f"/{secrets.token_urlsafe(16)}/"

    @property
    def hosts(self) -> frozenset[str]:
        """The hosts that a request may name. A stranger's name that leads to this machine is none of them."""
        return frozenset(f"{name}:{self.server_port}" for name in (_HOST, "localhost"))

    @property
    def url(self) -> str:
        """The address of the page."""
        return f"http://{_HOST}:{self.server_port}{self.path}"


def open_server(html: str, port: int = 0) -> PageServer:
    """Return a server that listens, and answers once `serve_forever` is called.

    Raises:
        ConfigError: The port is taken, or may not be opened.
    """
    try:
        return PageServer(html, port)
    except (OSError, OverflowError) as error:
        code = error.errno if isinstance(error, OSError) else errno.EINVAL
        reason = os.strerror(code) if code else str(error)
        raise ConfigError(
            f"port {port} of {_HOST} cannot be opened: {reason}; expected a free port from 1024 to 65535, "
            "or 0 for any"
        ) from None


class _Handler(BaseHTTPRequestHandler):
    """Answers with the page, or with an error that has no content of ours."""

    server: PageServer
    server_version = "nsfw_spark"
    sys_version = ""
    timeout = 30

    def do_GET(self) -> None:
        self._answer(has_body=True)

    def do_HEAD(self) -> None:
        self._answer(has_body=False)

    def log_message(self, *_: object) -> None:
        """Keep the terminal quiet."""

    def _answer(self, *, has_body: bool) -> None:
        if self.headers.get("Host", "").lower() not in self.server.hosts:
            self.send_error(HTTPStatus.MISDIRECTED_REQUEST)
        elif not secrets.compare_digest(self.path.encode(), self.server.path.encode()):
            self.send_error(HTTPStatus.NOT_FOUND)
        else:
            self.send_response(HTTPStatus.OK)
            for name, value in self._headers().items():
                self.send_header(name, value)
            self.end_headers()
            if has_body:
                self.wfile.write(self.server.page)

    def _headers(self) -> dict[str, str]:
        return {
            "Content-Type": "text/html; charset=utf-8",
            "Content-Length": str(len(self.server.page)),
            "Content-Security-Policy": f"{content_security_policy()}; frame-ancestors 'none'",
            "Cross-Origin-Resource-Policy": "same-origin",
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-store",
        }
