"""Storage: opens files on this machine, in a cloud's buckets or on HDFS, by the URIs that Spark lists.

In: Hadoop's settings by their names, and a URI. Out: pyarrow's files. Credentials that the settings lack
come from the cloud's own chain: environment, profile, the machine's identity. Names are never decoded: `%20`
is part of a name. No cloud is asked before a file is opened, except for the region of an S3 bucket.

Damage and failures of the store are kept apart: a file that is open raises `ImageError` if its store fails,
and other errors mean that the file's content is damaged.
"""

from __future__ import annotations

import errno
import io
import os
import posixpath
import random
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar, Final, TypeVar

import pyarrow as pa
from pyarrow import fs

from nsfw_spark.errors import ConfigError, ImageError, storage_failed

if TYPE_CHECKING:  # only type checkers have this module
    from _typeshed import WriteableBuffer

T = TypeVar("T")

HADOOP_PREFIXES: Final = ("fs.s3a.", "fs.gs.", "google.cloud.auth.", "fs.azure.")
"""Prefixes of the Hadoop settings with credentials and endpoints."""

_LOCAL_BUFFER: Final = 1 << 20  # bytes
_REMOTE_BUFFER: Final = 8 << 20  # bytes; each refill is a request, with a latency of a few MB
_FIRST_WAIT_SECONDS: Final = 1.0  # each wait is twice as long as the one before
_NUM_TRIES: Final = "7"  # Hadoop's default; the waits between them add up to a minute
_RETRIES: Final = "fs.s3a.retry.limit"  # Hadoop's own setting; here it counts for all stores
# Answers that no second try changes: the file is gone, forbidden or in an archive, or its name is no file's.
_ANSWERS: Final = re.compile(
    r"no.such.key|not.?found|not.a.regular.file|access.?denied|permission.?denied|forbidden|storage class"
    r"|authorization.*mismatch|blob.?archived",
    re.IGNORECASE,
)
_ERRNO_ANSWERS: Final = {
    *(errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)
}
_SMALL_BUFFER: Final = 64 << 10  # bytes; where pyarrow has buffers of its own
# s3.eu-north-1.amazonaws.com, s3-eu-west-1…, s3.dualstack.…, s3-fips.…, bucket.vpce-1.s3.REGION.vpce.…
_REGIONAL: Final = re.compile(
    r"(?:^|\.)s3(?:-fips)?[.-](?:dualstack\.)?([a-z]+(?:-[a-z]+)+-\d+)(?:\.vpce)?\.amazonaws\.com(?:\.cn)?(?::|$)"
)
_URI: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(?://([^/]*))?(?=/|$)(.*)", re.DOTALL)


@dataclass(frozen=True)
class Storage:
    """Opens files by their URI. Small and picklable: it travels to the executors.

    All methods raise ConfigError for an unknown scheme. `open_stream` and `open_file` raise FileNotFoundError
    and, like the files that they return, ImageError (`missing`). Writing raises OSError.
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

    def open_stream(self, uri: str) -> io.BufferedReader:
        """Open a file to read it once from start to end, through a buffer."""
        file = _StoredFile(self, uri)
        return io.BufferedReader(file, _LOCAL_BUFFER if file.is_local else _REMOTE_BUFFER)

    def open_file(self, uri: str) -> pa.NativeFile:
        """Open a file for pyarrow, to read it at any position."""
        return pa.PythonFile(io.BufferedReader(_StoredFile(self, uri), _SMALL_BUFFER), mode="r")

    def problem(self, uri: str) -> str | None:
        """Return why a file cannot be read; None if its first byte can."""
        try:
            with _StoredFile(self, uri) as file:
                file.readinto(bytearray(1))
        except (FileNotFoundError, ImageError) as error:
            return " ".join(str(error).split())
        return None

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


class _StoredFile(io.RawIOBase):
    """A file that is open for reading. If its store fails, it waits, connects again, and reads on.

    A store that throttles, resets connections or is gone for half a minute costs time and no image. After
    `fs.s3a.retry.limit` tries the read raises ImageError with the status `missing`, never an OSError: a
    decompressor would take that for damage. While the store is down, each other file is tried only once.
    """

    _is_down: ClassVar[bool] = False  # for all files of this process, until a read succeeds
    _native: pa.NativeFile | None = None

    def __init__(self, storage: Storage, uri: str) -> None:
        """Open the file.

        Raises:
            FileNotFoundError: It does not exist.
            ImageError: The store refuses it, or failed; status `missing`.
        """
        self._files, self._path = storage.locate(uri)
        self._num_tries = 1 if self.is_local else max(1, int(storage.settings.get(_RETRIES, _NUM_TRIES)))
        self._position, self._most_bytes = 0, _REMOTE_BUFFER
        self._do(pa.NativeFile.tell)

    @property
    def is_local(self) -> bool:
        """Whether the file is in a file system of this machine."""
        return bool(self._files.type_name == "local")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        starts = {io.SEEK_SET: lambda: 0, io.SEEK_CUR: self.tell, io.SEEK_END: self.size}
        self._position = starts[whence]() + offset
        return self._position

    def size(self) -> int:
        """Return the file's length in bytes."""
        return self._do(lambda native: int(native.size()))

    def readinto(self, buffer: WriteableBuffer) -> int:
        wanted = memoryview(buffer).cast("B")

        def read(native: pa.NativeFile) -> int:
            native.seek(self._position)
            return int(native.readinto(wanted[: self._most_bytes]))

        num_read = self._do(read)
        _StoredFile._is_down = False
        self._position += num_read
        self._most_bytes *= 2  # read at once: less while the store fails
        return num_read

    def readall(self) -> bytes:
        """Read the rest in as few requests as possible; the base class would make one for each 8 kB."""
        content = memoryview(bytearray(max(0, self.size() - self._position)))
        num_read = 0
        while num_read < len(content) and (more := self.readinto(content[num_read:])):
            num_read += more
        return bytes(content[:num_read])

    def close(self) -> None:
        self._disconnect()
        super().close()

    def _do(self, step: Callable[[pa.NativeFile], T]) -> T:
        """Do something with the native file; try again if the store fails."""
        for tries in range(1, self._num_tries + 1):
            try:
                if self._native is None:
                    self._native = self._files.open_input_file(self._path)
                done = step(self._native)
            except FileNotFoundError:
                raise
            except (OSError, pa.ArrowException) as error:
                self._disconnect()
                # Smaller pieces reach as far as the store gives out bytes.
                self._most_bytes = max(_SMALL_BUFFER, min(self._most_bytes, _REMOTE_BUFFER) // 4)
                if not _is_failure(error):
                    raise unread(error) from None
                if tries == self._num_tries or _StoredFile._is_down:
                    _StoredFile._is_down = not self.is_local
                    raise storage_failed(_reason(error)) from None
                wait = _FIRST_WAIT_SECONDS * 2 ** (tries - 1)
                time.sleep(wait * random.uniform(0.75, 1.25))  # noqa: S311 - so that tasks do not ask in step
            else:
                return done
        raise AssertionError  # the last try returns or raises

    def _disconnect(self) -> None:
        if self._native is not None:
            with suppress(OSError):
                self._native.close()
        self._native = None


def unread(error: Exception) -> ImageError:
    """Return the error of a file that does not exist, or that the store refuses."""
    return ImageError("missing", f"the file was listed and could not be read ({_reason(error)})")


def _is_failure(error: Exception) -> bool:
    """Whether the store failed; else it has answered that nobody gets this file."""
    is_answer = getattr(error, "errno", None) in _ERRNO_ANSWERS or _ANSWERS.search(str(error))
    return isinstance(error, OSError) and not is_answer


def _reason(error: Exception) -> str:
    return " ".join(str(getattr(error, "strerror", None) or error).split())[:200]


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
    """Make the file system of a bucket, from the settings of Hadoop's S3A; the bucket's own settings win.

    Raises:
        ConfigError: pyarrow cannot have the credentials that the settings name.
    """

    def setting(name: str) -> str | None:
        return settings.get(f"fs.s3a.bucket.{bucket}.{name}") or settings.get(f"fs.s3a.{name}") or None

    scheme, host = _endpoint(setting("endpoint"), is_secure=setting("connection.ssl.enabled") != "false")
    if host == "s3.amazonaws.com":  # it serves one region only; the SDK knows the others
        host = None
    has_keys = bool(setting("access.key") and setting("secret.key"))
    providers = setting("aws.credentials.provider") or ""
    role = setting("assumed.role.arn") if "AssumedRoleCredentialProvider" in providers else None
    if role and has_keys:
        raise ConfigError(
            f"s3a://{bucket} assumes the role {role} with fs.s3a.access.key; expected a role without keys in "
            "Spark's settings: pyarrow takes the role's base credentials from the environment only. Set "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY on all executors, or use the machine's identity"
        )
    return fs.S3FileSystem(
        access_key=setting("access.key") if has_keys else None,
        secret_key=setting("secret.key") if has_keys else None,
        session_token=setting("session.token") if has_keys else None,
        anonymous=not has_keys and "AnonymousAWSCredentialsProvider" in providers,
        role_arn=role,
        session_name=setting("assumed.role.session.name") if role else None,
        region=setting("endpoint.region") or _region(bucket, host),
        scheme=scheme,
        endpoint_override=host,
        # Hadoop's default: the bucket is part of the host's name.
        force_virtual_addressing=host is not None and setting("path.style.access") != "true",
    )


def _endpoint(endpoint: str | None, *, is_secure: bool) -> tuple[str, str | None]:
    """Return scheme and host of an endpoint, which may be written without a scheme."""
    scheme, separator, host = (endpoint or "").rstrip("/").rpartition("://")
    return scheme if separator else ("https" if is_secure else "http"), host or None


def _region(bucket: str, host: str | None) -> str | None:
    """Return the region that the host's name contains, or ask AWS for the bucket's.

    None, for other hosts or if AWS does not answer, means the environment's.
    """
    if host is not None:
        regional = _REGIONAL.search(host)
        return regional[1] if regional else None
    try:
        return str(fs.resolve_s3_region(bucket))
    except (OSError, pa.ArrowInvalid):
        return None


def _gs(settings: Mapping[str, str], bucket: str) -> fs.FileSystem:  # noqa: ARG001 - one signature
    """Make the file system of Google's buckets, with a key file or the environment's credentials."""
    prefixes = ("fs.gs.auth", "google.cloud.auth")
    names = [f"{prefix}.service.account.json.keyfile" for prefix in prefixes]
    if key_file := next(filter(None, map(settings.get, names)), None):
        if not os.path.isfile(key_file):  # noqa: PTH113 - a setting, as it is written
            raise ConfigError(
                f"the key file {key_file} for Google's storage is not on {socket.gethostname()}; expected it "
                "on the driver and on all executors. Copy it there, or use the machine's identity"
            )
        os.environ["GOOGLE_APPLICATION_CREDENTIALS"] = key_file  # pyarrow has no argument for it
    scheme, host = _endpoint(settings.get("fs.gs.storage.root.url"), is_secure=True)
    is_anonymous = settings.get("fs.gs.auth.type") == "UNAUTHENTICATED"
    is_anonymous |= settings.get("fs.gs.auth.null.enable") == "true"
    return fs.GcsFileSystem(anonymous=is_anonymous, scheme=scheme, endpoint_override=host)


def _azure(settings: Mapping[str, str], authority: str) -> fs.FileSystem:
    """Make the file system of an account: key, SAS token, service principal, or managed identity."""
    container, _, host = authority.rpartition("@")
    account, _, domain = host.partition(".")
    domain = domain.partition(".")[2]  # without `dfs` or `blob`; national clouds have their own domains

    def setting(name: str) -> str | None:
        return settings.get(f"{name}.{host}") or settings.get(name) or None

    oauth = "fs.azure.account.oauth"
    options: dict[str, str | None] = {}
    if key := setting("fs.azure.account.key"):
        options = {"account_key": key}
    elif sas := setting("fs.azure.sas.fixed.token") or setting(f"fs.azure.sas.{container}"):
        options = {"sas_token": "?" + sas.removeprefix("?")}  # pyarrow appends it to the URL as it is
    elif secret := setting(f"{oauth}2.client.secret"):
        # https://login.microsoftonline.com/TENANT/oauth2/token
        tenant = re.search(r"//[^/]+/([^/]+)", setting(f"{oauth}2.client.endpoint") or "")
        options = {"client_id": setting(f"{oauth}2.client.id"), "client_secret": secret}
        options["tenant_id"] = tenant[1] if tenant else None
    elif "MsiTokenProvider" in (setting(f"{oauth}.provider.type") or ""):
        options = {"client_id": setting(f"{oauth}2.client.id")}  # which of the machine's identities
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


OPENED_ANYWHERE: Final = frozenset(_SCHEMES) - {"hdfs"}
"""Schemes whose files Python opens with settings alone; HDFS needs libhdfs on each machine."""


def _name(scheme: str, authority: str, path: str) -> str:
    """Return a file's name in its file system."""
    if scheme == "dbfs":  # as Databricks mounts it
        return path if path.startswith("/Volumes/") else f"/dbfs{path}"
    return path if scheme in ("file", "hdfs") else authority.partition("@")[0] + path  # bucket or container
