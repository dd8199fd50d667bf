"""Redaction: text without the credentials that URIs in it carry.

In: any text, such as an error message of a library that names the URL it asked for. Out: the same text with
`***` for passwords (`s3a://KEY:SECRET@bucket`) and for what signs a request (`?sig=…`, `X-Amz-Signature=…`).
What is no part of a URI stays: nothing here can tell a bare secret from a word. Own code *because* scanners
for secrets judge lines of source code, and take milliseconds for each; this runs for each error.
"""

from __future__ import annotations

import re
from typing import Final

HIDDEN: Final = "***"

_LOGIN: Final = re.compile(
    r"""\b(?P<scheme>[a-z][a-z0-9+.-]{0,30}://)
    (?: [^\s/?#@:]* : (?!\d+/) [^\s/@]+ (?:/[^\s/@]+){0,4}  # a secret key of AWS may have slashes in it
      | (?<=https://) [^\s/?#@:]+ ) @""",
    re.IGNORECASE | re.VERBOSE,
)
"""User and password before a host, or a token. `abfss://container@account` has neither, nor has a port."""

_NAMES: Final = (
    "sig",  # Azure's shared access signatures
    "x-amz-signature",
    "x-amz-credential",
    "x-amz-security-token",
    "x-goog-signature",
    "x-goog-credential",
    "signature",
    "awsaccesskeyid",
    "googleaccessid",
    "access_token",
    "api_key",
    "apikey",
    "password",
    "secret",
    "token",
)
_PARAMETER: Final = re.compile(rf"([?&;](?:{'|'.join(_NAMES)})=)[^\s&;'\"<>)\]]+", re.IGNORECASE)
"""A parameter that signs a request or is a key, in a query."""


def redact(text: str) -> str:
    """Return the text without credentials; what has none comes back as it is.

    >>> redact("s3a://KEY:SECRET@bucket/a.jpg: 403")
    's3a://***@bucket/a.jpg: 403'
    >>> redact("GET https://host/a.jpg?se=2030&sig=SECRET failed")
    'GET https://host/a.jpg?se=2030&sig=*** failed'
    """
    if "://" in text:
        text = _LOGIN.sub(rf"\g<scheme>{HIDDEN}@", text)
    return _PARAMETER.sub(rf"\1{HIDDEN}", text) if "=" in text else text


def has_credentials(uri: str) -> bool:
    """Whether a URI carries a password, or a parameter that signs a request; a plain path never does."""
    return "://" in uri and redact(uri) != uri
