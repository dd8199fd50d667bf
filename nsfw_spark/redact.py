"""Removes from a text what must not be shown: credentials of URIs, and characters that steer a terminal.

In: any text, for example a library's error message with a URL. Out: the same text with `***` for passwords
(`s3a://KEY:SECRET@bucket`) and for signatures (`?sig=…`, `X-Amz-Signature=…`). A secret outside a URI stays,
because nothing distinguishes it from a word. Secret scanners are no substitute: they take milliseconds a line
of source code, and this runs for each error.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

HIDDEN: Final = "***"

_LOGIN: Final = re.compile(
    r"""\b(?P<scheme>[a-z][a-z0-9+.-]{0,30}://)
    (?: [^\s/?#@:]* : (?!\d+/) [^\s/@]+ (?:/[^\s/@]+){0,4}  # AWS's secret keys may contain slashes
      | (?<=https://) [^\s/?#@:]+ ) @""",
    re.IGNORECASE | re.VERBOSE,
)
"""User and password, or a token, before a host. A port or `abfss://container@account` does not match."""

_NAMES: Final = (  # sig: Azure's shared access signatures
    "sig|signature|x-amz-signature|x-amz-credential|x-amz-security-token|x-goog-signature|x-goog-credential|"
    "awsaccesskeyid|googleaccessid|access_token|api_?key|password|secret|token"
)
_PARAMETER: Final = re.compile(rf"([?&;](?:{_NAMES})=)[^\s&;'\"<>)\]]+", re.IGNORECASE)
"""A query parameter that is a signature or a key."""


def redact(text: str) -> str:
    """Return the text with `***` in place of credentials.

    >>> redact("s3a://KEY:SECRET@bucket/a.jpg: 403")
    's3a://***@bucket/a.jpg: 403'
    >>> redact("GET https://host/a.jpg?se=2030&sig=SECRET failed")
    'GET https://host/a.jpg?se=2030&sig=*** failed'
    """
    if "://" in text:
        text = _LOGIN.sub(rf"\g<scheme>{HIDDEN}@", text)
    return _PARAMETER.sub(rf"\1{HIDDEN}", text) if "=" in text else text


def has_credentials(uri: str) -> bool:
    """Whether a URI contains a password or a signature; a plain path never does."""
    return "://" in uri and redact(uri) != uri


def printable(text: str) -> str:
    """Return the text with U+FFFD in place of characters that steer a terminal or cannot be printed.

    Names of files are strangers' data: they may hold escape sequences, line breaks, changes of direction, and
    bytes that are not UTF-8.
    """
    return "".join("\ufffd" if _steers(character) else character for character in text)


def _steers(character: str) -> bool:
    category = unicodedata.category(character)
    return category[0] == "C" or category in ("Zl", "Zp")
