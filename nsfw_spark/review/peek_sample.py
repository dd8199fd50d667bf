"""Takes a sample of an input without Spark: of image files, tars or Parquet files, here or in a store.

In: an input and a seed. Out: some of its images as encoded bytes, and the number of images in the input. A
local directory of image files needs only the standard library; the rest needs pyarrow. Decodes nothing.
"""

from __future__ import annotations

import os
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from nsfw_spark.decode import too_long
from nsfw_spark.errors import ImageError, InputError
from nsfw_spark.formats import FILES, NAMES_SEEN, SUFFIXES, find_format, has_suffix
from nsfw_spark.options import PeekOptions
from nsfw_spark.review.listing import EXPECTED, ListedFile, Listing, list_files, open_storage

if TYPE_CHECKING:  # image files on this machine are sampled without pyarrow
    import pyarrow as pa

    from nsfw_spark.readers.parquet import RowColumns
    from nsfw_spark.readers.storage import Storage

T = TypeVar("T")

_OPEN_ARCHIVES: Final = 10  # tars or Parquet files that are read side by side


class SampledImage(NamedTuple):
    """An image of the sample."""

    image_id: str
    """The image_id that a run gives the image."""
    file: str
    """URI of the file that holds it; `file:/…` on this machine."""


class Count(NamedTuple):
    """How many images an input holds."""

    number: int
    is_estimate: bool = False
    """Whether archives were opened only in part, so that their bytes tell the number."""
    is_at_least: bool = False
    """Whether the listing was cut off."""

    def __str__(self) -> str:
        words = ["at least"] * self.is_at_least + ["about"] * self.is_estimate
        return " ".join([*words, f"{self.number:,}"])


@dataclass
class Sample:
    """Images of an input, chosen at random."""

    uri: str
    """The input as a run names it; `file:/…` on this machine."""
    format: str
    """`files`, `webdataset` or `parquet`."""
    images: Iterator[tuple[SampledImage, bytes | ImageError]]
    """Iterate once: each image is read only then."""
    count: Callable[[], Count]
    """Counts the images of the input, after the iteration."""
    notes: list[str] = field(default_factory=list)
    """What the listing left out, for people."""


def take_sample(options: PeekOptions) -> Sample:
    """List an input and choose images of it; open none yet.

    The listing ends at 100,000 names, or after 20 seconds. Of a tar or a row group, the sample has only the
    first images: nobody wants to read 1 GB for five of them.

    Raises:
        InputError: The input is absent, empty, of several formats, or no directory of images.
        ConfigError: The glob or the URI is wrong, or pyarrow is needed and absent.
    """
    if options.format not in ("auto", FILES, "webdataset", "parquet"):
        raise InputError(
            f"got --format {options.format}; expected files, webdataset or parquet: a peek reads files, "
            f"without Spark. To score the input: nsfw-spark run INPUT --output OUT --format {options.format}"
        )
    listing = list_files(options)
    format_: str = options.format
    if format_ == "auto":
        format_ = find_format(options.input, (file.uri for file in listing.files[:NAMES_SEEN]))
    if format_ == "npy":
        raise InputError(
            f"input {options.input} holds embeddings (.npy); expected images. To score embeddings: "
            "nsfw-spark run INPUT --output OUT --format embeddings"
        )
    if format_ != FILES and options.glob is None:
        listing.files = [file for file in listing.files if has_suffix(file.name, format_)]
    if not listing.files:
        raise InputError(_nothing(options, format_))
    listing.files.sort()  # file systems list in any order, and a seed has to choose the same images again
    if format_ == FILES:
        return _sample_of_files(listing, options)
    return _sample_of_archives(format_, listing, options)


def _nothing(options: PeekOptions, format_: str) -> str:
    """Return the error message of an input without files."""
    fitting = ""
    if options.glob is not None:
        fitting = f" that matches {options.glob}"
    elif format_ in SUFFIXES:
        fitting = f" that ends in .{', .'.join(SUFFIXES[format_])}"
    hidden = "Names that begin with _ or . are skipped"
    return f"input {options.input} holds no file{fitting}; {EXPECTED}. {hidden}"


def _sample_of_files(listing: Listing, options: PeekOptions) -> Sample:
    files, storage = listing.files, listing.storage
    chosen = random.Random(options.seed).sample(files, min(options.n, len(files)))  # noqa: S311 - no secret
    count = Count(len(files), is_at_least=listing.is_cut)
    read = _read_local if storage is None else partial(_read_stored, storage)
    return Sample(listing.uri, FILES, read(chosen, options.max_bytes), lambda: count, listing.notes)


_Images = Iterator[tuple[SampledImage, bytes | ImageError]]


def _read_local(files: Sequence[ListedFile], max_bytes: int) -> _Images:
    for file in files:
        yield SampledImage(file.uri, file.uri), _content(file.uri.removeprefix("file:"), max_bytes)


