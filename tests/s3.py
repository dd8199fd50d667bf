"""An S3 server with chosen faults, for pyarrow's client and Hadoop's.

In: objects, and the faults of requests, which a test may switch while a job runs. Out: the settings with
which both clients reach the server, and a count of its requests. moto answers; this module fails some of
its answers. boto3, the client of the tests themselves, meets no fault.
"""

from __future__ import annotations

import logging
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import inf
from pathlib import Path
from typing import Any, Final, Self

import boto3
from moto.backends import get_backend
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

SPARK: Final = "Hadoop"
"""A word of the User-Agent of S3A: Spark lists with it, and writes tables."""
PYTHON: Final = "aws-sdk-cpp"
"""A word of the User-Agent of pyarrow: Python workers read images with it."""
READS: Final = ("GET", "HEAD")
FORBIDDEN: Final = "403 AccessDenied"
GONE: Final = "404 NoSuchKey"
ARCHIVED: Final = "403 InvalidObjectState"

_TESTS: Final = "Boto3"
_ERROR: Final = "<?xml version='1.0'?><Error><Code>{}</Code><Message>{}</Message></Error>"
_MESSAGES: Final = {ARCHIVED: "not valid for the object's storage class"}
_LEAST_CUT: Final = 200
"""Bytes; shorter answers are given out whole."""


@dataclass
class Fault:
    """Requests that fail, and how."""

    status: str | None = "503 SlowDown"
    """HTTP status and S3's error code of the answer; None ends the body of a GET half-way."""
    keys: str = ""
    """Regular expression; only keys in which it is found."""
    operations: tuple[str, ...] = ("GET", "HEAD", "LIST", "PUT", "POST", "DELETE")
    client: str = ""
    """Only requests with this word in their User-Agent: SPARK or PYTHON."""
    share: float = 1.0
    """Share of these requests that fail."""
    after: int = 0
    """Number of requests that succeed before the first failure."""
    times: float = inf
    """Number of requests that fail; later ones succeed."""
    cut_at: int | None = None
    """With status None: no byte of the object from this one on is given out."""

    def is_due(self, operation: str, key: str, agent: str, chance: random.Random) -> bool:
        """Whether a request fails; counts it."""
        concerns = operation in self.operations and self.client in agent and re.search(self.keys, key)
        if not concerns or chance.random() >= self.share:
            return False
        self.after -= 1
        if self.after >= 0 or self.times <= 0:
            return False
        self.times -= 1
        return True


@dataclass
class S3Server:
    """Serves buckets on this machine until it is closed; a process has one at a time."""

    faults: list[Fault] = field(default_factory=list)
    """The first fault that concerns a request decides; a test replaces the list."""
    asked: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Number of requests, by operation and outcome: `ok`, `cut`, or the status."""
    latency_seconds: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        get_backend("s3").reset()  # moto keeps the objects of all servers of a process in one place
        self._app = DomainDispatcherApplication(create_backend_app)
        self._chance = random.Random(self.seed)  # noqa: S311 - to be repeated, not to be secret
        self._lock = threading.Lock()
        logging.getLogger("werkzeug").setLevel(logging.ERROR)  # no line for each request
        self._server = make_server("127.0.0.1", 0, self, threaded=True)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    @property
    def settings(self) -> dict[str, str]:
        """The settings of Hadoop's S3A."""
        return {
            "fs.s3a.access.key": "THE-KEY",
            "fs.s3a.secret.key": "THE-SECRET",
            "fs.s3a.endpoint": f"http://127.0.0.1:{self._server.port}",
            "fs.s3a.endpoint.region": "us-east-1",
            "fs.s3a.path.style.access": "true",
        }

    @cached_property
    def client(self) -> Any:  # noqa: ANN401 - boto3 makes its class at run time
        """A client that meets no fault."""
        return boto3.client(
            "s3",
            endpoint_url=self.settings["fs.s3a.endpoint"],
            region_name="us-east-1",
            aws_access_key_id="THE-KEY",
            aws_secret_access_key=self.settings["fs.s3a.secret.key"],
        )

    def put(self, uri: str, objects: Mapping[str, bytes]) -> str:
        """Write objects below a URI, `s3a://bucket/prefix`; make the bucket. Return the URI."""
        bucket, prefix = _split(uri)
        self.client.create_bucket(Bucket=bucket)
        for name, content in objects.items():
            self.client.put_object(Bucket=bucket, Key=f"{prefix}{name}", Body=content)
        return uri

    def delete(self, uri: str, name: str) -> None:
        """Delete an object below a URI."""
        bucket, prefix = _split(uri)
        self.client.delete_object(Bucket=bucket, Key=f"{prefix}{name}")

    def names(self, uri: str) -> dict[str, str]:
        """Return the names of the objects below a URI, with a tag that changes with their content."""
        bucket, prefix = _split(uri)
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        found = [each for page in pages for each in page.get("Contents", [])]
        return {each["Key"].removeprefix(prefix): each["ETag"] for each in found}

    def copy_to(self, folder: Path, uri: str, known: dict[str, str] | None = None) -> None:
        """Make a folder a copy of the objects below a URI; `known` remembers what it has already."""
        bucket, prefix = _split(uri)
        known = {} if known is None else known
        found = {name: tag for name, tag in self.names(uri).items() if not name.endswith("/")}
        for name in known.keys() - found.keys():
            (folder / name).unlink()
            del known[name]
        for name, tag in found.items():
            if known.get(name) != tag:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                try:
                    self.client.download_file(bucket, f"{prefix}{name}", str(folder / name))
                except self.client.exceptions.ClientError:  # deleted since it was listed
                    continue
                known[name] = tag

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Answer a request, as a WSGI application."""
        operation, key = environ["REQUEST_METHOD"], environ["PATH_INFO"].lstrip("/")
        if operation == "GET" and "list-type=" in environ["QUERY_STRING"]:
            operation = "LIST"
        agent = environ.get("HTTP_USER_AGENT", "")
        if _TESTS in agent:
            return list(self._app(environ, start_response))
        time.sleep(self.latency_seconds)
        with self._lock:
            due = [each for each in self.faults if each.is_due(operation, key, agent, self._chance)]
        status = due[0].status if due else None
        if due and status is None and operation == "GET":
            return self._cut(environ, start_response, due[0].cut_at)
        self.asked[operation, status or "ok"] += 1
        if status is None:
            return list(self._app(environ, start_response))
        return _refuse(status, start_response, has_body=operation != "HEAD")

    def _cut(
        self, environ: dict[str, Any], start_response: Callable[..., Any], at: int | None
    ) -> Iterator[bytes]:
        """Give out the beginning of an answer's body, and end the connection."""
        content = b"".join(self._app(environ, start_response))
        asked = re.match(r"bytes=(\d+)-", environ.get("HTTP_RANGE", ""))
        end = len(content) // 2 if at is None else max(0, at - int(asked[1] if asked else 0))
        if end >= len(content) or len(content) < _LEAST_CUT:
            self.asked["GET", "ok"] += 1
            yield content
            return
        self.asked["GET", "cut"] += 1
        yield content[:end]
        raise ConnectionAbortedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def _split(uri: str) -> tuple[str, str]:
    """Return the bucket and the prefix of a URI."""
    bucket, _, prefix = uri.partition("://")[2].partition("/")
    return bucket, f"{prefix.rstrip('/')}/" if prefix else ""


def _refuse(status: str, start_response: Callable[..., Any], *, has_body: bool) -> list[bytes]:
    message = _ERROR.format(status.partition(" ")[2], _MESSAGES.get(status, "not now")).encode()
    body = message if has_body else b""
    start_response(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
    return [body]
