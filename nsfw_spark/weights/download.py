"""A file elsewhere: what is known of it before it is downloaded, and how its bytes are had.

In: a URL. Out: a `RemoteFile`, read through the Hugging Face hub's client, whose settings thus hold for all
that is downloaded: proxies, certificates, timeouts, `HF_HUB_DISABLE_PROGRESS_BARS`.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final
from urllib.parse import quote

from nsfw_spark.errors import ConfigError, WeightsError
from nsfw_spark.model_card import WeightsSource

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

_SHA256_DIGITS: Final = 64


@dataclass(frozen=True)
class RemoteFile:
    """A file that can be downloaded."""

    name: str
    """Where it is, for people."""
    identity: str
    """Another one whenever the content is another, such as an ETag."""
    append_to: Callable[[BinaryIO, int], None]
    """Appends its bytes from an offset on to an open file; raises OSError, or the hub client's HTTPError."""
    length: int | None = None
    """Bytes; None where it is not told."""
    sha256: str | None = None
    """Hexadecimal, where the place that holds the file tells it."""
    revision: str | None = None
    """The commit that holds it."""


def open_url(name: str, url: str, *, is_on_hub: bool = False) -> RemoteFile:
    """Ask a web server about a file.

    Args:
        name: Of the file, for people.
        url: Of the file.
        is_on_hub: Whether it is on the hub, which alone gets the hub's token (`HF_TOKEN`).

    Raises:
        OSError, HTTPError: No network, no such file, or not allowed to read it.
    """
    from huggingface_hub import get_hf_file_metadata
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    token = None if is_on_hub else False
    # Fails at once where there is no network; the download itself tries again, for a while.
    found = get_hf_file_metadata(url, token=token)
    # Not compressed, for offsets are the file's own.
    headers = {**build_hf_headers(token=token), "Accept-Encoding": "identity"}

    def append_to(file: BinaryIO, offset: int) -> None:
        http_get(url, file, resume_size=offset, headers=headers, expected_size=found.size)

    # Of large files, the hub's ETag is the sha256.
    sha256 = found.etag if is_on_hub and found.etag and len(found.etag) == _SHA256_DIGITS else None
    identity = found.etag or f"{found.size} bytes"
    return RemoteFile(name, identity, append_to, found.size, sha256, found.commit_hash)


def open_hub_file(source: WeightsSource) -> RemoteFile:
    """Ask the hub about a file.

    Raises:
        OSError, HTTPError: No network, no such file, or not allowed to read it.
    """
    from huggingface_hub import hf_hub_url

    repository, file = str(source.huggingface), str(source.file)
    name = f"{repository}/{file} on the hub"
    found = open_url(name, hf_hub_url(repository, file, revision=source.revision), is_on_hub=True)
    if found.revision in {None, source.revision}:
        return found
    # A branch may move on while it is downloaded: its commit does not.
    return open_url(name, hf_hub_url(repository, file, revision=found.revision), is_on_hub=True)


def open_github_file(source: WeightsSource) -> RemoteFile:
    """Ask GitHub about a file.

    Raises:
        OSError, HTTPError: No network, or no such file.
    """
    where = f"{source.github}/{source.revision}/{quote(str(source.file))}"
    return open_url(f"{source.github}/{source.file} on GitHub", f"https://raw.githubusercontent.com/{where}")


_READ_AT_ONCE: Final = 8 << 20  # bytes; each read may be a request
_ARROWS_NAMES: Final = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}


def open_mirrored_file(model_source: str, source: WeightsSource) -> RemoteFile:
    """Ask a mirror about a file.

    Raises:
        ConfigError: No package is installed that reads such a URI.
        OSError: The mirror cannot be reached, or does not have the file.
    """
    files, root = _file_system(model_source)
    path = f"{root.rstrip('/')}/{source.repository}/{source.file}"
    with _as_os_errors():
        length, identity = files.size(path), files.ukey(path)

    def append_to(file: BinaryIO, offset: int) -> None:
        with _as_os_errors(), files.open(path, "rb") as remote, _bar(source, length, offset) as bar:
            remote.seek(offset)
            while some := remote.read(_READ_AT_ONCE):
                file.write(some)
                bar.update(len(some))

    name = f"{model_source.rstrip('/')}/{source.repository}/{source.file}"
    return RemoteFile(name, str(identity), append_to, length)


