"""A tar in a bucket of a failing server: it is read to its end, or a row has the reason."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import inf
from typing import Any, Final

import pytest
from moto.server import DomainDispatcherApplication, create_backend_app
from pyarrow import fs
from werkzeug.serving import make_server

from nsfw_spark.errors import STORAGE_FAILED, ImageError
from nsfw_spark.readers import storage as storage_module
from nsfw_spark.readers.storage import Storage
from nsfw_spark.readers.webdataset import TarReader
from tests.unit.test_readers_webdataset import Row, listed, photos, rows_of, tar_of

NUM_IMAGES: Final = 40
TAR: Final = tar_of(*photos(NUM_IMAGES, size=300_000))
"""Longer than one request."""
ERROR: Final = "<?xml version='1.0'?><Error><Code>{}</Code><Message>{}</Message></Error>"
ARCHIVED: Final = "403 InvalidObjectState"


@dataclass
class FailingServer:
    """moto's S3 server behind a proxy that fails some requests for content."""

    app: Callable[..., Iterable[bytes]]
    after: int = 0
    """Requests answered correctly before the first failure."""
    times: float = 0
    status: str = "503 SlowDown"
    """HTTP status and S3's error code."""

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] == "GET" and environ["PATH_INFO"].endswith(".tar"):
            self.after -= 1
            if self.after < 0 and self.times > 0:
                self.times -= 1
                start_response(self.status, [("Content-Type", "application/xml")])
                said = "not valid for the object's storage class" if self.status == ARCHIVED else "not now"
                return [ERROR.format(self.status.partition(" ")[2], said).encode()]
        return self.app(environ, start_response)


@pytest.fixture
def server() -> Iterator[tuple[FailingServer, Storage]]:
    """The server, and how to reach it; it holds `tars/a.tar`."""
    failing = FailingServer(DomainDispatcherApplication(create_backend_app))
    serving = make_server("127.0.0.1", 0, failing, threaded=True)
    thread = threading.Thread(target=serving.serve_forever)
    thread.start()
    settings = {
        "fs.s3a.access.key": "THE-KEY",
        "fs.s3a.secret.key": "THE-SECRET",
        "fs.s3a.endpoint": f"http://127.0.0.1:{serving.port}",
        "fs.s3a.endpoint.region": "us-east-1",
        "fs.s3a.path.style.access": "true",
    }
    storage = Storage(settings)
    client = fs.S3FileSystem(
        access_key="THE-KEY",
        secret_key=settings["fs.s3a.secret.key"],
        endpoint_override=f"127.0.0.1:{serving.port}",
        scheme="http",
        allow_bucket_creation=True,
    )
    client.create_dir("tars")
    with storage.create("s3a://tars/a.tar") as file:
        file.write(TAR)
    yield failing, storage
    serving.shutdown()
    thread.join()
    serving.server_close()


def read(storage: Storage) -> list[Row]:
    return rows_of(TarReader(storage).read(iter([listed("s3a://tars/a.tar")])))


@pytest.fixture(autouse=True)
def _waits_are_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_module, "_FIRST_WAIT_SECONDS", 0.01)
    monkeypatch.setattr(storage_module._StoredFile, "_is_down", False)


@pytest.mark.parametrize("times", [1, 12])  # the cloud's own client asks three times
@pytest.mark.parametrize("after", [0, 1])
def test_a_tar_whose_store_recovers_is_read_to_its_end(
    server: tuple[FailingServer, Storage], after: int, times: int
) -> None:
    failing, storage = server
    failing.after, failing.times = after, times
    rows = read(storage)
    assert failing.times == 0, "no request failed"
    assert len(rows) == NUM_IMAGES
    assert not [row for row in rows if isinstance(row["content"], ImageError)]


@pytest.mark.parametrize("status", ["403 AccessDenied", ARCHIVED, "503 SlowDown"])
def test_a_tar_whose_store_fails_for_good_has_a_row_that_says_so(
    server: tuple[FailingServer, Storage], status: str
) -> None:
    failing, storage = server
    failing.after, failing.times, failing.status = 1, inf, status
    *whole, last = read(storage)
    assert 0 < len(whole) < NUM_IMAGES
    assert not [row for row in whole if isinstance(row["content"], ImageError)]
    assert last["image_id"] == "s3a://tars/a.tar"
    assert last["content"].status == "missing"
    assert "could not be read" in last["content"].message
    is_failure = last["content"].message.startswith(STORAGE_FAILED)
    assert is_failure == status.startswith("503"), last["content"].message


def test_while_a_store_is_down_only_the_first_file_waits_for_it(
    server: tuple[FailingServer, Storage],
) -> None:
    failing, storage = server
    failing.times = inf
    asked = []
    for _ in range(2):
        before = failing.after
        assert read(storage)[0]["content"].status == "missing"
        asked.append(before - failing.after)
    assert asked[1] < asked[0] / 4
    failing.times = 0
    assert len(read(storage)) == NUM_IMAGES
