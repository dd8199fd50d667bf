"""Where things lie: paths, URIs, and names in a catalog, as they are typed."""

from __future__ import annotations

import os

from nsfw_spark.errors import ConfigError
from nsfw_spark.redact import has_credentials, redact


def is_schema(output: str) -> bool:
    """Tell `main.safety`, a catalog schema, from a path; write `./main.safety` for a path."""
    parts = output.split(".")
    return len(parts) == 2 and all(part.isidentifier() for part in parts)  # noqa: PLR2004


def credentials_problem(uri: str) -> str | None:
    """Say that a URI carries credentials: they would be part of each image_id, and of Spark's own logs."""
    if not has_credentials(uri):
        return None
    return (
        f"{redact(uri)} carries credentials; expected a URI without, and them in Spark's configuration "
        "(fs.s3a.access.key, fs.azure.account.key.…), or none where the machine has an identity"
    )


def absolute_uri(location: str) -> str:
    """Make a relative local path absolute, `~` included; leave a URI with a scheme as it is.

    Raises:
        ConfigError: The URI carries credentials.
    """
    if problem := credentials_problem(location):
        raise ConfigError(problem)
    if ":/" in location:
        return location
    return os.path.abspath(os.path.expanduser(location))  # noqa: PTH100, PTH111 - Path drops a URI's slashes


def is_listed_in(location: str, directory: str) -> bool:
    """Whether a path or URI is a directory, or below it where Spark looks: not in `_…` or `.…`.

    Links are not followed.
    """
    inner, outer = (_plain(absolute_uri(each)) for each in (location, directory))
    if not f"{inner}/".startswith(f"{outer}/"):
        return False
    return not any(name.startswith(("_", ".")) for name in inner.removeprefix(outer).split("/"))


def _plain(uri: str) -> str:
    """Return a URI without what two ways to write the same one differ by."""
    scheme, colon, path = uri.partition(":/")
    path = os.path.normpath("/" + (path if colon else uri).lstrip("/"))
    return f"{scheme if colon and scheme != 'file' else ''}:{path.rstrip('/')}"
