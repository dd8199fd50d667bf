"""Targets: readers of untrusted bytes, each with a property that must hold for any bytes.

A target takes bytes and returns; whatever it raises is a defect. Hypothesis and atheris call the same ones.
"""

from __future__ import annotations

import io
import socket
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

import numpy as np
import pyarrow as pa

from nsfw_spark import wire
from nsfw_spark.cards import load_card
from nsfw_spark.decode import MOST_VIEWS, DecodedImage, decode
from nsfw_spark.errors import ConfigError, ImageError, NsfwSparkError, WeightsError
from nsfw_spark.host.protocol import read_scores
from nsfw_spark.isolation.replies import read_reply
from nsfw_spark.laion import read_head
from nsfw_spark.model_card import Preprocessing
from nsfw_spark.readers.storage import Storage
from nsfw_spark.readers.vectors import NpyReader
from nsfw_spark.readers.webdataset import TarReader
from nsfw_spark.wire import MessageError
from tests.fuzz import seeds

MAX_PIXELS: Final = 4_000_000
MAX_MESSAGE: Final = 1_500  # characters
MAX_RECEIVED: Final = 1 << 16  # bytes
DIMENSION: Final = 4
SIZE: Final = 16
_PREPROCESSING: Final = Preprocessing(size=SIZE, mean=(0, 0, 0), std=(1, 1, 1))


class Target(NamedTuple):
    """One reader."""

    check: Callable[[bytes], None]
    seeds: Callable[[], dict[str, bytes]]


def image(content: bytes) -> None:
    """An image is pixels of the right shape, or an `ImageError` that says why not."""
    outcome = _decoded(content, strict=False)
    if isinstance(outcome, ImageError):
        _check_problem(outcome, {"undecodable", "unsupported", "too_large"})
    else:
        assert (outcome.pixels.shape, outcome.pixels.dtype) == ((SIZE, SIZE, 3), np.uint8)
        assert outcome.header.width * outcome.header.height <= MAX_PIXELS


def views(content: bytes) -> None:
    """Strict decoding changes neither the centre of an image nor its error."""
    centre, all_views = (_decoded(content, strict=strict) for strict in (False, True))
    if isinstance(centre, ImageError) or isinstance(all_views, ImageError):
        assert isinstance(all_views, ImageError)
        assert isinstance(centre, ImageError)
        assert all_views.args == centre.args
    else:
        assert np.array_equal(all_views.pixels, centre.pixels)
        assert all_views.header == centre.header
        assert 1 <= all_views.num_frames <= MOST_VIEWS
        assert len(all_views.views) <= MOST_VIEWS
        assert {view.pixels.shape for view in all_views.views} == {(SIZE, SIZE, 3)}
        assert len({view.name for view in all_views.views}) == len(all_views.views)


def tar(content: bytes) -> None:
    """A tar is images under names of their own, and at most one row with the error of the tar."""
    listed = _listed("file:/a.tar")
    ids: list[str] = []
    for chunk in TarReader(_Held(content=content)).read(iter([listed])):
        contents = list(chunk.contents)
        assert len(contents) == chunk.columns.num_rows
        for each in contents:
            assert isinstance(each, bytes) or _check_problem(each)
        ids += chunk.columns.column("image_id").to_pylist()
    assert len(set(ids)) == len(ids) > 0
    assert ids.count("file:/a.tar") <= 1


def npy(content: bytes) -> None:
    """A `.npy` file is vectors of the right length, each with its row, or rows with errors."""
    listed = _listed("file:/a.npy", part=0, parts=1)
    ids: list[str] = []
    for chunk in NpyReader(_Held(content=content), DIMENSION).read(iter([listed])):
        assert chunk.vectors.shape == (chunk.columns.num_rows, DIMENSION)
        assert chunk.vectors.dtype == np.float32
        assert all(_check_problem(problem) for problem in chunk.problems.values())
        ids += chunk.columns.column("image_id").to_pylist()
    assert len(set(ids)) == len(ids) <= len(content) + 1


def card(content: bytes) -> None:
    """A model card is a card, or a `ConfigError`."""
    with _file(content, ".yaml") as path:
        try:
            load_card(path)
        except ConfigError as error:
            _check_message(error)


def laion_head(content: bytes) -> None:
    """A safetensors file is a head, or a `WeightsError`."""
    with _file(content, ".safetensors") as path:
        try:
            head = read_head(path)
        except WeightsError as error:
            _check_message(error)
        else:
            assert head.layers


def conversation(content: bytes) -> None:
    """Bytes from a socket are messages, each with a meaning, or a `MessageError`."""
    here, there = socket.socketpair()
    with here, there:
        here.sendall(content[:MAX_RECEIVED])
        here.close()
        try:
            while (message := wire.receive(there, MAX_RECEIVED)) is not None:
                _read_message(*message)
        except MessageError as error:
            _check_message(error)


def _read_message(head: dict[str, Any], body: bytes) -> None:
    if head.get("kind") == "scores":
        assert len(read_scores(head, body, 3)) == 3
    elif "error" in head:
        assert isinstance(wire.read_error(head), NsfwSparkError)
    elif head.keys() & {"header", "views", "status"}:
        assert isinstance(read_reply(head, body, (4, 4, 3)), DecodedImage | ImageError)


TARGETS: Final = {
    "image": Target(image, seeds.images),
    "views": Target(views, seeds.hidden),
    "tar": Target(tar, seeds.tars),
    "npy": Target(npy, seeds.npy_files),
    "card": Target(card, seeds.cards),
    "laion-head": Target(laion_head, seeds.laion_heads),
    "conversation": Target(conversation, seeds.conversations),
}


def _decoded(content: bytes, *, strict: bool) -> DecodedImage | ImageError:
    try:
        return decode(content, _PREPROCESSING, max_pixels=MAX_PIXELS, strict=strict)
    except ImageError as error:
        return error


@dataclass(frozen=True)
class _Held(Storage):
    """A storage of one file in memory, under any name except those of Parquet files."""

    content: bytes = b""

    def open_stream(self, uri: str) -> io.BufferedReader:  # noqa: ARG002 - as Storage has it
        return io.BufferedReader(cast("io.RawIOBase", io.BytesIO(self.content)))

    def open_file(self, uri: str) -> pa.NativeFile:
        if uri.endswith(".parquet"):
            raise FileNotFoundError(uri)
        return pa.BufferReader(self.content)


def _listed(path: str, **more: int) -> pa.RecordBatch:
    time = pa.array([datetime(2026, 1, 1, tzinfo=UTC)], pa.timestamp("us", "UTC"))
    columns = {"path": pa.array([path]), "modificationTime": time}
    return pa.RecordBatch.from_pydict(
        {**columns, **{name: pa.array([value]) for name, value in more.items()}}
    )


def _file(content: bytes, suffix: str) -> _Written:
    return _Written(content, suffix)


class _Written:
    """A temporary file with this content."""

    def __init__(self, content: bytes, suffix: str) -> None:
        self._file = tempfile.NamedTemporaryFile(suffix=suffix)  # noqa: SIM115 - closed below
        self._file.write(content)
        self._file.flush()

    def __enter__(self) -> Path:
        return Path(self._file.name)

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _check_problem(problem: object, statuses: frozenset[str] | set[str] | None = None) -> bool:
    assert isinstance(problem, ImageError)
    assert statuses is None or problem.status in statuses
    _check_message(problem)
    return True


def _check_message(error: Exception) -> None:
    """Check that a message is one short line."""
    assert 0 < len(str(error)) < MAX_MESSAGE
    assert "\n" not in str(error)
