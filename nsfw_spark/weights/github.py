"""Files of public GitHub repositories."""

from __future__ import annotations

from urllib.parse import quote

from nsfw_spark.model_card import WeightsSource
from nsfw_spark.weights.remote import RemoteFile, open_url


def open_github_file(source: WeightsSource) -> RemoteFile:
    """Ask GitHub about a file.

    Raises:
        OSError, HTTPError: No network, or no such file.
    """
    where = f"{source.github}/{source.revision}/{quote(str(source.file))}"
    return open_url(f"{source.github}/{source.file} on GitHub", f"https://raw.githubusercontent.com/{where}")
