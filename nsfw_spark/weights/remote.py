"""A file elsewhere: what is known of it before it is downloaded, and how its bytes are had.

In: a URL. Out: a `RemoteFile`, read through the Hugging Face hub's client, whose settings thus hold for all
that is downloaded: proxies, certificates, timeouts, `HF_HUB_DISABLE_PROGRESS_BARS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO, Final

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
