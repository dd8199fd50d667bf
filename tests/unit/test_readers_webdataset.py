"""The reader of tars: each image is a row with its text, and a damaged tar adds one row that says so."""

from __future__ import annotations

import bz2
import errno
import functools
import gzip
import io
import itertools
import lzma
import pickle
import re
import tarfile
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nsfw_spark.errors import ImageError, storage_failed
from nsfw_spark.readers import Chunk
from nsfw_spark.readers.chunk import CHUNK_ROWS
from nsfw_spark.readers.storage import Storage
from nsfw_spark.readers.webdataset import COLUMNS, TarReader

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

MODIFIED: Final = datetime(2024, 2, 29, 12, 30, 0, 123456, tzinfo=UTC)
Entry = tuple[str, bytes]
Row = dict[str, Any]


def tar_of(*entries: Entry | tarfile.TarInfo, **options: Any) -> bytes:  # noqa: ANN401
    """Return a tar with files and headers without data, in order; `options` go to `tarfile.open`."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", **options) as tar:
        for entry in entries:
            if isinstance(entry, tarfile.TarInfo):
                tar.addfile(entry)
            else:
                info = tarfile.TarInfo(entry[0])
                info.size = len(entry[1])
                tar.addfile(info, io.BytesIO(entry[1]))
    return buffer.getvalue()


def special(name: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "0.jpg"
    return info


class MemoryStorage(Storage):
    """Files in memory, or the error that opening one raises."""

    def __init__(self, files: dict[str, bytes | Exception]) -> None:
        super().__init__()
        object.__setattr__(self, "files", files)
        object.__setattr__(self, "opened", [])

    def open_stream(self, uri: str) -> io.BufferedReader:
        content = self.__dict__["files"][uri]
        if isinstance(content, Exception):
            raise content
        self.__dict__["opened"].append(io.BufferedReader(cast("io.RawIOBase", io.BytesIO(content))))
        return self.__dict__["opened"][-1]


def listed(*paths: str) -> pa.RecordBatch:
    modified = pa.array([MODIFIED] * len(paths), pa.timestamp("us", "America/New_York"))
    lengths = pa.array([0] * len(paths), pa.int64())
    return pa.record_batch({"path": list(paths), "modificationTime": modified, "length": lengths})


def rows_of(chunks: Iterable[Chunk]) -> list[Row]:
    rows = []
    for chunk in chunks:
        contents = list(chunk.contents)
        assert chunk.columns.schema == COLUMNS
        assert len(contents) == chunk.columns.num_rows > 0
        rows += [{**row, "content": c} for row, c in zip(chunk.columns.to_pylist(), contents, strict=True)]
    return rows


def read(**tars: bytes | Exception) -> list[Row]:
    """Read tars, each under its name, `x` for x."""
    storage = MemoryStorage(dict(tars))
    rows = rows_of(TarReader(storage).read(iter([listed(*tars)])))
    assert all(stream.closed for stream in storage.__dict__["opened"])
    return rows


def read_one(content: bytes | Exception) -> list[Row]:
    return read(x=content)


def read_entries(
    *entries: Entry | tarfile.TarInfo,
    **options: Any,  # noqa: ANN401 - those of `tar_of`
) -> list[tuple[str, bytes | ImageError]]:
    """Return the entries' names and contents."""
    rows = read_one(tar_of(*entries, **options))
    return [(row["image_id"].removeprefix("x!/"), row["content"]) for row in rows]


def problem_of(rows: list[Row], status: str) -> str:
    """Return the message in the tar's own row."""
    (row,) = [row for row in rows if row["image_id"] == "x"]
    assert isinstance(row["content"], ImageError)
    assert (row["content"].status, row["source_file"]) == (status, "x")
    assert (row["caption"], row["json"], row["cls"]) == (None, None, None)
    assert row["modification_time"] == MODIFIED
    return str(row["content"])


def photos(num: int, size: int = 700) -> list[Entry]:
    return [(f"{i}.jpg", bytes([i % 256]) * size) for i in range(num)]


