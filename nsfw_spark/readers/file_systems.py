"""File systems: Hadoop's settings → what pyarrow reads a bucket, a container or HDFS with.

In: Hadoop's settings by their names, and the authority of a URI. Out: a file system of pyarrow; nothing has
been asked of the cloud but where an S3 bucket is. What the settings do not say, each cloud's own chain finds:
environment, profile, the machine's identity.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import pyarrow as pa
from pyarrow import fs


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
