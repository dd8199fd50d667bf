"""A tar in a bucket of a failing server: it is read to its end, or a row has the reason."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf
from typing import Final

import pytest

from nsfw_spark.errors import STORAGE_FAILED, ImageError
from nsfw_spark.readers import storage as storage_module
from nsfw_spark.readers.storage import Storage
from nsfw_spark.readers.webdataset import TarReader
from tests.s3 import ARCHIVED, FORBIDDEN, Fault, S3Server
from tests.unit.test_readers_webdataset import Row, listed, photos, rows_of, tar_of

NUM_IMAGES: Final = 40
TAR: Final = tar_of(*photos(NUM_IMAGES, size=300_000))
"""Longer than one request."""
NOT_NOW: Final = "503 SlowDown"


@pytest.fixture
def server() -> Iterator[tuple[S3Server, Storage]]:
    """The server, and how to reach it; it holds `tars/a.tar`."""
    with S3Server() as server:
        server.put("s3a://tars", {"a.tar": TAR})
        yield server, Storage(server.settings)


def fault(status: str = NOT_NOW, *, after: int = 0, times: float = inf) -> Fault:
    return Fault(status, keys=r"\.tar$", operations=("GET",), after=after, times=times)


def read(storage: Storage) -> list[Row]:
    return rows_of(TarReader(storage).read(iter([listed("s3a://tars/a.tar")])))


@pytest.fixture(autouse=True)
def _waits_are_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_module, "_FIRST_WAIT_SECONDS", 0.01)
    monkeypatch.setattr(storage_module._StoredFile, "_is_down", False)


@pytest.mark.parametrize("times", [1, 12])  # the cloud's own client asks three times
@pytest.mark.parametrize("after", [0, 1])
def test_a_tar_whose_store_recovers_is_read_to_its_end(
    server: tuple[S3Server, Storage], after: int, times: int
) -> None:
    failing, storage = server
    failing.faults = [fault(after=after, times=times)]
    rows = read(storage)
    assert failing.asked["GET", NOT_NOW] == times
    assert len(rows) == NUM_IMAGES
    assert not [row for row in rows if isinstance(row["content"], ImageError)]


@pytest.mark.parametrize("status", [FORBIDDEN, ARCHIVED, NOT_NOW])
def test_a_tar_whose_store_fails_for_good_has_a_row_that_says_so(
    server: tuple[S3Server, Storage], status: str
) -> None:
    failing, storage = server
    failing.faults = [fault(status, after=1)]
    *whole, last = read(storage)
    assert 0 < len(whole) < NUM_IMAGES
    assert not [row for row in whole if isinstance(row["content"], ImageError)]
    assert last["image_id"] == "s3a://tars/a.tar"
    assert last["content"].status == "missing"
    assert "could not be read" in last["content"].message
    is_failure = last["content"].message.startswith(STORAGE_FAILED)
    assert is_failure == status.startswith("503"), last["content"].message


def test_while_a_store_is_down_only_the_first_file_waits_for_it(server: tuple[S3Server, Storage]) -> None:
    failing, storage = server
    failing.faults = [fault()]
    asked = []
    for _ in range(2):
        failing.asked.clear()
        assert read(storage)[0]["content"].status == "missing"
        asked.append(failing.asked["GET", NOT_NOW])
    assert asked[1] < asked[0] / 4
    failing.faults = []
    assert len(read(storage)) == NUM_IMAGES
