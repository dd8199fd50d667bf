"""Storage: opens files on this machine, in a cloud's buckets or on HDFS, by the URIs that Spark lists.

In: Hadoop's settings by their names, and a URI. Out: pyarrow's files. Credentials that the settings lack
come from the cloud's own chain: environment, profile, the machine's identity. Names are never decoded: `%20`
is part of a name. No cloud is asked before a file is opened, except for the region of an S3 bucket.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

import pyarrow as pa
from pyarrow import fs

from nsfw_spark.errors import ConfigError

HADOOP_PREFIXES: Final = ("fs.s3a.", "fs.gs.", "fs.azure.")
"""Prefixes of the Hadoop settings with credentials and endpoints."""

_LOCAL_BUFFER: Final = 1 << 20  # bytes
_REMOTE_BUFFER: Final = 8 << 20  # bytes; each refill is a request, with a latency of a few MB
_URI: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(?://([^/]*))?(?=/|$)(.*)", re.DOTALL)


@dataclass(frozen=True)
class Storage:
    """Opens files by their URI. Small and picklable: it travels to the executors.

    All methods raise ConfigError for an unknown scheme, and OSError if a file cannot be read or written.
    Reading, writing and closing the files may raise OSError too.
    """

    settings: Mapping[str, str] = field(default_factory=dict, repr=False, hash=False)
    """Hadoop's settings by their names, `fs.s3a.access.key`; not in the repr, because some are secrets."""

    def locate(self, uri: str) -> tuple[fs.FileSystem, str]:
        """Return the file system of a URI, and the file's name in it; the file need not exist."""
        match = _URI.fullmatch(uri)
        scheme, authority, path = (match[1].lower(), match[2] or "", match[3]) if match else ("file", "", uri)
        if scheme not in _SCHEMES:
            known = ", ".join(sorted(_SCHEMES))
            raise ConfigError(f"{uri} has the scheme {scheme}://; expected a path or one of {known}")
        with _as_os_errors(uri):
            return _file_system(self, scheme, authority), _name(scheme, authority, path)

    def open_stream(self, uri: str) -> pa.NativeFile:
        """Open a file to read it once from start to end, through a buffer."""
        files, path = self.locate(uri)
        size = _LOCAL_BUFFER if files.type_name == "local" else _REMOTE_BUFFER
        with _as_os_errors(uri):
            return files.open_input_stream(path, compression=None, buffer_size=size)

    def open_file(self, uri: str) -> pa.NativeFile:
        """Open a file to read it at any position."""
        files, path = self.locate(uri)
        with _as_os_errors(uri):
            return files.open_input_file(path)

    def create(self, uri: str) -> pa.NativeFile:
        """Open a new file to write it; make missing directories.

        It replaces an existing file of the same name; in a cloud only when it is closed.
        """
        files, path = self.locate(uri)
        with _as_os_errors(uri):
            if files.type_name in {"local", "hdfs"}:  # a bucket has no directories
                files.create_dir(posixpath.dirname(path) or ".", recursive=True)
            return files.open_output_stream(path, compression=None)

    def move(self, source: str, target: str) -> None:
        """Rename a file within one file system; replace an existing target.

        The rename is atomic on this machine. In a bucket it is a copy, after which the source is deleted.
        """
        files, path = self.locate(source)
        target_files, new_path = self.locate(target)
        if files != target_files:
            raise ConfigError(f"cannot move {source} to {target}: expected two names in one file system")
        with _as_os_errors(source):
            # Only HDFS refuses to replace a file.
            if files.type_name == "hdfs" and files.get_file_info(new_path).type == fs.FileType.File:
                files.delete_file(new_path)
            files.move(path, new_path)


@contextmanager
def _as_os_errors(uri: str) -> Iterator[None]:
    """Raise OSError for names that pyarrow refuses, such as `a//b` in a bucket."""
    try:
        yield
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise OSError(f"{uri} cannot be opened: {error}") from error


@lru_cache(maxsize=64)
def _file_system(storage: Storage, scheme: str, authority: str) -> fs.FileSystem:
    """Make a file system once for each process, scheme and authority, because it keeps connections."""
    return _SCHEMES[scheme](storage.settings, authority)


def _local(settings: Mapping[str, str], authority: str) -> fs.FileSystem:  # noqa: ARG001 - one signature
    return fs.LocalFileSystem()


def _s3(settings: Mapping[str, str], bucket: str) -> fs.FileSystem:
    """Make the file system of a bucket, from the settings of Hadoop's S3A; the bucket's own settings win."""

    def setting(name: str) -> str | None:
        return settings.get(f"fs.s3a.bucket.{bucket}.{name}") or settings.get(f"fs.s3a.{name}") or None

    scheme, host = _endpoint(setting("endpoint"), is_secure=setting("connection.ssl.enabled") != "false")
    if host == "s3.amazonaws.com":  # it serves one region only; the SDK knows the others
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
        # Hadoop's default: the bucket is part of the host's name.
        force_virtual_addressing=host is not None and setting("path.style.access") != "true",
    )


def _endpoint(endpoint: str | None, *, is_secure: bool) -> tuple[str, str | None]:
    """Return scheme and host of an endpoint, which may be written without a scheme."""
    scheme, separator, host = (endpoint or "").rstrip("/").rpartition("://")
    return scheme if separator else ("https" if is_secure else "http"), host or None


def _region(bucket: str) -> str | None:
    """Ask AWS for a bucket's region; None, if AWS does not answer, uses the environment's."""
    try:
        return str(fs.resolve_s3_region(bucket))
    except (OSError, pa.ArrowInvalid):
        return None


def _gs(settings: Mapping[str, str], bucket: str) -> fs.FileSystem:  # noqa: ARG001 - one signature
    """Make the file system of Google's buckets; credentials come from the environment."""
    scheme, host = _endpoint(settings.get("fs.gs.storage.root.url"), is_secure=True)
    is_anonymous = settings.get("fs.gs.auth.type") == "UNAUTHENTICATED"
    is_anonymous |= settings.get("fs.gs.auth.null.enable") == "true"
    return fs.GcsFileSystem(anonymous=is_anonymous, scheme=scheme, endpoint_override=host)


def _azure(settings: Mapping[str, str], authority: str) -> fs.FileSystem:
    """Make the file system of an account: with its key, a service principal, or the machine's identity."""
    host = authority.rpartition("@")[2]
    account, _, domain = host.partition(".")
    domain = domain.partition(".")[2]  # without `dfs` or `blob`; national clouds have their own domains

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


def _hdfs(settings: Mapping[str, str], authority: str) -> fs.FileSystem:  # noqa: ARG001 - one signature
    """Make the file system of HDFS; hdfs-site.xml resolves a name without a port."""
    host, _, port = authority.partition(":")
    return fs.HadoopFileSystem(host or "default", int(port or 0))


_SCHEMES: Final[Mapping[str, Callable[[Mapping[str, str], str], fs.FileSystem]]] = {
    **dict.fromkeys(("file", "dbfs"), _local),
    **dict.fromkeys(("s3", "s3a", "s3n"), _s3),
    "gs": _gs,
    **dict.fromkeys(("abfs", "abfss", "wasb", "wasbs"), _azure),
    "hdfs": _hdfs,
}
"""Scheme → maker of its file system, from Hadoop's settings and the authority."""


def _name(scheme: str, authority: str, path: str) -> str:
    """Return a file's name in its file system."""
    if scheme == "dbfs":  # as Databricks mounts it
        return path if path.startswith("/Volumes/") else f"/dbfs{path}"
    return path if scheme in ("file", "hdfs") else authority.partition("@")[0] + path  # bucket or container
