"""Downloads one weights file from the Hugging Face hub, GitHub or a mirror.

In: a `WeightsSource`, and a path. Out: the whole file at that path, after a check by the caller. A download
resumes after an interruption, and of several processes one downloads while the others wait. The hub's client
sends all web requests, so that its settings apply: proxies, certificates, timeouts.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import shutil
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
_READ_AT_ONCE: Final = 8 << 20  # bytes; each read may be a request
_ARROWS_NAMES: Final = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RemoteFile:
    """A file to download."""

    name: str
    """Its location, for messages."""
    identity: str
    """A text that changes with the content, for example the ETag."""
    append_to: Callable[[BinaryIO, int], None]
    """Appends the bytes from an offset on to an open file; raises OSError."""
    length: int | None = None
    """Bytes; None if the server does not say."""
    sha256: str | None = None
    """Hexadecimal; None if the server does not say."""
    revision: str | None = None
    """The commit that holds the file; None if the server does not say."""


def download(remote: RemoteFile, target: Path, verify: Callable[[Path], object]) -> None:
    """Download a file, unless another process does so at the same time.

    Args:
        remote: The file.
        target: Path to store it at; its directory is created.
        verify: Raises a WeightsError for a wrong file.

    Raises:
        WeightsError: The download is a wrong file. It is deleted.
        OSError: The download broke off, or cannot be stored. The next download resumes it.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with _locked(_partial(remote, target)) as file:
        if target.exists():  # the process that held the lock before has stored it
            Path(file.name).unlink(missing_ok=True)
            return
        _complete(remote, file)
        try:
            verify(Path(file.name))
        except WeightsError:
            Path(file.name).unlink()
            raise
        Path(file.name).replace(target)  # atomic: no reader sees half a file
    _remove_other_partials(target)


def open_remote(source: WeightsSource, model_source: str | None = None) -> RemoteFile:
    """Ask a server about a file.

    Args:
        source: A file of a repository.
        model_source: URI of a mirror; None means the hub or GitHub.

    Raises:
        ConfigError: No installed package reads the mirror's URI.
        OSError: No network, no such file, or no permission.
    """
    from huggingface_hub import constants

    if model_source is not None:  # works offline too: it need not be on the internet
        return _open_mirrored(model_source, source)
    if constants.HF_HUB_OFFLINE:
        raise OSError("HF_HUB_OFFLINE is set")
    if source.huggingface is not None:
        return _open_on_hub(source)
    path = f"{source.github}/{source.revision}/{quote(str(source.file))}"
    return _open_url(f"{source.github}/{source.file} on GitHub", f"https://raw.githubusercontent.com/{path}")


def open_local(path: Path) -> RemoteFile:
    """Return a local file as one to download, which copies it.

    Raises:
        OSError: The file cannot be read.
    """

    def append_to(file: BinaryIO, offset: int) -> None:
        with path.open("rb") as local:
            local.seek(offset)
            shutil.copyfileobj(local, file)

    about = path.stat()
    return RemoteFile(str(path), f"{path} {about.st_mtime_ns}", append_to, about.st_size)


def in_short(error: OSError) -> str:
    """Return an error as one short line, for messages."""
    message = " ".join(str(error).split())[:100]
    return message if type(error) is OSError else f"{type(error).__name__}: {message}"


def _open_on_hub(source: WeightsSource) -> RemoteFile:
    from huggingface_hub import hf_hub_url

    repository, file = str(source.huggingface), str(source.file)
    name = f"{repository}/{file} on the hub"
    found = _open_url(name, hf_hub_url(repository, file, revision=source.revision), is_on_hub=True)
    if found.revision in {None, source.revision}:
        return found
    # A branch may move during the download. Its commit does not.
    return _open_url(name, hf_hub_url(repository, file, revision=found.revision), is_on_hub=True)


@contextmanager
def _as_os_errors(*others: type[Exception]) -> Iterator[None]:
    """Turn errors into OSErrors, because the clients of the hub and of clouds raise their own."""
    try:
        yield
    except Exception as error:
        if isinstance(error, (OSError, *others)):
            raise
        raise OSError(f"{type(error).__name__}: {error}") from error


@_as_os_errors()
def _open_url(name: str, url: str, *, is_on_hub: bool = False) -> RemoteFile:
    from huggingface_hub import get_hf_file_metadata
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    token = None if is_on_hub else False  # only the hub gets the hub's token (HF_TOKEN)
    # Without a network this fails at once. The download itself retries for a while.
    found = get_hf_file_metadata(url, token=token)
    # Uncompressed, because offsets count the file's own bytes.
    headers = {**build_hf_headers(token=token), "Accept-Encoding": "identity"}

    @_as_os_errors()
    def append_to(file: BinaryIO, offset: int) -> None:
        http_get(url, file, resume_size=offset, headers=headers, expected_size=found.size)

    # The hub's ETag of a large file is its sha256.
    sha256 = found.etag if is_on_hub and found.etag and len(found.etag) == _SHA256_DIGITS else None
    identity = found.etag or f"{found.size} bytes"
    return RemoteFile(name, identity, append_to, found.size, sha256, found.commit_hash)


def _open_mirrored(model_source: str, source: WeightsSource) -> RemoteFile:
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
    """Return the file system of a URI, and the path of the mirror's directory in it."""
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
    """Read a bucket with pyarrow, which comes with Spark, if fsspec's own package is not installed."""
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


def _bar(source: WeightsSource, length: int | None, offset: int) -> Any:  # noqa: ANN401 - tqdm has no types
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined] # same look as the hub's downloads

    options = {"unit": "B", "unit_scale": True, "desc": str(source.file)}
    options["disable"] = None  # shown on a terminal only
    return tqdm(total=length, initial=offset, **options)  # type: ignore[no-untyped-call]


def _partial(remote: RemoteFile, target: Path) -> Path:
    """Return the path of the partial file. It contains a hash of the identity, so that contents never mix."""
    content = hashlib.sha256(remote.identity.encode()).hexdigest()[:8]
    return target.with_name(f"{target.name}.{content}.partial")


@contextmanager
def _locked(path: Path) -> Iterator[BinaryIO]:
    """Open a file to append to it; wait while another process has it open this way."""
    while True:
        with path.open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                _log.warning("another process is downloading %s: waiting for it", path.name)
                fcntl.flock(file, fcntl.LOCK_EX)
            if _has_still_its_name(file, path):
                yield file
                return
        # The other process has renamed or deleted the file that we opened. Open the new one.


def _has_still_its_name(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _complete(remote: RemoteFile, file: BinaryIO) -> None:
    """Append the missing bytes; begin again if the file is longer than the remote one."""
    offset = file.seek(0, os.SEEK_END)
    if remote.length is not None and offset > remote.length:
        file.truncate(0)
        offset = 0
    if offset:
        _log.warning("%s: resuming at %s bytes", remote.name, f"{offset:,}")
    if offset != remote.length:
        remote.append_to(file, offset)
    file.flush()
    os.fsync(file.fileno())
    length = os.fstat(file.fileno()).st_size
    if remote.length not in {None, length}:
        raise OSError(f"{remote.name} was cut off: got {length:,} bytes, expected {remote.length:,}")


def _remove_other_partials(target: Path) -> None:
    """Remove partial files of other contents, except one that another process is downloading."""
    for other in target.parent.glob(f"{escape(target.name)}.????????.partial"):
        with suppress(BlockingIOError, FileNotFoundError), other.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            other.unlink(missing_ok=True)
