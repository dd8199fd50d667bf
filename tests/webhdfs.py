"""A WebHDFS server with chosen faults, for Spark's own Hadoop client.

In: a local directory, and the faults of its files. Out: a URI under which Spark lists and reads them, and
a count of its requests. So tests get real requests and errors, without a jar that Spark does not have.

Source:
    hadoop.apache.org, "WebHDFS REST API" (3.4).
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from math import inf
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import parse_qs, unquote, urlsplit

_PREFIX: Final = "/webhdfs/v1"
_GONE: Final = 404
_EXCEPTIONS: Final = {
    403: "org.apache.hadoop.security.AccessControlException",
    404: "java.io.FileNotFoundException",
}
"""HTTP status → the exception of Hadoop's client; other statuses give an IOException."""


@dataclass(frozen=True)
class Fault:
    """A fault of a file or a directory."""

    status: int | None
    """HTTP status of the answer; None ends the connection without one."""
    times: float = inf
    """Number of requests that fail; later ones succeed."""
    operation: str = "OPEN"
    """The operation that fails: `OPEN`, `GETFILESTATUS`, or `LISTSTATUS`."""


class FaultyStore:
    """Serves a directory to Hadoop's client until it is closed."""

    def __init__(
        self, folder: Path, faults: Mapping[str, Fault], lengths: Mapping[str, int] | None = None
    ) -> None:
        """Start the server.

        Args:
            folder: The directory to serve.
            faults: Name below the folder → fault.
            lengths: Name below the folder → a wrong length that the server reports.
        """
        self.folder, self.faults, self.lengths = folder, faults, lengths or {}
        self.asked: Counter[tuple[str, str]] = Counter()
        """Number of requests, by operation and name."""
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"store": self}))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def uri(self) -> str:
        """The URI of the directory, for Spark."""
        return f"webhdfs://127.0.0.1:{self._server.server_port}/images"

    def image_id(self, name: str) -> str:
        """Return the image_id of a file."""
        return f"{self.uri}/{name}"

    def fault(self, operation: str, name: str) -> Fault | None:
        """Count a request; return its fault, if it has one."""
        self.asked[operation, name] += 1
        fault = self.faults.get(name)
        is_due = fault is not None and fault.operation == operation
        return fault if is_due and fault is not None and self.asked[operation, name] <= fault.times else None

    def status(self, path: Path, suffix: str) -> dict[str, Any]:
        """Return WebHDFS's status of a file or directory."""
        found = path.stat()
        name = path.relative_to(self.folder).as_posix()
        return {
            "pathSuffix": suffix,
            "type": "DIRECTORY" if path.is_dir() else "FILE",
            "length": 0 if path.is_dir() else self.lengths.get(name, found.st_size),
            "modificationTime": int(found.st_mtime * 1000),
            "accessTime": 0,
            "blockSize": 1 << 27,
            "replication": 1,
            "permission": "755",
            "owner": "somebody",
            "group": "somebody",
            "fileId": found.st_ino,
            "childrenNum": 0,
            "storagePolicy": 0,
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    store: FaultyStore

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = {key.lower(): values[0] for key, values in parse_qs(url.query).items()}
        operation = query["op"].upper()
        name = unquote(url.path).removeprefix(f"{_PREFIX}/images").strip("/")
        path = self.store.folder / name
        if operation == "OPEN" and "redirected" not in query:
            self._answer(307, b"", Location=f"http://{self.headers['Host']}{self.path}&redirected=true")
        elif (fault := self.store.fault(operation.removesuffix("_BATCH"), name)) is not None:
            self._fail(fault.status, name)
        elif not path.exists():
            self._fail(_GONE, name)
        elif operation == "OPEN":
            self._answer(200, path.read_bytes()[int(query.get("offset", 0)) :])
        else:
            self._answer_json(200, self._result(operation, path))

    def _result(self, operation: str, path: Path) -> dict[str, Any]:
        """Return the answer to an operation."""
        if operation == "GETFILEBLOCKLOCATIONS":
            return {"BlockLocations": {"BlockLocation": []}}
        if operation == "GETFILESTATUS":
            return {"FileStatus": self.store.status(path, "")}
        names = sorted(path.iterdir()) if path.is_dir() else [path]
        found = [self.store.status(each, each.name if path.is_dir() else "") for each in names]
        listing = {"FileStatuses": {"FileStatus": found}}
        if operation == "LISTSTATUS_BATCH":
            return {"DirectoryListing": {"partialListing": listing, "remainingEntries": 0}}
        return listing

    def _fail(self, status: int | None, name: str) -> None:
        if status is None:
            self.close_connection = True
            return
        exception = _EXCEPTIONS.get(status, "java.io.IOException")
        self._answer_json(status, _remote(exception, f"the store answers {status} for /images/{name}"))

    def _answer_json(self, status: int, content: Mapping[str, Any]) -> None:
        # No content type: to parse one, the client needs a library that Spark's jars lack.
        self._answer(status, json.dumps(content).encode())

    def _answer(self, status: int, content: bytes, **headers: str) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Log nothing: `FaultyStore.asked` counts the requests."""


def _remote(exception: str, message: str) -> dict[str, Any]:
    simple = exception.rpartition(".")[2]
    return {"RemoteException": {"exception": simple, "javaClassName": exception, "message": message}}