def test_an_image_is_a_row_with_its_tar_and_the_text_beside_it() -> None:
    tar = tar_of(("a/1.jpg", b"one"), ("a/1.txt", "é".encode()), ("a/1.json", b'{"n": 1}'), ("a/1.cls", b"7"))
    path = "s3a://bucket/a b%20.tar"
    (row,) = rows_of(TarReader(MemoryStorage({path: tar})).read(iter([listed(path)])))
    assert row == {
        "image_id": f"{path}!/a/1.jpg",
        "source_file": path,
        "modification_time": MODIFIED,
        "caption": "é",
        "json": '{"n": 1}',
        "cls": "7",
        "content": b"one",
    }


def test_a_reader_travels_and_opens_local_files(tmp_path: Path) -> None:
    (tmp_path / "a b.tar").write_bytes(tar_of(("1.jpg", b"one")))
    reader = pickle.loads(pickle.dumps(TarReader(Storage())))  # noqa: S301 - our own
    (row,) = rows_of(reader.read(iter([listed(f"file:{tmp_path}/a b.tar")])))
    assert (row["image_id"], row["content"]) == (f"file:{tmp_path}/a b.tar!/1.jpg", b"one")


@pytest.mark.parametrize("order", list(itertools.permutations(["b.jpg", "b.left.PNG", "b.json", "b.TXT"])))
def test_all_images_of_a_sample_get_its_text_before_or_after(order: tuple[str, ...]) -> None:
    samples = [(f"{directory}/{name}", f"{directory}{name}".encode()) for directory in "xy" for name in order]
    rows = read_one(tar_of(*samples))
    found = {row["image_id"]: (row["caption"], row["json"]) for row in rows}
    assert found == {
        f"x!/{directory}/{name}": (f"{directory}b.TXT", f"{directory}b.json")
        for directory in "xy"
        for name in ("b.jpg", "b.left.PNG")
    }


@pytest.mark.parametrize(
    ("image", "beside"),
    [
        ("a/b.jpg", "c/b.txt"),  # another directory
        ("b.jpg", "B.txt"),  # another case
        ("b.jpg", "b2.txt"),
        ("a.b/c.jpg", "a.txt"),  # a dot in a directory is none in the name
        ("b.jpg", "b.left.txt"),  # another key of the sample
        ("b.jpg", "b.txt.bak"),
    ],
)
def test_text_of_another_sample_is_not_taken(image: str, beside: str) -> None:
    for entries in ([(image, b"i"), (beside, b"t")], [(beside, b"t"), (image, b"i")]):
        (row,) = read_one(tar_of(*entries))
        assert row["caption"] is None


def test_a_sample_ends_where_another_begins() -> None:
    rows = read_one(tar_of(("a.jpg", b"1"), ("b.jpg", b"2"), ("a.txt", b"late")))
    assert [row["caption"] for row in rows] == [None, None]


def test_of_text_that_comes_twice_the_first_counts() -> None:
    (row,) = read_one(tar_of(("a.txt", b"first"), ("a.jpg", b"1"), ("a.txt", b"second")))
    assert row["caption"] == "first"


def test_text_is_decoded_whatever_it_is_and_kept_up_to_a_mebibyte() -> None:
    rows = read_one(
        tar_of(("a.txt", b"p\xe9"), ("a.jpg", b"1"), ("b.jpg", b"2"), ("b.json", b"x" * 3_000_000))
    )
    assert [row["caption"] for row in rows] == ["p\ufffd", None]
    assert rows[1]["json"] == "x" * (1 << 20)


def test_what_macos_keeps_beside_files_is_no_image_and_parts_no_sample() -> None:
    fork = b"\x00\x05\x16\x07"
    (row,) = read_one(tar_of(("._a.jpg", fork), ("a.jpg", b"1"), ("._a.txt", fork), ("a.txt", b"t")))
    assert (row["image_id"], row["caption"]) == ("x!/a.jpg", "t")


