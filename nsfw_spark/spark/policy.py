"""The policy: which images are safe, as a value.

In: a threshold, or one SQL expression on the columns of `image_scores`. Out: the condition that a safe row
meets, and its text, by which a table says what it was filtered with. Knows nothing of where tables are.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pyspark.errors import PySparkException
from pyspark.logger import PySparkLogger
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import BooleanType

from nsfw_spark.errors import ConfigError
from nsfw_spark.options import JobOptions

_EXPECTED: Final = "expected one SQL expression that is true for safe images, like nsfw_score < 0.3"
_GAP: Final = re.compile(
    r"""(?P<kept> \b[rR]'[^']*' | \b[rR]"[^"]*" | '(?:\\.|[^'\\])*' | "(?:\\.|[^"\\])*" | `[^`]*` | /\*.*?\*/)
    | (?: --(?:\\\n|[^\r\n])* | \s )+""",
    re.DOTALL | re.VERBOSE,
)
"""White space and `--` comments outside quotes."""
_SQL: Final = re.compile(r"[\s<>=(]")
"""What an expression has and the name of a policy file usually has not."""
_SUBQUERIES: Final = {"Exists", "InSubquery", "ListQuery", "ScalarSubquery"}
_CLOCKS: Final = {"LocalTimestamp", "Now"}  # and every Current…: Spark calls them deterministic
_BUILT_IN: Final = "org.apache.spark.sql.catalyst.expressions."  # the package of Spark's own functions
_CODE: Final = {
    "PythonUDF",
    "ScalaUDF",
    "ApplyFunctionExpression",
}  # there too; other people's code
_LOOKUPS: Final = {"GetMapValue", "ElementAt"}  # class_scores['high'], element_at(class_scores, 'high')


@dataclass(frozen=True)
class Policy:
    """Which scored images are safe; those without a score never are."""

    text: str
    """SQL, on one line: the identity of the policy in commits, table properties and `runs`."""
    origin: str
    """The file or option that holds the policy, for messages."""
    threshold: float | None = None
    """None for a SQL expression."""

    @classmethod
    def of(cls, options: JobOptions) -> Policy:
        """Return the policy of a job.

        Raises:
            ConfigError: The file cannot be read, or has no expression.
        """
        return cls.below(options.threshold) if options.policy is None else cls.parse(options.policy)

    @classmethod
    def parse(cls, policy: str) -> Policy:
        """Read a policy from a file, or from the SQL expression itself.

        Raises:
            ConfigError: The file cannot be read, or there is no expression.
        """
        path = Path(policy).expanduser()
        is_expression = _SQL.search(policy) is not None and not path.is_file()
        return cls.from_sql(policy) if is_expression else cls.from_file(path)

    @classmethod
    def below(cls, threshold: float) -> Policy:
        """Return the policy "safe if nsfw_score is below the threshold"; strict, as LAION's thresholds are.

        Raises:
            ConfigError: The threshold is not in [0, 1].
        """
        if not 0 <= threshold <= 1:
            raise ConfigError(f"threshold is {threshold}; expected a number from 0 to 1")
        # f: compared with a decimal, the float 0.3 would be more than 0.3, and the float 0.7 less than 0.7.
        return cls(f"nsfw_score < {float(threshold)!r}f", f"threshold {threshold}", float(threshold))

    @classmethod
    def from_file(cls, path: Path) -> Policy:
        """Read one SQL expression from a file; `--` begins a comment.

        Raises:
            ConfigError: The file cannot be read, or has no expression.
        """
        try:
            sql = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"cannot read the policy {path}: {error}. Expected a file with one SQL expression, or the "
                'expression itself, like "nsfw_score < 0.3"'
            ) from error
        return cls.from_sql(sql, origin=str(path))

    @classmethod
    def from_sql(cls, sql: str, origin: str = "policy") -> Policy:
        """Return the policy of a SQL expression.

        Raises:
            ConfigError: There are only comments.
        """
        text = _GAP.sub(lambda gap: gap["kept"] or " ", sql).strip()
        if not text:
            raise ConfigError(f"{origin} has no expression; {_EXPECTED}")
        return cls(text, origin)

    def is_safe(self) -> Column:
        """Return the condition of a safe row; never null, and false for a row without a score."""
        return is_ok() & F.coalesce(F.expr(self.text), F.lit(False))  # noqa: FBT003

    def error(self, problem: str) -> ConfigError:
        """Return an error about this policy."""
        return ConfigError(f"{self.origin}: {problem}; {_EXPECTED}. Got: {self.text}")


def is_ok() -> Column:
    """Return the condition of a row with a score; never null."""
    return F.col("status").eqNullSafe("ok")


def check_policy(policy: Policy, scores: DataFrame, classes: Collection[str] | None = None) -> None:
    """Make sure that a policy can be applied; nothing is read or computed.

    An image without a score never passes, whatever the policy says: see `Policy.is_safe`.

    Args:
        policy: A threshold needs no check.
        scores: `image_scores` with or without rows, batch.
        classes: The model's classes; None where they are not known.

    Raises:
        ConfigError: The expression is not SQL on these columns, not a condition, or not deterministic. Or it
            needs more than one row, calls other people's functions, or names a class that the model lacks.
    """
    if policy.threshold is not None:
        return
    if not hasattr(scores.sparkSession, "_jsc"):
        raise policy.error("a policy other than a threshold cannot be checked over Spark Connect")
    with _errors_of(policy, scores.columns):
        _check_expression(policy, scores.limit(0), classes)


def _check_expression(policy: Policy, scores: DataFrame, classes: Collection[str] | None) -> None:
    values = scores.select(F.expr(policy.text)).schema
    if len(values) != 1 or not isinstance(values[0].dataType, BooleanType):
        types = ", ".join(value.dataType.simpleString() for value in values)
        raise policy.error(f"its value is {types}, not boolean")
    # As a filter, Spark itself refuses aggregates, windows and generators.
    plan = _analyzed(scores.filter(F.expr(policy.text)))
    if plan.getClass().getSimpleName() != "Filter" or not plan.child().sameResult(_analyzed(scores)):
        raise policy.error("it is more than an expression on one row")  # a function that is itself a query
    for node in _nodes(plan.condition()):
        if problem := _problem(node) or _unknown_class(node, classes):
            raise policy.error(problem)


def _analyzed(frame: DataFrame) -> Any:  # noqa: ANN401 - a LogicalPlan of Spark's, in Java
    return frame._jdf.queryExecution().analyzed()  # noqa: SLF001


def _problem(node: Any) -> str | None:  # noqa: ANN401 - an Expression of Spark's, in Java
    """Say why an expression cannot be part of a policy, which reads one row and always gives the same."""
    kind, name = node.getClass().getName(), node.getClass().getSimpleName()
    if name in _SUBQUERIES:
        return "it has a subquery"
    if name in _CODE or not kind.startswith(_BUILT_IN):
        return f"{node.sql()} is not one of Spark's own functions"
    if name == "CallMethodViaReflection":
        return f"{node.sql()} calls Java"
    if name == "RaiseError":
        return "it may end the job with an error; expected false instead"
    if name.startswith("Current") or name in _CLOCKS or not node.deterministic():
        return f"{node.sql()} is not the same each time"
    return None


def _nodes(expression: Any) -> Iterator[Any]:  # noqa: ANN401 - an Expression of Spark's, in Java
    """Yield the nodes of an expression, the innermost first."""
    children = expression.children().iterator()
    while children.hasNext():
        yield from _nodes(children.next())
    yield expression


def _unknown_class(node: Any, classes: Collection[str] | None) -> str | None:  # noqa: ANN401 - see _problem
    """Say that an expression looks up a class that the model lacks: it would be null for every image."""
    if classes is None or node.getClass().getSimpleName() not in _LOOKUPS:
        return None
    column, key = (node.children().apply(i) for i in range(2))
    kinds = [each.getClass().getSimpleName() for each in (column, key)]
    if kinds != ["AttributeReference", "Literal"] or column.name() != "class_scores":
        return None
    name = str(key.value().toString())
    return (
        None if name in classes else f"the model has no class {name}: it has {', '.join(classes) or 'none'}"
    )


@contextmanager
def _errors_of(policy: Policy, columns: list[str]) -> Iterator[None]:
    """Turn Spark's errors about a policy into one sentence, and keep its stack traces off the terminal."""
    # pyspark makes this logger later, of its own class, unless it is there: it must be of that class.
    log: logging.Logger = PySparkLogger.getLogger("SQLQueryContextLogger")
    was_disabled, log.disabled = log.disabled, True
    try:
        yield
    except PySparkException as error:
        message = re.sub(r"^\[[\w.]+\] | SQLSTATE: .*", "", str(error).strip().splitlines()[0])
        if "UNRESOLVED_COLUMN" in (error.getCondition() or ""):
            message += f". There are {', '.join(columns)}"
        raise policy.error(message.rstrip(".")) from error
    finally:
        log.disabled = was_disabled
