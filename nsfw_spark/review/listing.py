"""Lists the files of an input without Spark, here or in a store, until a limit of names or seconds.

In: the options of `peek`. Out: a `Listing`. It has the files that a run would list: below the input, with
names that match the glob and do not begin with `_` or `.`. Opens no file.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn, TypeVar

from nsfw_spark.errors import ConfigError, InputError
from nsfw_spark.formats import glob_pattern
from nsfw_spark.options import PeekOptions
from nsfw_spark.uris import HIDDEN, absolute_uri, may_be_table

if TYPE_CHECKING:  # files on this machine are listed without pyarrow
    from nsfw_spark.readers.storage import Storage

T = TypeVar("T")

EXPECTED: Final = "expected a directory with images, WebDataset tars or Parquet files, or one such file"
"""For messages."""

_MOST_NAMES: Final = 100_000
_MOST_SECONDS: Final = 20.0
_ANSWER_SECONDS: Final = 60.0  # pyarrow gives out a store's directory only when it has all of it
_NUM_TRIES: Final = "3"  # a run asks a store that fails more often, but somebody waits for a peek


class ListedFile(NamedTuple):
    """A listed file."""

    uri: str
    """As a run names it: `file:/…` on this machine."""
    size: int | None
    """Bytes; None if the listing does not say."""

    @property
    def name(self) -> str:
        """The name without its directory."""
        return self.uri.rpartition("/")[2]


@dataclass
class Listing:
    """The files of an input."""

    uri: str
    """The input as a run names it; `file:/…` on this machine."""
    storage: Storage | None
    """Opens the files of a store; None for files on this machine."""
    files: list[ListedFile] = field(default_factory=list)
    is_cut: bool = False
    """Whether the input may hold more files."""
    refused: list[str] = field(default_factory=list)
    """Directories that cannot be listed."""

    @property
    def notes(self) -> list[str]:
        """What the listing left out, for people."""
        notes = []
        if self.is_cut:
            notes.append(
                f"the listing was cut off after {_MOST_NAMES:,} names or {_MOST_SECONDS:.0f} seconds; the "
                "sample is of the files until then"
            )
        if self.refused:
            number = f"{len(self.refused)} director{'y' if len(self.refused) == 1 else 'ies'}"
            notes.append(f"{number} cannot be listed, such as {self.refused[0]}")
        return notes


def list_files(options: PeekOptions) -> Listing:
    """List the files of an input; stop after 100,000 names or 20 seconds.

    Raises:
        InputError: The input is absent, cannot be listed, or is a table.
        ConfigError: The glob or the URI is wrong, or pyarrow is needed and absent.
    """
    uri, matches = absolute_uri(options.input), glob_pattern(options.glob or "*").fullmatch
    if ":/" not in uri or uri.startswith("file:/"):
        listing = Listing(f"file:/{uri.removeprefix('file:').lstrip('/')}", None)
        found = _local_files(listing, options)
    else:
        listing = Listing(uri, storage := open_storage())
        found = _stored_files(uri, options, storage)
    deadline = time.monotonic() + _MOST_SECONDS
    for num_names, file in enumerate(found, start=1):
        if matches(file.name):
            listing.files.append(file)
        if time.monotonic() > deadline:
            listing.is_cut = True
            break
        if num_names == _MOST_NAMES:
            listing.is_cut = next(found, None) is not None
            break
    return listing


def open_storage() -> Storage:
    """Return the storage that opens files with the settings of the environment.

    Raises:
        ConfigError: pyarrow is not installed.
    """
    try:
        from nsfw_spark.readers.storage import Storage
    except ImportError as error:
        raise ConfigError(
            f"a peek into tars, Parquet files or stores needs pyarrow, and {error.name} is not installed "
            "here: pip install pyarrow. A local directory of image files needs no pyarrow"
        ) from None
    settings = {"fs.s3a.retry.limit": _NUM_TRIES}
    # An endpoint of one's own, such as MinIO's, has no host names for buckets.
    if endpoint := os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"):
        settings |= {"fs.s3a.endpoint": endpoint, "fs.s3a.path.style.access": "true"}
    if region := os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"):
        settings["fs.s3a.endpoint.region"] = region
    return Storage(settings)


def _local_files(listing: Listing, options: PeekOptions) -> Iterator[ListedFile]:
    """Yield the local files of an input; note the directories that cannot be listed."""
    root = listing.uri.removeprefix("file:")
    if not os.path.lexists(root):
        raise InputError(_is_absent(options))
    if Path(root, "_delta_log").is_dir():
        raise InputError(_is_table(options))
    if not Path(root).is_dir():
        yield ListedFile(f"file:{root}", None)
        return
    directories, seen = [root], set()
    while directories:
        directory = directories.pop()
        try:
            if (place := os.stat(directory)[1:3]) in seen:  # noqa: PTH116 - as text
                continue  # a link to a directory above
            seen.add(place)
            with os.scandir(directory) as entries:
                yield from _files_of(entries, directories)
        except OSError as error:
            if directory == root:
                reason = f"input {options.input} cannot be listed: {error.strerror}"
                raise InputError(f"{reason}; {EXPECTED}") from None
            listing.refused.append(f"{directory} ({error.strerror})")


def _files_of(entries: Iterable[os.DirEntry[str]], directories: list[str]) -> Iterator[ListedFile]:
    """Yield the files of one directory, and append the directories in it."""
    for entry in entries:
        if entry.name.startswith(HIDDEN):
            continue
        with suppress(OSError):  # a link to itself
            if entry.is_dir():
                directories.append(entry.path)
            elif entry.is_file():  # reading a pipe or a device may never end
                yield ListedFile(f"file:{entry.path}", None)


def _stored_files(uri: str, options: PeekOptions, storage: Storage) -> Iterator[ListedFile]:
    """Yield the files of a store, directory after directory, so that the listing can be cut off."""
    from pyarrow import fs

    ask = partial(_answer, options.input)
    files, root = ask(storage.locate, uri)  # may look for the region of a bucket
    root, info = root.rstrip("/"), files.get_file_info
    kind = ask(info, root).type
    if kind == fs.FileType.NotFound:
        raise InputError(_is_absent(options))
    if kind == fs.FileType.File:
        yield ListedFile(uri, ask(info, root).size)
        return
    if ask(info, f"{root}/_delta_log").type == fs.FileType.Directory:
        raise InputError(_is_table(options))
    directories = [root]
    while directories:
        for entry in ask(info, fs.FileSelector(directories.pop())):
            if entry.base_name.startswith(HIDDEN):
                continue
            if entry.type == fs.FileType.Directory:
                directories.append(entry.path)
            else:
                yield ListedFile(uri.rstrip("/") + entry.path[len(root) :], entry.size)


def _answer(source: str, call: Callable[..., Any], *arguments: object) -> Any:  # noqa: ANN401 - of any call
    """Ask a store; raise an InputError that names the input if it fails or does not answer."""
    named = f"input {source} cannot be listed"
    try:
        return _within(_ANSWER_SECONDS, partial(call, *arguments))
    except TimeoutError as error:
        raise InputError(
            f"{named}: {error}; expected a store that answers, and a directory with fewer files directly in "
            "it: name a smaller one"
        ) from None
    except OSError as error:
        raise InputError(
            f"{named}: {' '.join(str(error).split())[:300]}; expected a directory that this machine may list "
            "with the credentials of its environment (docs/stores.md)"
        ) from None


def _within(seconds: float, call: Callable[[], T]) -> T:
    """Call a function of native code in a thread, so that Ctrl-C and a deadline end the wait for it."""
    answers: SimpleQueue[Callable[[], T]] = SimpleQueue()

    def run() -> None:
        try:
            answer = call()
        except BaseException as error:  # noqa: BLE001 - raised below, in the thread that waits
            answers.put(partial(_throw, error))
        else:
            answers.put(lambda: answer)

    threading.Thread(target=run, daemon=True).start()
    try:
        return answers.get(timeout=seconds)()
    except Empty:
        raise TimeoutError(f"no answer within {seconds:.0f} seconds") from None


def _throw(error: BaseException) -> NoReturn:
    raise error


def _is_absent(options: PeekOptions) -> str:
    table = ". It may be the name of a table: a peek reads files" if may_be_table(options.input) else ""
    return f"input {options.input} does not exist; {EXPECTED}{table}"


def _is_table(options: PeekOptions) -> str:
    return (
        f"input {options.input} is a Delta table; {EXPECTED}: a peek reads files, without Spark. To score "
        "the table: nsfw-spark run INPUT --output OUT --format delta"
    )
