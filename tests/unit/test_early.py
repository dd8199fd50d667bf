"""What is checked before Spark starts: no Spark is imported, and nothing that Spark accepts is refused."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nsfw_spark import early
from nsfw_spark.errors import ConfigError, InputError, TableError
from nsfw_spark.java import check_java
from nsfw_spark.options import job_options
from tests.unit.conftest import Command

ELSEWHERE = ("HADOOP_CONF_DIR", "PYSPARK_GATEWAY_PORT", "DATABRICKS_RUNTIME_VERSION", "SPARK_CONF_DIR")


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with Java and the extra, on which Spark would start."""
    for name in ELSEWHERE:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SPARK_HOME", "/nowhere")
    monkeypatch.setattr(early, "_check_start", lambda: None)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    (tmp_path / "images" / "deep" / "er").mkdir(parents=True)
    return tmp_path / "images"


def check(input_: Path | str, output: Path | str = "/tmp/none/out", **options: Any) -> None:  # noqa: S108, ANN401
    given = {"input": str(input_), "output": str(output), "model": "open-nsfw", **options}
    early.check_score(job_options(given))


@pytest.mark.parametrize("name", [None, ".hidden.jpg", "_temporary/a.jpg", "deep/_hidden"])
def test_an_empty_directory_is_refused(images: Path, name: str | None) -> None:
    if name is not None:
        (images / name).parent.mkdir(exist_ok=True)
        (images / name).touch()
    with pytest.raises(InputError, match=r"holds no file; expected a directory with images"):
        check(images)


@pytest.mark.parametrize(
    ("options", "name", "words"),
    [
        ({"glob": "*.jpg"}, "deep/a.png", "no file that matches"),
        ({"format": "webdataset"}, "a.jpg", r"no file that ends in \.tar, .*expected a directory with tars"),
        ({"format": "parquet"}, "a.tar", r"ends in \.parquet; expected a directory with Parquet files"),
    ],
)
def test_a_directory_without_files_of_the_kind_is_refused(
    images: Path, options: dict[str, str], name: str, words: str
) -> None:
    (images / name).touch()
    with pytest.raises(InputError, match=words):
        check(images, **options)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({}, "deep/er/without-an-extension"),
        ({"glob": "*.{jpg,png}"}, "deep/er/a.png"),
        ({"format": "webdataset"}, "deep/a.TAR.gz"),
        ({"format": "webdataset", "glob": "*.bin"}, "a.bin"),
        ({"format": "delta"}, "_delta_log/0.json"),
        ({}, "_delta_log/0.json"),
        ({"format": "cloudfiles"}, ".hidden"),
        ({"format": "embeddings", "model": "laion-vit-l-14"}, ".hidden"),
    ],
)
def test_what_spark_accepts_is_not_refused(images: Path, options: dict[str, str], name: str) -> None:
    (images / name).parent.mkdir(exist_ok=True)
    (images / name).touch()
    for spelling in (str(images), f"file:{images}", f"file://{images}/"):
        check(spelling, **options)


@pytest.mark.parametrize(
    "given", ["s3a://bucket/x", "hdfs:/x", "photos", "main.photos", "a.b-c.d", "dbfs:/x"]
)
def test_stores_and_names_of_tables_are_left_to_spark(given: str) -> None:
    check(given, "s3a://bucket/out")


def test_an_input_that_was_scored_before_may_have_become_empty(images: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / "_checkpoints").mkdir(parents=True)
    check(images, tmp_path / "out")
    check(images, tmp_path / "new", checkpoints="s3a://bucket/checkpoints")
    with pytest.raises(InputError, match="holds no file"):
        check(images, tmp_path / "out", rescore="all")


@pytest.mark.parametrize("name", ELSEWHERE)
def test_nothing_is_looked_at_if_spark_reads_other_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "core-site.xml").touch()
    monkeypatch.setenv(name, str(tmp_path))
    check("/no/such/folder")


def test_another_file_system_for_paths_is_found_in_the_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARK_CONF_DIR", str(tmp_path))
    defaults = tmp_path / "spark-defaults.conf"
    defaults.write_text("spark.ui.port 1\n")
    with pytest.raises(InputError, match="does not exist"):
        check("/no/such/folder")
    defaults.write_text("spark.hadoop.fs.defaultFS hdfs://name:9000\n")
    check("/no/such/folder")