def _content(path: str, max_bytes: int) -> bytes | ImageError:
    """Read a file as `readers.files` does, without pyarrow."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - as text
            size = os.fstat(file.fileno()).st_size
            return too_long(size, max_bytes) if size > max_bytes else file.read()
    except OSError as error:
        return ImageError("missing", f"the file was listed and could not be read ({error.strerror})")


def _read_stored(storage: Storage, files: Sequence[ListedFile], max_bytes: int) -> _Images:
    import pyarrow as pa

    from nsfw_spark.readers.files import FileReader

    uris, sizes = [file.uri for file in files], [file.size or 0 for file in files]
    listed = {
        "path": uris,
        "modificationTime": pa.nulls(len(uris), pa.timestamp("us", "UTC")),
        "length": pa.array(sizes, pa.int64()),
    }
    for chunk in FileReader(storage, max_bytes).read(iter([pa.RecordBatch.from_pydict(listed)])):
        ids = chunk.columns.column("image_id").to_pylist()
        yield from (
            (SampledImage(uri, uri), content) for uri, content in zip(ids, chunk.contents, strict=True)
        )


@dataclass
class _Archives:
    """Reads images of tars or Parquet files, and counts what it has read.

    The counts give an estimate of the number of images in all archives.
    """

    storage: Storage
    options: PeekOptions
    chance: random.Random
    num_images: int = 0
    num_bytes: int = 0
    """Bytes that hold those images."""
    num_whole: int = 0
    """Archives whose images are all counted."""

    def count(self, archives: Sequence[ListedFile], *, is_cut: bool) -> Count:
        """Return the number of images in all archives; see `Count`."""
        if self.num_whole == len(archives):
            return Count(self.num_images, is_at_least=is_cut)
        share = self.num_bytes / max(1, sum(archive.size or 0 for archive in archives))
        return Count(round(self.num_images / share) if share else 0, is_estimate=True, is_at_least=is_cut)

    def webdataset(self, tar: ListedFile) -> _Images:
        """Yield the images of a tar from its beginning, and the error of a damaged one."""
        from nsfw_spark.readers.storage import unread
        from nsfw_spark.readers.webdataset import tar_images

        position = 0
        try:
            with self.storage.open_stream(tar.uri) as file:
                for image_id, content in tar_images(file, tar.uri, self.options.max_bytes):
                    self.num_images += 1
                    self.num_bytes += file.tell() - position
                    position = file.tell()  # in the compressed file
                    yield SampledImage(image_id, tar.uri), content
        except (FileNotFoundError, ImageError) as error:
            self.num_images += 1
            yield SampledImage(tar.uri, tar.uri), error if isinstance(error, ImageError) else unread(error)
        self.num_bytes += (tar.size or 0) - position
        self.num_whole += 1

    def parquet(self, table: ListedFile) -> _Images:
        """Yield the images of a Parquet file, row group after row group, in random order."""
        import pyarrow as pa

        from nsfw_spark.readers.chunk import TIMESTAMP
        from nsfw_spark.readers.parquet import FilePart, RowColumns, file_problem, images, open_parquet

        whole = FilePart(table.uri, pa.scalar(None, TIMESTAMP), 0, 1)
        rows_at_once = -(-self.options.n // _OPEN_ARCHIVES)
        self.num_whole += 1  # its footer counts its rows
        self.num_bytes += table.size or 0
        try:
            with open_parquet(self.storage, table.uri, RowColumns()) as opened:
                self.num_images += opened.num_rows
                rows_of = replace(opened, columns=_columns(opened.file.schema_arrow, self.options)).read
                for group in self.chance.sample(opened.groups, len(opened.groups)):
                    for _, columns, content in rows_of(whole, group, rows_at_once):
                        ids = columns.column("image_id").to_pylist()
                        contents = [content] if isinstance(content, ImageError) else images(content)
                        for image_id, each in zip(ids, contents, strict=True):
                            yield SampledImage(image_id, table.uri), each
        except InputError:
            raise
        except (ImageError, OSError, pa.ArrowException) as error:
            self.num_images += 1
            yield SampledImage(table.uri, table.uri), file_problem(table.uri, error)


def _sample_of_archives(format_: str, listing: Listing, options: PeekOptions) -> Sample:
    chance = random.Random(options.seed)  # noqa: S311 - no secret
    archives = _Archives(listing.storage or open_storage(), options, chance)
    files = [ListedFile(file.uri, _size(file)) for file in listing.files]
    read = archives.webdataset if format_ == "webdataset" else archives.parquet
    images = _in_turn(map(read, chance.sample(files, len(files))))
    count = partial(archives.count, files, is_cut=listing.is_cut)
    return Sample(listing.uri, format_, islice(images, options.n), count, listing.notes)


def _size(file: ListedFile) -> int:
    if file.size is not None:
        return file.size
    try:
        return os.path.getsize(file.uri.removeprefix("file:"))  # noqa: PTH202 - as text
    except OSError:
        return 0


def _in_turn(archives: Iterator[Iterator[T]]) -> Iterator[T]:
    """Yield an image of one archive after the other; at most ten are open at once."""
    opened = deque(islice(archives, _OPEN_ARCHIVES))
    while opened:
        images = opened.popleft()
        image = next(images, None)
        if image is None:
            opened.extend(islice(archives, 1))
        else:
            yield image
            opened.append(images)


def _columns(schema: pa.Schema, options: PeekOptions) -> RowColumns:
    """Choose the columns of images and ids as a run does.

    Raises:
        InputError: No column holds images, it is unclear which one does, or the named one does not.
    """
    from nsfw_spark.readers.parquet import IMAGE_NAMES, RowColumns, check_image_column

    def holds_images(column: pa.Field) -> bool:
        try:
            check_image_column(column)
        except ImageError:
            return False
        return True

    fitting = [column.name for column in schema if holds_images(column)]
    usual = [name for name in IMAGE_NAMES if name in fitting]
    wanted = options.content_column or (fitting[0] if len(fitting) == 1 else next(iter(usual), None))
    if wanted not in fitting:
        got = f"column {wanted} does not hold images" if wanted else f"{len(fitting)} columns may hold images"
        columns = ", ".join(f"{column.name} {column.type}" for column in schema)
        raise InputError(
            f"input {options.input}: {got}; expected one column of binary, or of a struct {{bytes, path}}. "
            f"Its columns: {columns}. Name one with --content-column"
        )
    return RowColumns(wanted, "image_id" if "image_id" in schema.names else None)