@pytest.mark.parametrize(
    "extension", ["jpg", "JPEG", "jfif", "png", "WebP", "avif", "heic", "jxl", "svg", "pgm"]
)
def test_an_extension_makes_an_image_in_any_case(extension: str) -> None:
    assert read_entries((f"a.{extension}", b"any")) == [(f"a.{extension}", b"any")]


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xd8\xff\xe0" + bytes(700),
        b"\x89PNG\r\n\x1a\n" + bytes(700),
        b"GIF89a",
        b"RIFF\x10\0\0\0WEBPVP8 " + bytes(700),
        b"BM\x46\0\0\0\0\0\0\0\x36\0\0\0",
        b"II*\0\x08\0\0\0",
        b"\0\0\0\x1cftypavif" + bytes(700),
        b"\0\0\0\x18ftypheic" + bytes(700),
    ],
)
@pytest.mark.parametrize("name", ["a", "a.image", "a/0001", "a.0.bin"])
def test_first_bytes_make_an_image_of_an_unknown_name(name: str, content: bytes) -> None:
    assert read_entries((name, content), *photos(1, 5)) == [(name, content), ("0.jpg", bytes(5))]


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff", b"BMW is a maker of cars", b"RIFF\x10\0\0\0WAVEfmt ", b"\0\0\0\x20ftypisom" + bytes(5000)],
)
def test_other_entries_are_no_images(content: bytes) -> None:
    assert read_entries(("a.npy", content), ("b.jpg", b"1"), ("c.mp4", content)) == [("b.jpg", b"1")]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE], ids=["symbolic", "hard"])
def test_a_link_to_an_image_is_a_row_that_says_so(kind: bytes) -> None:
    image, link = read_one(tar_of(*photos(1), special("again.jpg", kind), special("again.txt", kind)))
    assert isinstance(image["content"], bytes)
    assert link["image_id"] == "x!/again.jpg"
    assert link["content"].status == "unsupported"
    assert "a link to 0.jpg" in str(link["content"])


def test_what_is_no_file_is_no_image() -> None:
    kinds = {
        "directory.jpg": tarfile.DIRTYPE,
        "pipe.jpg": tarfile.FIFOTYPE,
        "device.jpg": tarfile.CHRTYPE,
    }
    entries = [special(name, kind) for name, kind in kinds.items()]
    assert read_entries(*entries, *photos(1), *entries) == photos(1)


def test_a_sparse_image_is_a_row_that_says_so() -> None:
    """GNU tar in pax format writes the map of the data before the data."""
    info = tarfile.TarInfo("GNUSparseFile.0/sparse.jpg")
    info.size, info.pax_headers = (
        1024,
        {
            "GNU.sparse.major": "1",
            "GNU.sparse.minor": "0",
            "GNU.sparse.name": "sparse.jpg",
            "GNU.sparse.realsize": "1000512",
        },
    )
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(info, io.BytesIO(b"1\n1000000\n512\n".ljust(512, b"\0") + b"d" * 512))
        tar.addfile(tarfile.TarInfo("after.jpg"))
    sparse, after = read_one(buffer.getvalue())
    assert (sparse["image_id"], after["image_id"]) == ("x!/sparse.jpg", "x!/after.jpg")
    assert "a sparse file" in str(sparse["content"])


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize(
    "name",
    [
        "./a.jpg",
        "a b%20#?.jpg",
        "日本.jpg",
        "a\nb.jpg",
        ".hidden.jpg",
        "__key__.jpg",
        f"{'d' * 90}/{'n' * 90}.jpg",
    ],
)
def test_names_are_as_in_the_tar(name: str, tar_format: int) -> None:
    assert read_entries((name, b"1"), format=tar_format) == [(name, b"1")]