def test_a_search_that_takes_long_is_left_to_spark(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (images / "a.png").touch()
    monkeypatch.setattr(early, "_MOST_SECONDS", -1.0)
    check(images, glob="*.jpg")


@pytest.mark.parametrize("option", ["output", "checkpoints"])
def test_an_output_that_is_a_file_or_below_one_is_refused(images: Path, tmp_path: Path, option: str) -> None:
    (images / "a.png").touch()
    (tmp_path / "file").touch()
    for place, why in (
        (tmp_path / "file", "it is no directory"),
        (tmp_path / "file" / "out", "file is no directory"),
    ):
        with pytest.raises(TableError, match=rf"cannot write {place} \(.*{why}\); expected.*--{option}"):
            check(images, **{"output": tmp_path / "out", option: str(place)})


@pytest.fixture
def forbidden() -> Iterator[Path]:
    """A directory in which this test may not write, even if the user is root."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o555)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        try:
            yield Path(folder)
        finally:
            os.seteuid(user)


def test_an_output_without_the_right_to_write_is_refused(forbidden: Path) -> None:
    with pytest.raises(TableError, match=rf"no right to write in {forbidden}\); .*give the right"):
        check("s3a://bucket/x", forbidden / "deep" / "out")


def test_filter_needs_a_table_of_scores(tmp_path: Path) -> None:
    options = job_options({"output": str(tmp_path)})
    with pytest.raises(
        TableError, match=r"there is no table delta\.`/.*image_scores` to filter. First: nsfw"
    ):
        early.check_filter(options)
    (tmp_path / "image_scores" / "_delta_log").mkdir(parents=True)
    early.check_filter(options)
    for other in ("main.safety", "s3a://bucket/out"):
        early.check_filter(job_options({"output": other}))


def test_export_needs_its_table_and_a_place_to_write(tmp_path: Path) -> None:
    options = job_options({"output": str(tmp_path)})
    with pytest.raises(
        TableError, match=r"there is no table delta\.`/.*safe_images`; expected one that shows"
    ):
        early.check_export(options, "safe_images", str(tmp_path / "shards"))
    (tmp_path / "safe_images" / "_delta_log").mkdir(parents=True)
    early.check_export(options, "safe_images", str(tmp_path / "shards"))
    (tmp_path / "shards").touch()
    with pytest.raises(TableError, match=r"shards .it is no directory.*another directory"):
        early.check_export(options, "safe_images", str(tmp_path / "shards"))


def test_an_old_java_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    java = tmp_path / "bin" / "java"
    java.parent.mkdir()
    java.write_text("#!/bin/sh\necho 'openjdk version \"1.8.0_402\"' >&2\n")
    java.chmod(0o755)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(ConfigError, match=r"bin/java is Java 8\. Spark needs Java 17"):
        check_java()


def test_a_missing_package_of_the_extra_is_named(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(early, "find_spec", lambda name: None if name == "delta" else object())
    said = command("run", tmp_path, "--output", "out")
    assert said.status == 2
    assert "Python package delta is not installed" in said.err
    assert "starting Spark" not in said.err


def test_the_error_comes_before_pyspark_is_imported(tmp_path: Path) -> None:
    code = (
        "import sys; from nsfw_spark import cli\n"
        "try: cli.main(['run', './no/such', '--output', 'out', '--model', 'open-nsfw'])\n"
        "finally: sys.stderr.write(str(sorted({'pyspark', 'pandas', 'pyarrow', 'torch'} & set(sys.modules))))"
    )
    environment = {key: value for key, value in os.environ.items() if key not in ELSEWHERE}
    environment |= {"PYTHONPATH": os.pathsep.join(sys.path), "JAVA_HOME": fake_java(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
    )
    assert "input ./no/such does not exist" in done.stderr, done.stderr
    assert done.stderr.endswith("[]")


def fake_java(folder: Path) -> str:
    """Write a program that claims to be Java 17; return its JAVA_HOME."""
    java = folder / "jdk" / "bin" / "java"
    java.parent.mkdir(parents=True)
    java.write_text("#!/bin/sh\necho 'openjdk version \"17.0.1\"' >&2\n")
    java.chmod(0o755)
    return str(folder / "jdk")


def test_the_first_sign_of_life_is_given_once(capsys: pytest.CaptureFixture[str]) -> None:
    early.announce()
    early.announce_once()
    assert capsys.readouterr().err == "nsfw-spark: starting Spark…\n"
    early.announce_once()  # the next start, in the same process
    assert capsys.readouterr().err == "nsfw-spark: starting Spark…\n"


def test_verbose_is_an_option_of_the_commands_that_start_spark(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(early.VERBOSE, "")
    for name in ("run", "score"):
        command(name, tmp_path / "no", "--output", tmp_path / "out", "--model", "open-nsfw", "--verbose")
        assert os.environ[early.VERBOSE] == "1"
        os.environ[early.VERBOSE] = ""
