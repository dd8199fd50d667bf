"""Checks and normalises the locations that users type: local paths, URIs, and names of catalog schemas."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

from nsfw_spark.errors import ConfigError
from nsfw_spark.redact import has_credentials, redact

HIDDEN: Final = ("_", ".")
"""Files and folders that Spark skips have names that begin with one of these."""


def is_schema(output: str) -> bool:
    """Whether an output is a catalog schema such as `main.safety`; `./main.safety` is a path."""
    return _num_parts(output) == 2  # noqa: PLR2004


def may_be_table(uri: str) -> bool:
    """Whether an input may be a table of a catalog: `schema.table` or `catalog.schema.table`."""
    return _num_parts(uri) in (2, 3)


def _num_parts(name: str) -> int:
    """Return the number of a name's parts; 0 if it is no name."""
    parts = name.replace("-", "_").split(".")  # Unity Catalog allows hyphens in names
    return len(parts) if all(map(str.isidentifier, parts)) else 0


def in_sql(name: str) -> str:
    """Return a schema's or table's name for SQL: a part with a hyphen needs back-quotes."""
    return ".".join(part if part.isidentifier() else f"`{part}`" for part in name.split("."))


def credentials_problem(uri: str) -> str | None:
    """Return an error message for a URI with credentials, since image_ids and logs contain it; else None."""
    if not has_credentials(uri):
        return None
    return (
        f"{redact(uri)} carries credentials; expected a URI without them. Put them into Spark's "
        "configuration (fs.s3a.access.key, fs.azure.account.key.…), or use the machine's identity"
    )


def absolute_uri(location: str) -> str:
    """Return a local path as an absolute one, with `~` expanded; return a URI with a scheme unchanged.

    Raises:
        ConfigError: The URI contains credentials.
    """
    if problem := credentials_problem(location):
        raise ConfigError(problem)
    if ":/" in location:
        return location
    return os.path.abspath(os.path.expanduser(location))  # noqa: PTH100, PTH111 - Path drops a URI's slashes


def is_listed_in(location: str, directory: str) -> bool:
    """Whether a path or URI is a directory or lies below it, outside folders named `_…` or `.…`.

    Spark skips such folders. Local links are compared as they are written, and followed.
    """
    return any(
        _is_listed_in(*(_plain(absolute_uri(each), normal) for each in (location, directory)))
        for normal in (os.path.normpath, os.path.realpath)
    )


def _is_listed_in(inner: str, outer: str) -> bool:
    if not f"{inner}/".startswith(f"{outer}/"):
        return False
    return not any(name.startswith(HIDDEN) for name in inner.removeprefix(outer).split("/"))


def _plain(uri: str, normal: Callable[[str], str]) -> str:
    """Return one spelling for all spellings of a URI: `file:///a/` and `/a`, or `s3://b` and `s3a://b`."""
    scheme, colon, path = uri.partition(":/")
    scheme = "s3a" if scheme in ("s3", "s3n") else scheme
    path = "/" + (path if colon else uri).lstrip("/")
    is_local = not colon or scheme == "file" or (scheme == "dbfs" and path.startswith("/Volumes/"))
    path = normal(path) if is_local else os.path.normpath(path)
    return f"{'' if is_local else scheme}:{path.rstrip('/')}"
