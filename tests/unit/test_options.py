"""Options: what is merged with what, and how places are told apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_type_hints

import pytest
from pydantic import ValidationError

from nsfw_spark.errors import ConfigError
from nsfw_spark.options import (
    GROUPS,
    JobKeywords,
    JobOptions,
    PeekOptions,
    ScoreKeywords,
    ScoreOptions,
    job_options,
)
from nsfw_spark.uris import absolute_uri, in_sql, is_listed_in, is_schema, may_be_table


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(
        "output: from-file\nthreshold: 0.3\nbatch_size: 32\nkeep_content: true\n", encoding="utf-8"
    )
    return path


def test_defaults_are_those_of_the_contract() -> None:
    options = job_options({"output": "out"})
    assert (options.model, options.threshold, options.max_error_rate) == ("laion-vit-l-14", 0.5, 0.1)
    assert (options.format, options.batch_size, options.device) == ("auto", "auto", "auto")
    assert (options.keep_content, options.checkpoints, options.allow_random_weights) == (False, None, False)


def test_the_command_line_wins_over_the_config_file(config: Path) -> None:
    options = job_options({"threshold": "0.7", "batch_size": "auto"}, config)
    assert (options.threshold, options.batch_size) == (0.7, "auto")
    assert (options.output, options.keep_content) == ("from-file", True)


def test_what_was_not_given_does_not_hide_the_config_file(config: Path) -> None:
    options = job_options(dict.fromkeys(JobOptions.model_fields), config)
    assert (options.output, options.threshold, options.batch_size) == ("from-file", 0.3, 32)


def test_false_and_zero_were_given(config: Path) -> None:
    options = job_options({"keep_content": False, "threshold": 0}, config)
    assert (options.keep_content, options.threshold) == (False, 0)


def test_a_mistake_is_named_where_it_was_written(config: Path) -> None:
    with pytest.raises(ConfigError, match=r"^--batch-size: .*'few'"):
        job_options({"batch_size": "few"}, config)
    config.write_text("output: out\nbatch_size: few\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"job\.yaml: batch_size: .*'few'"):
        job_options({}, config)


def test_mistakes_in_both_places_are_each_named_where_they_were_written(config: Path) -> None:
    config.write_text("output: out\nbatch_size: few\n", encoding="utf-8")
    with pytest.raises(ConfigError) as raised:
        job_options({"threshold": "high"}, config)
    assert "--threshold:" in str(raised.value)
    assert "--batch-size:" not in str(raised.value)
    assert "job.yaml" in str(raised.value)


def test_an_empty_config_file_is_told_from_a_missing_one(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("", encoding="utf-8")
    with pytest.raises(ConfigError, match="key: value"):
        job_options({"output": "out"}, tmp_path / "empty.yaml")
    with pytest.raises(ConfigError, match="cannot read"):
        job_options({"output": "out"}, tmp_path / "absent.yaml")


def test_options_do_not_change() -> None:
    options = job_options({"output": "out"})
    with pytest.raises(ValidationError, match="frozen"):
        options.threshold = 1.0  # type: ignore[misc]


@pytest.mark.parametrize("value", ["auto", 1, "1", 4096])
def test_a_count_is_a_whole_number_or_auto(value: Any) -> None:  # noqa: ANN401
    expected = "auto" if value == "auto" else int(value)
    assert job_options({"output": "out", "batch_size": value}).batch_size == expected


@pytest.mark.parametrize("value", [0, -1, 2.5, "2.5", "", "all", None, True])
def test_anything_else_is_no_count(value: Any, tmp_path: Path) -> None:  # noqa: ANN401
    config = tmp_path / "job.yaml"
    config.write_text(
        f"output: out\nbatch_size: {'null' if value is None else repr(value)}\n", encoding="utf-8"
    )
    with pytest.raises(ConfigError, match="batch_size"):
        job_options({}, config)


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("main.safety", True),
        ("spark_catalog.default", True),
        ("my-catalog.nightly-safety", True),
        ("main.2024-11", False),
        ("./main.safety", False),
        ("out", False),
        ("a.b.c", False),
        ("/data/main.safety", False),
        ("s3a://bucket/main.safety", False),
        ("main.2024", False),
        ("", False),
    ],
)
def test_a_schema_is_told_from_a_path(output: str, expected: bool) -> None:  # noqa: FBT001
    assert is_schema(output) is expected


def test_a_schema_is_quoted_in_sql_where_it_must_be() -> None:
    assert in_sql("main.safety") == "main.safety"
    assert in_sql("my-catalog.safety") == "`my-catalog`.safety"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("safety.images", True),
        ("my-catalog.safety.new-images", True),
        ("images", False),
        ("a.b.c.d", False),
        ("./safety.images", False),
        ("photos/2024.tar", False),
    ],
)
def test_a_table_is_told_from_a_path(name: str, expected: bool) -> None:  # noqa: FBT001
    assert may_be_table(name) is expected


def test_a_schema_may_come_with_checkpoints() -> None:
    assert job_options({"output": "main.safety", "checkpoints": "s3a://bucket/checkpoints"}).is_schema


@pytest.mark.parametrize("uri", ["s3a://bucket/photos", "file:/data/photos", "abfss://c@a.example/x"])
def test_a_uri_with_a_scheme_stays_as_it_is(uri: str) -> None:
    assert absolute_uri(uri) == uri


def test_a_local_path_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert absolute_uri("photos/") == str(tmp_path / "photos")
    assert absolute_uri("./a/../photos") == str(tmp_path / "photos")
    assert absolute_uri("~/photos") == str(tmp_path / "home" / "photos")
    assert absolute_uri("/data/photos") == "/data/photos"


def test_a_policy_and_a_threshold_are_refused_together(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^got policy strict\.sql and threshold 0\.5; expected one"):
        job_options({"output": "out", "policy": "strict.sql", "threshold": "0.5"})
    config = tmp_path / "job.yaml"
    config.write_text("output: out\nthreshold: 0.3\npolicy: strict.sql\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="expected one of the two"):
        job_options({}, config)


def test_a_policy_on_the_command_line_wins_over_a_threshold_in_the_config_file(config: Path) -> None:
    """And the other way round: both say the same thing, what is safe."""
    assert job_options({"policy": "strict.sql"}, config).policy == "strict.sql"
    config.write_text("output: out\npolicy: strict.sql\n", encoding="utf-8")
    options = job_options({"threshold": 0.3}, config)
    assert (options.policy, options.threshold) == (None, 0.3)


INSIDE = [
    ("photos", "photos/out"),
    ("photos/", "./photos/2026/../out"),
    ("photos", "photos"),
    (".", "out"),
    ("/photos", "file:///photos/out"),
    ("file:/photos", "/photos/out"),
    ("s3a://bucket", "s3a://bucket/photos/out"),
    ("s3a://bucket/photos/", "s3a://bucket/photos/out"),
    ("/data/_photos", "/data/_photos/out"),
    ("s3://bucket/photos", "s3a://bucket/photos/out"),
    ("s3a://bucket", "s3n://bucket/out"),
    ("dbfs:/Volumes/main/photos", "/Volumes/main/photos/out"),
]
OUTSIDE = [
    ("photos", "photos-out"),
    ("photos/a", "photos/out"),
    ("/photos", "photos/out"),
    ("out/image_scores", "out"),
    ("s3a://bucket/photos", "s3a://other/photos/out"),
    ("/photos", "s3a://photos/out"),
    ("main.images", "main.safety"),
    ("photos", "photos/_scores"),
    ("s3a://bucket/photos", "s3a://bucket/photos/a/.scores/b"),
    ("dbfs:/photos", "/photos/out"),
]


@pytest.mark.parametrize(("images", "output"), INSIDE)
def test_what_is_written_must_not_lie_where_images_are_listed(images: str, output: str) -> None:
    with pytest.raises(ConfigError, match=r"lies in the input .*; expected a place outside of it"):
        job_options({"input": images, "output": output})
    with pytest.raises(ConfigError, match=r"lies in the input"):
        job_options({"input": images, "output": "main.safety", "checkpoints": output})
    with pytest.raises(ConfigError, match=r"lies in the input"):
        job_options({"input": images, "output": output, "glob": "*"})
    job_options({"input": images, "output": output, "format": "webdataset"})


def test_links_are_compared_as_written_and_followed(tmp_path: Path) -> None:
    for name in ("photos", "elsewhere"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to("photos")
    (tmp_path / "photos/out").symlink_to(tmp_path / "elsewhere")
    assert is_listed_in(f"file:{tmp_path}/photos/a", f"{tmp_path}/link")
    assert is_listed_in(str(tmp_path / "photos/out"), str(tmp_path / "photos"))
    assert not is_listed_in(str(tmp_path / "elsewhere"), str(tmp_path / "link"))


@pytest.mark.parametrize(("images", "output"), OUTSIDE)
def test_what_is_written_may_lie_anywhere_else(images: str, output: str) -> None:
    job_options({"input": images, "output": output})


@pytest.mark.parametrize(
    ("keywords", "options", "named"),
    [
        (ScoreKeywords, ScoreOptions, {"model"}),
        (JobKeywords, JobOptions, {"model", "input", "output"}),
    ],
)
def test_the_keywords_of_functions_are_the_options(keywords: Any, options: Any, named: set[str]) -> None:  # noqa: ANN401
    """`named` are parameters of their own."""
    assert set(get_type_hints(keywords)) == set(options.model_fields) - named


def test_each_option_is_in_one_group() -> None:
    fields = [field for group in GROUPS for field in group.__annotations__ if field != "group"]
    assert sorted(fields) == sorted(JobOptions.model_fields.keys() | PeekOptions.model_fields.keys())


@pytest.mark.parametrize("value", ["0.2:0.8", (0.2, 0.8), [0.2, 0.8]])
def test_uncertain_scores_are_a_pair_or_text(value: Any) -> None:  # noqa: ANN401
    options = ScoreOptions.parse({"second": "open-nsfw", "uncertain": value})
    assert (options.uncertain, options.band.low, options.band.high) == ((0.2, 0.8), 0.2, 0.8)


@pytest.mark.parametrize("value", ["0.8:0.2", (0.2, 1.2), "0.2", (0.2,), 0.2])
def test_anything_else_is_no_pair_of_scores(value: Any) -> None:  # noqa: ANN401
    with pytest.raises(ConfigError, match=r"^uncertain: "):
        ScoreOptions.parse({"second": "open-nsfw", "uncertain": value})


def test_uncertain_alone_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"uncertain 0\.2:0\.8 and no second"):
        ScoreOptions.parse({"uncertain": (0.2, 0.8)})


@pytest.mark.parametrize("heads", ["nsfw,aesthetic", "nsfw, aesthetic", ["nsfw", "aesthetic"]])
def test_heads_are_names_or_text(heads: Any) -> None:  # noqa: ANN401
    assert ScoreOptions.parse({"heads": heads}).heads == ("nsfw", "aesthetic")


def test_an_unknown_keyword_gets_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="devixe: unknown key, did you mean device"):
        ScoreOptions.parse({"devixe": "cpu"})


@pytest.mark.parametrize("option", ["model_dir", "weights_lock"])
def test_a_tilde_is_the_home_directory_in_a_file_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    config = tmp_path / "job.yaml"
    config.write_text(f"output: out\n{option}: ~/weights\n", encoding="utf-8")
    assert getattr(job_options({}, config), option) == tmp_path / "home" / "weights"


def test_options_of_auto_loader_are_pairs_or_a_mapping(tmp_path: Path) -> None:
    given = {"output": "out", "format": "cloudfiles"}
    pairs = ["cloudFiles.useNotifications=true", "cloudFiles.queueUrl=https://queue/?a=b"]
    expected = {"cloudFiles.useNotifications": "true", "cloudFiles.queueUrl": "https://queue/?a=b"}
    assert job_options({**given, "source_option": pairs}).source_option == expected
    config = tmp_path / "job.yaml"
    config.write_text("source_option:\n  cloudFiles.useNotifications: true\n", encoding="utf-8")
    assert job_options(given, config).source_option == {"cloudFiles.useNotifications": "true"}


@pytest.mark.parametrize(
    ("value", "format_", "problem"),
    [
        (["a=b"], "files", r"source_option a and format files; expected format cloudfiles"),
        (["a=b"], "auto", r"source_option a and format auto; expected format cloudfiles"),
        (["cloudFiles.useNotifications"], "cloudfiles", r"--source-option: expected NAME=VALUE"),
        ("a", "cloudfiles", r"--source-option: "),
    ],
)
def test_other_options_of_a_source_are_refused(value: Any, format_: str, problem: str) -> None:  # noqa: ANN401
    with pytest.raises(ConfigError, match=problem):
        job_options({"output": "out", "format": format_, "source_option": value})
