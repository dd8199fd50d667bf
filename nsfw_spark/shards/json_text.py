"""What is known of an image, as JSON, which does not have all that tables have."""

from __future__ import annotations

import base64
import json
import math
from datetime import UTC, date, datetime
from typing import Any


def as_json(row: dict[str, Any]) -> bytes:
    """Return what is known of an image, the JSON that came with it as a value of its own."""
    if isinstance(row.get("json"), str):
        row = {**row, "json": _parsed(row["json"])}
    return json.dumps(_plain(row), ensure_ascii=False, sort_keys=True, allow_nan=False).encode(
        errors="replace"
    )


def _parsed(text: str) -> Any:  # noqa: ANN401 - whatever was written
    try:
        return json.loads(text)
    except ValueError:
        return text


def _plain(value: Any) -> Any:  # noqa: ANN401 - of any type that Arrow has
    """Return a value with nothing in it that JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, datetime) and value.tzinfo is not None:
        value = value.astimezone(UTC)
    return value.isoformat() if isinstance(value, date) else str(value)