@pytest.mark.parametrize("tar_format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_very_long_names_are_whole(tar_format: int) -> None:
    name = f"{'d' * 3000}/n.jpg"
    assert read_entries((name, b"1"), format=tar_format) == [(name, b"1")]


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_that_are_not_utf_8_stay_apart_and_printable(tar_format: int) -> None:
    names = [b"p\xe9.jpg", b"p\xe8.jpg"]
    entries = [(name.decode("utf-8", "surrogateescape"), b"1") for name in names]
    found = read_entries(*entries, format=tar_format)
    assert found == [("p\\xe9.jpg", b"1"), ("p\\xe8.jpg", b"1")]


def test_names_that_come_again_are_told_apart() -> None:
    names = ["a.jpg", "a.jpg#2", "a.jpg", "b.jpg", "a.jpg", "b.jpg", "a.jpg#2"]
    found = [name for name, _ in read_entries(*[(name, b"\xff\xd8\xff") for name in names])]
    assert found == ["a.jpg", "a.jpg#2", "a.jpg#3", "b.jpg", "a.jpg#4", "b.jpg#2", "a.jpg#2#2"]


def test_the_same_name_in_another_tar_is_another() -> None:
    rows = read(x=tar_of(*photos(1)), y=tar_of(*photos(1)))
    assert [row["image_id"] for row in rows] == ["x!/0.jpg", "y!/0.jpg"]
    assert [row["source_file"] for row in rows] == ["x", "y"]


# mtime=0 makes the content, and so a test's name, the same in each process.
gzipped = functools.partial(gzip.compress, mtime=0)

COMPRESSIONS: Final[dict[str, Callable[[bytes], bytes]]] = {
    "none": lambda content: content,
    "gzip": gzipped,
    "gzip in parts": lambda content: gzipped(content[:900]) + gzipped(content[900:]),
    "bzip2": bz2.compress,
    "bzip2 in parts": lambda content: bz2.compress(content[:900]) + bz2.compress(content[900:]),
    "xz": lzma.compress,
}


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_compressed_tars_are_read(compression: str) -> None:
    rows = read_one(COMPRESSIONS[compression](tar_of(*photos(200))))
    assert [(row["image_id"], row["content"]) for row in rows] == [
        (f"x!/{name}", content) for name, content in photos(200)
    ]


def test_a_chunk_holds_no_more_than_its_rows_and_no_sample_is_torn() -> None:
    entries = []
    for i in range(150):
        entries += [(f"{i}.a.jpg", b"1"), (f"{i}.b.jpg", b"2"), (f"{i}.c.jpg", b"3"), (f"{i}.txt", b"%d" % i)]
    chunks = list(TarReader(MemoryStorage({"x": tar_of(*entries)})).read(iter([listed("x")])))
    assert max(chunk.columns.num_rows for chunk in chunks) <= CHUNK_ROWS
    assert len(chunks) < 1.2 * 450 / CHUNK_ROWS
    assert [row["caption"] for row in rows_of(chunks)] == [str(i // 3) for i in range(450)]


def test_a_sample_larger_than_a_chunk_is_read_with_the_text_before_it() -> None:
    frames = [(f"clip.{i:03}.jpg", b"%d" % i) for i in range(200)]
    rows = read_one(tar_of(("clip.txt", b"before"), *frames, ("clip.json", b"after")))
    assert [row["content"] for row in rows] == [content for _, content in frames]
    assert {row["caption"] for row in rows} == {"before"}
    assert (rows[0]["json"], rows[-1]["json"]) == (None, "after")


def test_a_chunk_holds_32_mebibytes_and_at_most_one_image_more() -> None:
    size = 5 << 20
    tar = tar_of(("a.jpg", b"1"), *[(f"b.{i}.jpg", bytes(size)) for i in range(9)], *photos(9, size))
    chunks = list(TarReader(MemoryStorage({"x": tar})).read(iter([listed("x")])))
    lengths = [sum(len(row["content"]) for row in rows_of([chunk])) for chunk in chunks]
    assert max(lengths) < (32 << 20) + size
    assert sum(lengths) == 18 * size + 1


def test_small_tars_share_a_chunk() -> None:
    tars = {f"x{i}": tar_of(("a.jpg", b"1"), ("a.txt", b"%d" % i)) for i in range(40)}
    batches = [listed(*tars)[:13], listed(*tars)[13:]]
    (chunk,) = TarReader(MemoryStorage(dict(tars))).read(iter(batches))
    assert chunk.columns.column("caption").to_pylist() == [str(i) for i in range(40)]


DAMAGED: Final = tar_of(*photos(4))  # of 512 + 1024 bytes each, in 10,240
DATA_2: Final = 2 * 1536 + 512
"""Where the third image's data begins."""


def broken(content: bytes, position: int, new: bytes) -> bytes:
    return content[:position] + new + content[position + len(new) :]


def header_with_size(size: bytes) -> bytes:
    """Return a header with a checksum that is right and a size that may not be."""
    header = bytearray(tar_of(("3.jpg", b""))[:512])
    header[124:136] = size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


@pytest.mark.parametrize(
    ("content", "num_images", "says"),
    [
        (b"", 0, "byte 0: it is empty"),
        (b"text", 0, "byte 4: it ends there, without"),
        (b"text" * 1000, 0, "byte 0: it is no tar .*gzip, bzip2 or xz"),
        (DAMAGED[: DATA_2 + 100], 2, f"byte {DATA_2 + 100}: it ends there, without"),
        (DAMAGED[: DATA_2 + 710], 3, f"byte {DATA_2 + 710}: it ends there, without"),  # in the padding
        (DAMAGED[: DATA_2 - 512 + 9], 2, f"byte {DATA_2 - 512 + 9}: it ends there, without"),  # in a header
        (DAMAGED[: 3 * 1536], 3, "byte 4608: it ends there, without"),  # between two entries
        (DAMAGED[: 4 * 1536], 4, "byte 6144: it ends there, without an end-of-archive marker"),
        (broken(DAMAGED, 2 * 1536, b"!"), 2, "byte 3072: no entry begins there"),
        (broken(DAMAGED, 3 * 1536, header_with_size(b"\xff" * 12)), 3, "negative size"),
        (broken(DAMAGED, 3 * 1536, header_with_size(b"\x80" + bytes(5) + b"\xff" * 6)), 3, "it ends there"),
        (DAMAGED + DAMAGED, 4, "byte 10240: another archive"),
        (gzipped(DAMAGED)[:-1], 4, "compression is damaged .*ended before"),
        (broken(gzipped(DAMAGED), -8, b"!!!!"), 4, "compression is damaged .*CRC"),
        (gzipped(DAMAGED) + b"junk" * 9, 4, "compression is damaged .*Not a gzipped file"),
        (gzipped(DAMAGED[: 3 * 1536]), 3, "byte 4608: it ends there, without"),
        (gzipped(b"text" * 1000), 0, "byte 0: it is no tar"),
        (gzipped(b""), 0, "byte 0: it is empty"),
        (b"\x1f\x8b", 0, "byte 0: its compression is damaged"),
        (b"\x1f\x8b\x08" + b"\xff" * 600, 0, "byte 0: its compression is damaged"),
        (bz2.compress(DAMAGED)[:-9], 4, "compression is damaged .*ended before"),
        (b"BZh9" + bytes(99), 0, "compression is damaged .*Invalid data stream"),
        (lzma.compress(DAMAGED)[:-9], 4, "compression is damaged .*ended before"),
        (broken(lzma.compress(DAMAGED), 40, b"!!!!!!!!"), 0, "compression is damaged .*Corrupt input"),
    ],
)
def test_what_comes_before_damage_is_read_and_a_row_says_where_it_is(
    content: bytes, num_images: int, says: str
) -> None:
    rows = read_one(content)
    assert [row["content"] for row in rows[:-1]] == [content for _, content in photos(4)[:num_images]]
    assert re.search(says, problem_of(rows, "undecodable"))


@pytest.mark.parametrize(
    "pax",
    [
        b"0 path=x\n",
        b"30 GNU.sparse.map=1,x\n",
        b"13 size=-999\n",
        b"11 size=-1\n",
        b"30 size=x\n",
    ],
)
def test_extended_headers_that_make_no_sense_are_damage(pax: bytes) -> None:
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, len(pax)
    block = header.tobuf(tarfile.USTAR_FORMAT) + pax.ljust(512, b"\0")
    rows = read_one(DAMAGED[: 3 * 1536] + block + DAMAGED[3 * 1536 :])
    assert [row["content"] for row in rows[:3]] == [content for _, content in photos(3)]
    assert len(rows) <= 5  # tarfile takes a size that is no number for 0
    assert problem_of(rows, "undecodable")


def test_a_header_that_asks_for_all_memory_is_damage() -> None:
    header = tarfile.TarInfo("long")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 1 << 32
    rows = read_one(DAMAGED[:1536] + header.tobuf(tarfile.GNU_FORMAT) + DAMAGED[1536:])
    assert len(rows) == 2
    assert "byte 2048: a header there asks for 4294967296 bytes" in problem_of(rows, "undecodable")


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "x"), "No such file"),
        (storage_failed("AWS Error SLOW_DOWN"), "AWS Error SLOW_DOWN"),
    ],
)
def test_a_tar_that_cannot_be_opened_is_a_row_and_the_next_is_read(error: Exception, says: str) -> None:
    rows = read(x=error, y=tar_of(*photos(2)))
    assert says in problem_of(rows, "missing")
    assert [row["content"] for row in rows[1:]] == [content for _, content in photos(2)]


