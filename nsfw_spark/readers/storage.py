"""File systems: Hadoop's settings → what pyarrow reads a bucket, a container or HDFS with.

In: Hadoop's settings by their names, and the authority of a URI. Out: a file system of pyarrow; nothing has
been asked of the cloud but where an S3 bucket is. What the settings do not say, each cloud's own chain finds:
environment, profile, the machine's identity.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, NamedTuple

import pyarrow as pa
from pyarrow import fs

from nsfw_spark.errors import ConfigError


def local(settings: Mapping[str, str], authority: str) -> fs.FileSystem:  # noqa: ARG001 - all are called alike
    """Make what reads the disks that this machine sees."""
    return fs.LocalFileSystem()


def s3(settings: Mapping[str, str], bucket: str) -> fs.FileSystem:
    """Make what reads a bucket, as Hadoop's S3A is told to; a bucket's own settings come first."""

    def setting(name: str) -> str | None:
        return settings.get(f"fs.s3a.bucket.{bucket}.{name}") or settings.get(f"fs.s3a.{name}") or None

    scheme, host = _endpoint(setting("endpoint"), is_secure=setting("connection.ssl.enabled") != "false")
    if host == "s3.amazonaws.com":  # it answers for one region only; the SDK knows the others
        host = None
    has_keys = bool(setting("access.key") and setting("secret.key"))
    providers = setting("aws.credentials.provider") or ""
    return fs.S3FileSystem(
        access_key=setting("access.key") if has_keys else None,
        secret_key=setting("secret.key") if has_keys else None,
        session_token=setting("session.token") if has_keys else None,
        anonymous=not has_keys and "AnonymousAWSCredentialsProvider" in providers,
        region=setting("endpoint.region") or (_region(bucket) if host is None else None),
        scheme=scheme,
        endpoint_override=host,
        # Where it is not asked for path style, Hadoop puts the bucket into the host's name.
        force_virtual_addressing=host is not None and setting("path.style.access") != "true",
    )


def _endpoint(endpoint: str | None, *, is_secure: bool) -> tuple[str, str | None]:
    """Return scheme and host of an endpoint that is written with a scheme or without."""
    scheme, separator, host = (endpoint or "").rstrip("/").rpartition("://")
    return scheme if separator else ("https" if is_secure else "http"), host or None


def _region(bucket: str) -> str | None:
    """Ask AWS where a bucket is; None, and so what the environment says, where that cannot be asked."""
    try:
        return str(fs.resolve_s3_region(bucket))
    except (OSError, pa.ArrowInvalid):
        return None


def gs(settings: Mapping[str, str], bucket: str) -> fs.FileSystem:  # noqa: ARG001 - all are called alike
    """Make what reads Google's buckets, with the machine's identity or GOOGLE_APPLICATION_CREDENTIALS."""
    scheme, host = _endpoint(settings.get("fs.gs.storage.root.url"), is_secure=True)
    return fs.GcsFileSystem(
        anonymous=settings.get("fs.gs.auth.type") == "UNAUTHENTICATED"
        or settings.get("fs.gs.auth.null.enable") == "true",
        scheme=scheme,
        endpoint_override=host,
    )


def azure(settings: Mapping[str, str], authority: str) -> fs.FileSystem:
    """Make what reads a storage account: with its key, as a service principal, or as the machine."""
    host = authority.rpartition("@")[2]
    account, _, domain = host.partition(".")
    domain = domain.partition(".")[2]  # without `dfs` or `blob`; other clouds have another

    def setting(name: str) -> str | None:
        return settings.get(f"{name}.{host}") or settings.get(name) or None

    options = {"account_key": setting("fs.azure.account.key")}
    client = "fs.azure.account.oauth2.client"
    if options["account_key"] is None and setting(f"{client}.secret") is not None:
        # https://login.microsoftonline.com/TENANT/oauth2/token
        tenant = re.search(r"//[^/]+/([^/]+)", setting(f"{client}.endpoint") or "")
        options = {
            "client_id": setting(f"{client}.id"),
            "client_secret": setting(f"{client}.secret"),
            "tenant_id": tenant[1] if tenant else None,
        }
    if domain:
        options |= {"dfs_storage_authority": f".dfs.{domain}", "blob_storage_authority": f".blob.{domain}"}
    return fs.AzureFileSystem(account, **options)


def hdfs(settings: Mapping[str, str], authority: str) -> fs.FileSystem:  # noqa: ARG001 - all are called alike
    """Make what reads HDFS; a name without a port is one that hdfs-site.xml explains."""
    host, _, port = authority.partition(":")
    return fs.HadoopFileSystem(host or "default", int(port or 0))


HADOOP_PREFIXES: Final = ("fs.s3a.", "fs.gs.", "fs.azure.")
"""How the names of the Hadoop settings begin that carry credentials and endpoints."""

_LOCAL_BUFFER: Final = 1 << 20  # bytes
_REMOTE_BUFFER: Final = 8 << 20  # bytes; each refill is a request, which takes as long as a few MB


@dataclass(frozen=True)
class Storage:
    """Opens files by their URI. Small and picklable: it travels to the executors."""

    settings: Mapping[str, str] = field(default_factory=dict, repr=False, hash=False)
    """Hadoop's settings by their names, `fs.s3a.access.key`; not in the repr, for they hold secrets."""

    def locate(self, uri: str) -> tuple[fs.FileSystem, str]:
        """Return what reads a URI, and what it calls the file; nothing is asked of the file yet.

        Raises:
            ConfigError: The URI's scheme is not one of `file`, `s3a`, `gs`, `abfss`, `hdfs` and their kin.
            OSError: The file system cannot be reached.
        """
        location = _split(uri)
        with _as_os_errors(uri):
            files = _file_system(self, location.scheme, location.authority)
        return files, _SCHEMES[location.scheme].path(location)

    def open_stream(self, uri: str) -> pa.NativeFile:
        """Open a file to be read once from its beginning to its end, through a buffer.

        Raises:
            ConfigError: See `locate`.
            OSError: There is no such file, or it cannot be read; reading it may raise that too.
        """
        files, path = self.locate(uri)
        size = _LOCAL_BUFFER if files.type_name == "local" else _REMOTE_BUFFER
        with _as_os_errors(uri):
            return files.open_input_stream(path, compression=None, buffer_size=size)

    def open_file(self, uri: str) -> pa.NativeFile:
        """Open a file to be read at any place.

        Raises:
            ConfigError, OSError: See `open_stream`.
        """
        files, path = self.locate(uri)
        with _as_os_errors(uri):
            return files.open_input_file(path)

    def create(self, uri: str) -> pa.NativeFile:
        """Open a new file to be written, in directories that are made where they are missing.

        A file of that name is replaced: in a cloud not before the new one is closed.

        Raises:
            ConfigError: See `locate`.
            OSError: It cannot be written; writing and closing it may raise that too.
        """
        files, path = self.locate(uri)
        with _as_os_errors(uri):
            if files.type_name in {"local", "hdfs"}:  # elsewhere a name with slashes will do
                files.create_dir(posixpath.dirname(path) or ".", recursive=True)
            return files.open_output_stream(path, compression=None)

    def move(self, source: str, target: str) -> None:
        """Rename a file; one that has the name already is replaced.

        On this machine in one step; in a bucket it is a copy, and the old one is deleted after it.

        Raises:
            ConfigError: See `locate`; or the two are in different file systems.
            OSError: There is no such file, or it cannot be written.
        """
        files, path = self.locate(source)
        files_there, new_path = self.locate(target)
        if files != files_there:
            raise ConfigError(f"cannot move {source} to {target}: expected two names in one file system")
        with _as_os_errors(source):
            # HDFS alone refuses to rename over what is there.
            if files.type_name == "hdfs" and files.get_file_info(new_path).type == fs.FileType.File:
                files.delete_file(new_path)
            files.move(path, new_path)


