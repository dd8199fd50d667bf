"""What commits to a Delta table did to its rows; each is a Row of DESCRIBE HISTORY."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

_UPKEEP: Final = {
    "ADD COLUMNS",
    "ADD CONSTRAINT",
    "CHANGE COLUMN",
    "OPTIMIZE",
    "SET TBLPROPERTIES",
    "VACUUM END",
    "VACUUM START",
}


def changes_no_row(commit: Any) -> bool:  # noqa: ANN401 - a Row
    """Whether a commit left all rows as they were, and added none."""
    return commit.operation in _UPKEEP


def only_adds(commit: Any) -> bool:  # noqa: ANN401 - a Row
    """Whether a commit changed and deleted no row; it may have added some."""
    appends = commit.operation == "WRITE" and commit.operationParameters.get("mode") == "Append"
    is_new = commit.operation.startswith("CREATE TABLE")
    return appends or is_new or commit.operation == "STREAMING UPDATE" or changes_no_row(commit)


def may_lack_additions(commits: Sequence[Any]) -> bool:
    """Whether files that some of the commits added may be gone: compacted, and then vacuumed.

    Args:
        commits: Newest first.
    """
    operations = [commit.operation for commit in reversed(commits)]
    added = [i for i, commit in enumerate(reversed(commits)) if not changes_no_row(commit)]
    return bool(added) and "VACUUM END" in operations[added[0] :]