def test_a_tar_that_was_listed_and_is_gone_is_a_row(tmp_path: Path) -> None:
    for name in ("gone.tar", ""):  # and one that has become a directory
        (row,) = rows_of(TarReader(Storage()).read(iter([listed(f"file:{tmp_path}/{name}")])))
        assert row["content"].status == "missing"


class OneFile(Storage):
    """A storage with one file, which Python reads."""

    def __init__(self, file: io.RawIOBase | io.BytesIO) -> None:
        super().__init__()
        object.__setattr__(self, "file", file)

    def open_stream(self, uri: str) -> io.BufferedReader:  # noqa: ARG002 - there is one
        return io.BufferedReader(self.__dict__["file"])


class FailingFile(io.BytesIO):
    """A file whose storage fails after the file was opened."""

    def readinto(self, buffer: WriteableBuffer) -> int:
        if self.tell() > 3 * 1536:
            raise storage_failed("AWS Error NETWORK_CONNECTION")
        return super().readinto(memoryview(buffer)[:1024])


@pytest.mark.parametrize("compression", ["none", "gzip", "bzip2", "xz"])
def test_where_the_storage_fails_the_tar_is_missing_and_not_damaged(compression: str) -> None:
    noise = [(f"{i}.jpg", np.random.default_rng(i).bytes(3_000)) for i in range(4)]
    file = FailingFile(COMPRESSIONS[compression](tar_of(*noise)))
    rows = rows_of(TarReader(OneFile(file)).read(iter([listed("x")])))
    assert "NETWORK_CONNECTION" in problem_of(rows, "missing")