class _Location(NamedTuple):
    """A URI in its parts, none of them decoded."""

    scheme: str
    """In lower case; `file` where there is none."""
    authority: str
    """Bucket, `container@host`, or `host:port`; empty on this machine."""
    path: str
    """With its leading slash, where it has one."""


_URI: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(?://([^/]*))?(?=/|$)(.*)", re.DOTALL)


def _split(uri: str) -> _Location:
    """Split a URI without decoding it; what has no scheme is a path on this machine.

    Raises:
        ConfigError: A scheme that is not known.
    """
    match = _URI.fullmatch(uri)
    if match is None:
        return _Location("file", "", uri)
    scheme = match[1].lower()
    if scheme not in _SCHEMES:
        raise ConfigError(
            f"{uri} has the scheme {scheme}://; expected a path or one of {', '.join(sorted(_SCHEMES))}"
        )
    return _Location(scheme, match[2] or "", match[3])


@contextmanager
def _as_os_errors(uri: str) -> Iterator[None]:
    """Let what pyarrow does not take as a name, `a//b` in a bucket, be an OSError as all else that fails."""
    try:
        yield
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise OSError(f"{uri} cannot be opened: {error}") from error


@lru_cache(maxsize=64)
def _file_system(storage: Storage, scheme: str, authority: str) -> fs.FileSystem:
    """Make a file system once for each process, scheme and authority: it keeps its connections."""
    return _SCHEMES[scheme].make(storage.settings, authority)


class _Scheme(NamedTuple):
    """How the URIs of a scheme are read."""

    make: Callable[[Mapping[str, str], str], fs.FileSystem]
    """Settings and authority → file system."""
    path: Callable[[_Location], str]
    """Location → what its file system calls the file."""


def _own_path(location: _Location) -> str:
    return location.path


def _in_bucket(location: _Location) -> str:
    return location.authority + location.path


def _in_container(location: _Location) -> str:
    return location.authority.partition("@")[0] + location.path


def _mounted(location: _Location) -> str:
    """Where Databricks mounts what it calls `dbfs:/…`."""
    return location.path if location.path.startswith("/Volumes/") else f"/dbfs{location.path}"


_SCHEMES: Final = {
    "file": _Scheme(local, _own_path),
    "dbfs": _Scheme(local, _mounted),
    **dict.fromkeys(("s3", "s3a", "s3n"), _Scheme(s3, _in_bucket)),
    "gs": _Scheme(gs, _in_bucket),
    **dict.fromkeys(("abfs", "abfss", "wasb", "wasbs"), _Scheme(azure, _in_container)),
    "hdfs": _Scheme(hdfs, _own_path),
}
