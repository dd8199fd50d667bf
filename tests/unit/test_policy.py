"""Policies: what is written in a file, and what a policy is called."""

from __future__ import annotations

from pathlib import Path

import pytest

from nsfw_spark.errors import ConfigError
from nsfw_spark.options import job_options

pytest.importorskip("pyspark")
from nsfw_spark.spark.policy import Policy


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ("nsfw_score < 0.3", "nsfw_score < 0.3"),
        ("\ufeff\n  nsfw_score\t<\r\n 0.3 \n", "nsfw_score < 0.3"),
        ("-- strict\nnsfw_score < 0.3 -- LAION's\n  AND width > 9 --", "nsfw_score < 0.3 AND width > 9"),
        ("error = '--  no comment'", "error = '--  no comment'"),
        (r"error = 'it\'s  -- one' -- two", r"error = 'it\'s  -- one'"),
        ("`a  -- b` < 1 -- c", "`a  -- b` < 1"),
        (r"error = r'a\' -- c", r"error = r'a\'"),
        ("/* -- a */ nsfw_score < 1", "/* -- a */ nsfw_score < 1"),
        ("nsfw_score < 1 -- a \\\n still a comment", "nsfw_score < 1"),
    ],
)
def test_the_text_is_the_expression_without_comments_and_line_breaks(
    tmp_path: Path, written: str, text: str
) -> None:
    file = tmp_path / "policy.sql"
    file.write_bytes(written.encode())
    assert Policy.from_file(file).text == text


@pytest.mark.parametrize("written", ["", " \n", "-- nsfw_score < 0.3", "-- a\n-- b\n"])
def test_a_file_without_an_expression_is_refused_by_name(tmp_path: Path, written: str) -> None:
    file = tmp_path / "policy.sql"
    file.write_text(written, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"policy\.sql has no expression; expected one SQL expression"):
        Policy.from_file(file)


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00"])
def test_a_file_that_cannot_be_read_is_refused_by_name(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "policy.sql"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"cannot read the policy .*policy\.sql"):
        Policy.from_file(file)


@pytest.mark.parametrize(("threshold", "text"), [(0.3, "0.3f"), (0, "0.0f"), (1, "1.0f"), (1e-5, "1e-05f")])
def test_a_threshold_is_compared_as_the_float_that_scores_are(threshold: float, text: str) -> None:
    policy = Policy.below(threshold)
    assert (policy.text, policy.threshold) == (f"nsfw_score < {text}", threshold)


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan")])
def test_a_threshold_is_a_share(threshold: float) -> None:
    with pytest.raises(ConfigError, match="expected a number from 0 to 1"):
        Policy.below(threshold)


@pytest.mark.parametrize("sql", ["nsfw_score < 0.3", "nsfw_score<0.3", "coalesce(nsfw_score, 1) < 0.3"])
def test_a_policy_may_be_the_expression_itself(sql: str) -> None:
    assert Policy.parse(sql).text == sql
    assert Policy.of(job_options({"output": "out", "policy": sql})).text == sql


def test_a_file_whose_name_looks_like_sql_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my policy (new).sql").write_text("nsfw_score < 0.1")
    assert Policy.parse("my policy (new).sql").text == "nsfw_score < 0.1"


def test_a_missing_policy_file_says_that_an_expression_would_do() -> None:
    with pytest.raises(ConfigError, match=r"cannot read the policy absent\.sql.*or the expression itself"):
        Policy.parse("absent.sql")


def test_the_options_name_a_threshold_or_a_file(tmp_path: Path) -> None:
    file = tmp_path / "policy.sql"
    file.write_text("nsfw_score < 0.3f\n", encoding="utf-8")
    by_threshold = Policy.of(job_options({"output": "out", "threshold": 0.3}))
    by_file = Policy.of(job_options({"output": "out", "policy": str(file)}))
    assert by_threshold.text == by_file.text == "nsfw_score < 0.3f"
    assert (by_threshold.threshold, by_file.threshold) == (0.3, None)
