"""Shards: a file holds the given images, and the same images give the same bytes."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nsfw_spark.readers.parquet import ParquetReader, RowColumns
from nsfw_spark.readers.storage import Storage
from nsfw_spark.readers.webdataset import TarReader
from nsfw_spark.shards import KEY, SHARD, TEMPORARY, Shard, ShardFormat, ShardWriter
from tests.conftest import jpeg, png

SCHEMA = pa.schema(
    [
        (SHARD, pa.int64()),
        (KEY, pa.string()),
        ("image_id", pa.string()),
        ("nsfw_score", pa.float32()),
        ("modification_time", pa.timestamp("us", "Europe/Berlin")),
        ("caption", pa.string()),
        ("json", pa.string()),
        ("format", pa.string()),
        ("content", pa.binary()),
    ]
)
NOON = datetime(2024, 6, 1, 12, tzinfo=UTC)


def image(number: int, *, shard: int = 0, **changes: Any) -> dict[str, Any]:  # noqa: ANN401
    """Return a row; `changes` are its columns."""
    row = {
        SHARD: shard,
        KEY: f"{number:09d}",
        "image_id": f"s3a://b/{number}.png",
        "nsfw_score": 0.25,
        "modification_time": NOON,
        "caption": f"caption {number}, größer",
        "json": '{"licence": "CC0", "tags": ["a", "b"]}',
        "format": "PNG",
        "content": png(seed=number),
    }
    return {**row, **changes}


def write(folder: Path, format_: ShardFormat, *batches: list[dict[str, Any]]) -> list[Shard]:
    given = iter([pa.RecordBatch.from_pylist(batch, schema=SCHEMA) for batch in batches])
    return list(ShardWriter(Storage(), f"file:{folder}", format_).write(given))


def entries(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {entry.name: tar.extractfile(entry).read() for entry in tar}  # type: ignore[union-attr]


def listed(path: Path) -> Iterator[pa.RecordBatch]:
    """Return a file as Spark lists it to a reader."""
    row = {"path": f"file:{path}", "modificationTime": NOON, "length": 1, "part": 0, "parts": 1}
    return iter([pa.RecordBatch.from_pylist([row])])


def test_an_entry_is_the_image_as_it_was_and_beside_it_lie_caption_and_metadata(tmp_path: Path) -> None:
    (shard,) = write(tmp_path, "webdataset", [image(7)])
    found = entries(tmp_path / "00000.tar")
    assert list(found) == ["000000007.png", "000000007.txt", "000000007.json"]
    assert found["000000007.png"] == png(seed=7)
    assert found["000000007.txt"].decode() == "caption 7, größer"
    assert json.loads(found["000000007.json"]) == {
        "image_id": "s3a://b/7.png",
        "nsfw_score": 0.25,
        "modification_time": "2024-06-01T12:00:00+00:00",
        "caption": "caption 7, größer",
        "json": {"licence": "CC0", "tags": ["a", "b"]},
    }
    assert (shard.number, shard.name, shard.images, shard.missing) == (0, "00000.tar", 1, 0)


def test_a_shard_says_how_its_file_can_be_checked(tmp_path: Path) -> None:
    for format_, name in (("webdataset", "00003.tar"), ("parquet", "00003.parquet")):
        (shard,) = write(tmp_path, format_, [image(1, shard=3), image(2, shard=3)])
        content = (tmp_path / name).read_bytes()
        assert (shard.name, shard.images, shard.bytes) == (name, 2, len(content))
        assert shard.sha256 == hashlib.sha256(content).hexdigest()
    assert not list((tmp_path / TEMPORARY).iterdir())


@pytest.mark.parametrize("format_", ["webdataset", "parquet"])
def test_however_the_images_come_the_bytes_are_the_same(tmp_path: Path, format_: ShardFormat) -> None:
    images = [image(number, shard=number // 3) for number in range(7)]
    one = write(tmp_path / "one", format_, images)
    other = write(tmp_path / "other", format_, images[:2], images[2:4], images[4:])
    assert [shard.images for shard in one] == [3, 3, 1]
    assert one == other
    again = write(tmp_path / "one", format_, images)  # a task that is tried again
    assert again == one
    assert len(list((tmp_path / "one").glob("0*"))) == 3


def test_an_image_without_bytes_is_left_out_and_named(tmp_path: Path) -> None:
    images = [
        image(0),
        image(1, content=None),
        image(2),
        *(image(n, shard=1, content=None) for n in range(3, 15)),
    ]
    first, second = write(tmp_path, "webdataset", images)
    assert [name for name in entries(tmp_path / "00000.tar") if name.endswith("png")] == [
        "000000000.png",
        "000000002.png",
    ]
    assert (first.images, first.missing, first.first_missing) == (2, 1, ["s3a://b/1.png"])
    assert (second.name, second.images, second.missing, second.sha256) == (None, 0, 12, None)
    assert second.first_missing == [f"s3a://b/{n}.png" for n in range(3, 13)]
    assert not (tmp_path / "00001.tar").exists()


@pytest.mark.parametrize(
    ("format_", "image_id", "extension"),
    [
        ("JPEG", "x.png", "jpg"),
        ("MPO", "x", "jpg"),
        ("WEBP", "x", "webp"),
        ("TIFF", "x", "tif"),
        (None, "x.tar!/a.b/c.JPEG", "jpeg"),
        (None, "x.parquet#7", "img"),
        (None, "no/ex.tension/here", "img"),
    ],
)
def test_the_extension_is_the_formats(
    tmp_path: Path, format_: str | None, image_id: str, extension: str
) -> None:
    write(tmp_path, "webdataset", [image(1, format=format_, image_id=image_id)])
    assert next(iter(entries(tmp_path / "00000.tar"))) == f"000000001.{extension}"


def test_json_that_is_none_and_absent_captions_do_no_harm(tmp_path: Path) -> None:
    rows = [
        image(1, json="{broken", caption=None, nsfw_score=float("nan")),
        image(2, json=None, caption="", nsfw_score=None),
        image(3, json="NaN"),
    ]
    write(tmp_path, "webdataset", rows)
    found = entries(tmp_path / "00000.tar")
    first, second, third = (json.loads(found[f"00000000{n}.json"]) for n in (1, 2, 3))
    assert (first["json"], first["nsfw_score"], first["caption"]) == ("{broken", None, None)
    assert (second["json"], second["nsfw_score"]) == (None, None)
    assert third["json"] is None
    assert "000000001.txt" not in found
    assert found["000000002.txt"] == b""


def test_the_reader_of_tars_reads_them_back(tmp_path: Path) -> None:
    images = [image(1), image(2, format="JPEG", content=jpeg(seed=2))]
    write(tmp_path, "webdataset", images)
    (chunk,) = TarReader(Storage()).read(listed(tmp_path / "00000.tar"))
    assert list(chunk.contents) == [row["content"] for row in images]
    assert chunk.columns.column("caption").to_pylist() == [row["caption"] for row in images]


def test_the_reader_of_parquet_reads_them_back(tmp_path: Path) -> None:
    images = [image(1), image(2, format="JPEG", content=jpeg(seed=2))]
    write(tmp_path, "parquet", images)
    columns = RowColumns("image", "image_id", {"caption": pa.field("caption", pa.string())})
    reader = ParquetReader(Storage(), columns)
    (chunk,) = reader.read(listed(tmp_path / "00000.parquet"))
    assert list(chunk.contents) == [row["content"] for row in images]
    assert chunk.columns.column("image_id").to_pylist() == [row["image_id"] for row in images]
    assert chunk.columns.column("caption").to_pylist() == [row["caption"] for row in images]


def test_parquet_has_hugging_faces_layout(tmp_path: Path) -> None:
    write(tmp_path, "parquet", [image(1), image(2, caption=None)])
    table = pq.read_table(tmp_path / "00000.parquet")
    assert table.column_names == ["image", "image_id", "nsfw_score", "modification_time", "caption", "json"]
    assert table.column("image").to_pylist()[0] == {"bytes": png(seed=1), "path": "000000001.png"}
    assert table.column("caption").to_pylist() == ["caption 1, größer", None]
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert features == {"image": {"_type": "Image"}}


def test_row_groups_of_parquet_are_of_a_size_to_read_at_once(tmp_path: Path) -> None:
    large = bytes(9 << 20)
    write(tmp_path, "parquet", *([image(number, content=large)] for number in range(6)))
    metadata = pq.ParquetFile(tmp_path / "00000.parquet").metadata
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [4, 2]


def test_a_tar_is_nobodys_and_of_no_time(tmp_path: Path) -> None:
    write(tmp_path, "webdataset", [image(1)])
    with tarfile.open(fileobj=io.BytesIO((tmp_path / "00000.tar").read_bytes())) as tar:
        assert {(entry.mtime, entry.uid, entry.gid, entry.uname, entry.mode) for entry in tar} == {
            (0, 0, 0, "", 0o644)
        }


def test_what_cannot_be_written_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match="file"):
        write(tmp_path / "file", "webdataset", [image(1)])
