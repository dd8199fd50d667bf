"""The policy: what counts as safe, as a value.

In goes a threshold, or a file with one SQL expression on the columns of `image_scores`; out come the
condition that a safe row meets, and its text, by which a table says what it was filtered with. Nothing here
knows where tables lie.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Final, get_args

from pyspark.errors import PySparkException
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import BooleanType, StructField, StructType

from nsfw_spark.errors import ConfigError, Status
from nsfw_spark.options import JobOptions
from nsfw_spark.spark.schema import is_score

_EXPECTED: Final = "expected one SQL expression that is true for safe images, like nsfw_score < 0.3"
_GAP: Final = re.compile(
    r"""(?P<kept> \b[rR]'[^']*' | \b[rR]"[^"]*" | '(?:\\.|[^'\\])*' | "(?:\\.|[^"\\])*" | `[^`]*` | /\*.*?\*/)
    | (?: --(?:\\\n|[^\r\n])* | \s )+""",
    re.DOTALL | re.VERBOSE,
)
"""White space and `--` comments, but not those inside quotes."""
_SUBQUERIES: Final = {"Exists", "InSubquery", "ListQuery", "ScalarSubquery"}
_CLOCKS: Final = {"LocalTimestamp", "Now"}  # besides Current…: Spark calls them deterministic
_BUILT_IN: Final = "org.apache.spark.sql.catalyst.expressions."  # where Spark's own functions are
_CODE: Final = {"PythonUDF", "ScalaUDF", "ApplyFunctionExpression"}  # there too, and run what others wrote
_SHOWN: Final = 3


@dataclass(frozen=True)
class Policy:
    """Which scored images are safe; those without a score never are."""

    text: str
    """SQL, on one line: the identity of the policy, in commits, table properties and `runs`."""
    origin: str
    """Where it was written, for messages."""
    threshold: float | None = None
    """None where the policy is more than a threshold."""

    @classmethod
    def of(cls, options: JobOptions) -> Policy:
        """Return the policy that the options name.

        Raises:
            ConfigError: The file cannot be read, or has no expression.
        """
        return cls.below(options.threshold) if options.policy is None else cls.from_file(options.policy)

    @classmethod
    def below(cls, threshold: float) -> Policy:
        """Call safe what scores below the threshold. Strict, as LAION's published thresholds are.

        Raises:
            ConfigError: The threshold is not in [0, 1].
        """
        if not 0 <= threshold <= 1:
            raise ConfigError(f"threshold is {threshold}; expected a number from 0 to 1")
        # f: a float column compared with a decimal would make 0.3 (float) more than 0.3, and 0.7 less.
        return cls(f"nsfw_score < {float(threshold)!r}f", f"threshold {threshold}", float(threshold))

    @classmethod
    def from_file(cls, path: Path) -> Policy:
        """Read a policy: one SQL expression, with `--` comments if need be.

        Raises:
            ConfigError: The file cannot be read, or has no expression.
        """
        try:
            sql = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read the policy {path}: {error}") from error
        return cls.from_sql(sql, origin=str(path))

    @classmethod
    def from_sql(cls, sql: str, origin: str = "policy") -> Policy:
        """Take a SQL expression for a policy.

        Raises:
            ConfigError: There is nothing but comments.
        """
        text = _GAP.sub(lambda gap: gap["kept"] or " ", sql).strip()
        if not text:
            raise ConfigError(f"{origin} has no expression; {_EXPECTED}")
        return cls(text, origin)

    def is_safe(self) -> Column:
        """Return the condition of a safe row: true or false, never null; false without a score."""
        return is_ok() & F.coalesce(F.expr(self.text), F.lit(False))  # noqa: FBT003

    def error(self, problem: str) -> ConfigError:
        """Return the error that says what is wrong with this policy."""
        return ConfigError(f"{self.origin}: {problem}; {_EXPECTED}. Got: {self.text}")


def is_ok() -> Column:
    """Return whether a row has a score: true or false, never null."""
    return F.col("status").eqNullSafe("ok")


def check_policy(policy: Policy, scores: DataFrame) -> None:
    """Make sure that a policy is one that can be applied, and lets no image pass that has no score.

    Args:
        policy: Any; a threshold is right by itself and costs nothing here.
        scores: `image_scores`, with or without rows, batch. All its rows without a score are tried.

    Raises:
        ConfigError: Not SQL, not on these columns, not a condition, not the same each time, more than one
            row at a time, other people's functions; or an image without a score would pass but for
            `status = 'ok'`.
    """
    if policy.threshold is not None:
        return
    if not hasattr(scores.sparkSession, "_jsc"):
        raise policy.error("a policy other than a threshold cannot be checked over Spark Connect")
    with _errors_of(policy, scores.columns):
        _check_expression(policy, scores.limit(0))
        _check_unscored(policy, scores.sparkSession.createDataFrame(_unscored(scores.schema), scores.schema))
    _check_unscored(policy, scores)


def _check_expression(policy: Policy, scores: DataFrame) -> None:
    values = scores.select(F.expr(policy.text)).schema
    if len(values) != 1 or not isinstance(values[0].dataType, BooleanType):
        types = ", ".join(value.dataType.simpleString() for value in values)
        raise policy.error(f"its value is {types}, not boolean")
    # As a filter, Spark itself refuses aggregates, windows and generators.
    plan = _analyzed(scores.filter(F.expr(policy.text)))
    if plan.getClass().getSimpleName() != "Filter" or not plan.child().sameResult(_analyzed(scores)):
        raise policy.error("it is more than an expression on one row")  # a function that is itself a query
    for node in _nodes(plan.condition()):
        if problem := _problem(node):
            raise policy.error(problem)


def _analyzed(frame: DataFrame) -> Any:  # noqa: ANN401 - a LogicalPlan of Spark's, in Java
    return frame._jdf.queryExecution().analyzed()  # noqa: SLF001


def _problem(node: Any) -> str | None:  # noqa: ANN401 - an Expression of Spark's, in Java
    """Say why an expression has no place in a policy, which reads one row, the same way each time."""
    kind, name = node.getClass().getName(), node.getClass().getSimpleName()
    if name in _SUBQUERIES:
        return "it has a subquery"
    if name in _CODE or not kind.startswith(_BUILT_IN):
        return f"{node.sql()} is none of Spark's own functions"
    if name == "CallMethodViaReflection":
        return f"{node.sql()} calls Java"
    if name == "RaiseError":
        return "it may end the job with an error; expected false in its place"
    if name.startswith("Current") or name in _CLOCKS or not node.deterministic():
        return f"{node.sql()} is not the same each time"
    return None


def _nodes(expression: Any) -> Iterator[Any]:  # noqa: ANN401 - an Expression of Spark's, in Java
    """Yield the nodes of an expression, the innermost first."""
    children = expression.children().iterator()
    while children.hasNext():
        yield from _nodes(children.next())
    yield expression


def _check_unscored(policy: Policy, scores: DataFrame) -> None:
    passing = scores.filter(~is_ok()).filter(F.expr(policy.text))
    columns = [name for name in ("image_id", "status") if name in scores.columns]
    if rows := passing.select(columns).limit(_SHOWN).collect():
        shown = "; ".join(" ".join(str(value) for value in row if value is not None) for row in rows)
        raise policy.error(f"it lets images pass that have no score (nsfw_score is null): {shown}")


def _unscored(columns: StructType) -> list[tuple[Any, ...]]:
    """Return made-up rows without a score: each status, with other columns null, small and large."""
    statuses = [status for status in get_args(Status) if status != "ok"]
    return [
        tuple(_unscored_value(column, status, size) for column in columns)
        for size in range(3)
        for status in statuses
    ]


def _unscored_value(column: StructField, status: str, size: int) -> Any:  # noqa: ANN401 - of any type
    if column.name == "status":
        return status
    if column.name == "error":
        return "why"
    if column.name == "image_id" or is_score(column):
        return None
    return _VALUES.get(column.dataType.typeName(), (None, None, None))[size]


_VALUES: Final[dict[str, tuple[Any, Any, Any]]] = {
    "string": (None, "", "x"),
    "boolean": (None, False, True),
    **dict.fromkeys(("byte", "short"), (None, 1, 100)),
    **dict.fromkeys(("integer", "long"), (None, 1, 1_000_000_000)),
    **dict.fromkeys(("float", "double"), (None, 0.0, 1.0)),
    "timestamp": (None, datetime(1970, 1, 2, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)),
    "date": (None, date(1970, 1, 1), date(2100, 1, 1)),
}
"""By type: null, small, large."""


@contextmanager
def _errors_of(policy: Policy, columns: list[str]) -> Iterator[None]:
    """Turn what Spark says of a policy into one sentence, and keep its stack traces off the terminal."""
    log = logging.getLogger("SQLQueryContextLogger")
    was_disabled, log.disabled = log.disabled, True
    try:
        yield
    except PySparkException as error:
        said = re.sub(r"^\[[\w.]+\] | SQLSTATE: .*", "", str(error).strip().splitlines()[0])
        if "UNRESOLVED_COLUMN" in (error.getCondition() or ""):
            said += f". There are {', '.join(columns)}"
        raise policy.error(said.rstrip(".")) from error
    finally:
        log.disabled = was_disabled
