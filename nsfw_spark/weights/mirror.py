"""Files of a mirror: a copy of a model directory, behind any URI that fsspec reads.

In: the mirror's URI, and a source of weights. Out: a `RemoteFile` at `URI/OWNER/NAME/FILE`. Credentials each
cloud's own chain finds: environment, profile, the machine's identity.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from nsfw_spark.errors import ConfigError
from nsfw_spark.model_card import WeightsSource
from nsfw_spark.weights.remote import RemoteFile

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

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