@pytest.mark.parametrize("entries", [[], [("a.txt", b"t"), special("d", tarfile.DIRTYPE)]], ids=len)
def test_a_tar_without_an_image_is_a_row_that_says_so(entries: list[Any]) -> None:
    said = problem_of(read_one(tar_of(*entries)), "unsupported")
    assert said == f"the tar holds no image among its {len(entries)} entries"


def test_one_row_for_each_tar_of_all_kinds() -> None:
    rows = read(
        a=b"", b=tar_of(*photos(1)), c=tar_of(), d=FileNotFoundError("gone"), e=tar_of(*photos(70))[:-9]
    )
    found = [tar for tar, _ in itertools.groupby(row["source_file"] for row in rows)]
    assert found == ["a", "b", "c", "d", "e"]
    assert len(rows) == 74


WHOLE: Final = tar_of(
    ("1.jpg", b"x" * 600),
    ("1.txt", b"caption"),
    special("d", tarfile.DIRTYPE),
    ("é" * 90 + ".png", b"y" * 512),
    ("1.npy", b"z" * 1000),
    ("3.jpg", b""),
    ("4", b"\xff\xd8\xff"),
    format=tarfile.PAX_FORMAT,
)
END: Final = len(WHOLE.rstrip(b"\0")) // 512 * 512 + 512
"""Where the end-of-archive marker begins."""


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(WHOLE)))
@example(END)
@example(END + 511)
@example(END + 512)
@example(len(WHOLE))
def test_a_tar_may_be_cut_at_any_byte(cut: int) -> None:
    whole = [(row["image_id"], row["content"]) for row in read_one(WHOLE)]
    rows = [(row["image_id"], row["content"]) for row in read_one(WHOLE[:cut])]
    problems = [content for _, content in rows if isinstance(content, ImageError)]
    assert len(whole) == 4
    if cut >= END + 512:
        assert rows == whole
    else:
        assert [problem.status for problem in problems] == ["undecodable"]
        assert f"byte {cut}:" in str(problems[0])
        assert rows[:-1] == whole[: len(rows) - 1]