def _file_system(uri: str) -> tuple[AbstractFileSystem, str]:
    """Return what reads a URI, and what it calls the mirror's directory."""
    from fsspec.core import url_to_fs

    try:
        with _as_os_errors(ImportError, ValueError):
            files, path = url_to_fs(uri)
    except ValueError as error:
        raise ConfigError(f"--model-source {uri}: {error}; expected a URI that fsspec reads") from error
    except ImportError as error:
        return _with_arrow(uri, error)
    return files, str(path)


def _with_arrow(uri: str, error: ImportError) -> tuple[AbstractFileSystem, str]:
    """Read a bucket with pyarrow, which is there where Spark is, if fsspec's own package is not."""
    scheme, _, path = uri.partition("://")
    try:
        from fsspec.implementations.arrow import ArrowFSWrapper
        from pyarrow.fs import FileSystem

        if scheme not in _ARROWS_NAMES:
            raise error
    except ImportError:
        raise ConfigError(f"--model-source {uri} cannot be read here: {error}") from error
    with _as_os_errors():
        files, path = FileSystem.from_uri(f"{_ARROWS_NAMES[scheme]}://{path}")
    return ArrowFSWrapper(files), path


@contextmanager
def _as_os_errors(*others: type[Exception]) -> Iterator[None]:
    """Let all that goes wrong in a cloud be an OSError: each file system raises errors of its own library."""
    try:
        yield
    except Exception as error:
        if isinstance(error, (OSError, *others)):
            raise
        raise OSError(f"{type(error).__name__}: {error}") from error


def _bar(source: WeightsSource, length: int | None, offset: int) -> Any:  # noqa: ANN401 - tqdm has no types
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined] # the hub's downloads show the same

    options = {"unit": "B", "unit_scale": True, "desc": str(source.file)}
    options["disable"] = None  # but only where there is no terminal
    return tqdm(total=length, initial=offset, **options)  # type: ignore[no-untyped-call]


_log = logging.getLogger(__name__)


def download(remote: RemoteFile, target: Path, verify: Callable[[Path], object]) -> None:
    """Download a file, unless another process does so meanwhile.

    Args:
        remote: What to download.
        target: Where to; its directory is made.
        verify: Raises a WeightsError where a file is not the right one.

    Raises:
        WeightsError: What came is not the right file.
        OSError, HTTPError: It was cut off, or cannot be written. What came stays, for the next time.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with _alone(_partial(remote, target)) as file:
        if target.exists():  # by whoever held the lock before
            Path(file.name).unlink(missing_ok=True)
            return
        _complete(remote, file)
        try:
            verify(Path(file.name))
        except WeightsError:
            Path(file.name).unlink()
            raise
        Path(file.name).replace(target)  # atomic: nobody sees half a file
    _remove_others(target)


def _partial(remote: RemoteFile, target: Path) -> Path:
    """Return where a download is kept: another place for another content, whose halves do not fit."""
    content = hashlib.sha256(remote.identity.encode()).hexdigest()[:8]
    return target.with_name(f"{target.name}.{content}.partial")


@contextmanager
def _alone(path: Path) -> Iterator[BinaryIO]:
    """Open a file to append to it, when no other process has it open so; wait where one has."""
    while True:
        with path.open("ab") as file:
            _lock(file)
            if _has_still_its_name(file, path):
                yield file
                return
        # Its holder gave it another name, or deleted it.


def _lock(file: BinaryIO) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        _log.warning("another process is downloading %s: waiting for it", Path(file.name).name)
        fcntl.flock(file, fcntl.LOCK_EX)


def _has_still_its_name(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _complete(remote: RemoteFile, file: BinaryIO) -> None:
    """Append what is missing; begin anew where more is there than can be."""
    offset = file.seek(0, os.SEEK_END)
    if remote.length is not None and offset > remote.length:
        file.truncate(0)
        offset = 0
    if offset:
        _log.warning("%s: going on at %s bytes", remote.name, f"{offset:,}")
    if offset != remote.length:
        remote.append_to(file, offset)
    file.flush()
    os.fsync(file.fileno())
    length = os.fstat(file.fileno()).st_size
    if remote.length not in {None, length}:
        raise OSError(f"{remote.name} was cut off: {length:,} bytes came, expected {remote.length:,}")


def _remove_others(target: Path) -> None:
    """Remove what is left of downloads of other contents, unless one is under way."""
    for other in target.parent.glob(f"{escape(target.name)}.????????.partial"):
        with suppress(BlockingIOError, FileNotFoundError), other.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            other.unlink(missing_ok=True)
