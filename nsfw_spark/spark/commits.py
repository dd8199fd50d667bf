"""What commits to a Delta table did to its rows."""

from __future__ import annotations

from typing import Any, Final

_HARMLESS: Final = {
    "ADD COLUMNS",
    "ADD CONSTRAINT",
    "CHANGE COLUMN",
    "CREATE TABLE",
    "OPTIMIZE",
    "SET TBLPROPERTIES",
    "STREAMING UPDATE",
    "VACUUM END",
    "VACUUM START",
}


def only_adds(commit: Any) -> bool:  # noqa: ANN401 - a Row of DESCRIBE HISTORY
    """Whether a commit changed and deleted no row; it may have added some."""
    appends = commit.operation == "WRITE" and commit.operationParameters.get("mode") == "Append"
    creates = commit.operation.startswith("CREATE TABLE")
    return appends or creates or commit.operation in _HARMLESS