@settings(max_examples=200, deadline=None)
@given(st.integers(0, END), st.binary(min_size=1, max_size=600), st.sampled_from(sorted(COMPRESSIONS)))
def test_a_tar_may_be_damaged_anywhere(position: int, damage: bytes, compression: str) -> None:
    content = COMPRESSIONS[compression](WHOLE)
    rows = read_one(broken(content, position % len(content), damage))
    assert rows
    assert len({row["image_id"] for row in rows}) == len(rows)
    assert all(isinstance(row["content"], bytes) for row in rows[:-1])


class Gibibytes(io.RawIOBase):
    """A file of parts in order: bytes, or a number of zeros that are never in memory at once."""

    def __init__(self, parts: list[bytes | int]) -> None:
        self._parts = parts
        self._zeros = bytes(1 << 20)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        if not self._parts:
            return 0
        view, part = memoryview(buffer), self._parts.pop(0)
        taken = self._zeros[: min(len(view), part)] if isinstance(part, int) else part[: len(view)]
        rest = part - len(taken) if isinstance(part, int) else part[len(view) :]
        if rest:
            self._parts.insert(0, rest)
        view[: len(taken)] = taken
        return len(taken)


def test_a_tar_of_gibibytes_is_read_in_constant_memory() -> None:
    """The reader skips a video; an image that is too large has a row."""
    parts: list[bytes | int] = []
    for name, size in [("film.mp4", (2 << 30) + 512), ("huge.jpg", (1 << 30) + 512), ("good.jpg", 0)]:
        info = tarfile.TarInfo(name)
        info.size = size
        parts += [info.tobuf(tarfile.GNU_FORMAT), size] if size else [info.tobuf(tarfile.GNU_FORMAT)]
    tracemalloc.start()
    try:
        rows = rows_of(TarReader(OneFile(Gibibytes([*parts, 1024]))).read(iter([listed("x")])))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16 << 20
    assert [row["image_id"] for row in rows] == ["x!/huge.jpg", "x!/good.jpg"]
    assert (rows[0]["content"].status, rows[1]["content"]) == ("too_large", b"")
    assert f"{(1 << 30) + 512} bytes" in str(rows[0]["content"])


def test_memory_does_not_grow_with_the_entries() -> None:
    num = 5_000
    tar = tar_of(*[(f"{i}.jpg", b"1") for i in range(num)])
    reader = TarReader(MemoryStorage({"x": tar}))

    def consume() -> Iterator[int]:
        for chunk in reader.read(iter([listed("x")])):
            yield len(list(chunk.contents))

    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        assert sum(consume()) == num
        grown = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    # The stream's buffer, a chunk, and a hash for each name; tarfile's own list takes 1.5 KB an entry.
    assert grown < (3 << 20) + 150 * num
