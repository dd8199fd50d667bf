"""Jars: which ones a local Spark gets, and the error if it cannot get them; no Spark starts here."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

pyspark = pytest.importorskip("pyspark")

from nsfw_spark import cli  # noqa: E402
from nsfw_spark.errors import ConfigError  # noqa: E402 - after the check for pyspark
from nsfw_spark.spark import jars as jars_module  # noqa: E402
from nsfw_spark.spark import session  # noqa: E402

DELTA = "io.delta:delta-spark_4.2_2.13:4.4.0"
S3 = "s3a://bucket/photos"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home directory, a SPARK_HOME without jars, and its conf/; the Spark is 4.2."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SPARK_HOME", str(tmp_path / "spark"))
    monkeypatch.delenv("SPARK_CONF_DIR", raising=False)
    monkeypatch.setattr(jars_module, "_SPARK", "4.2")
    (tmp_path / "spark" / "conf").mkdir(parents=True)
    return tmp_path


def jars(*locations: str | None) -> dict[str, str]:
    found = jars_module.jar_settings(locations)
    assert "software.amazon.awssdk:bundle" in found.pop("spark.jars.excludes").split(",")
    return found


def write_defaults(home: Path, *lines: str) -> None:
    (home / "spark" / "conf" / "spark-defaults.conf").write_text("\n".join(lines), encoding="utf-8")


def write_ivy(home: Path) -> list[Path]:
    """Write the jars of Delta Lake as Spark's package manager stores them."""
    folder = home / ".ivy2.5.2" / "jars"
    folder.mkdir(parents=True, exist_ok=True)
    parts = ("spark_4.2_2.13", "storage", "kernel-api", "kernel-defaults", "kernel-unitycatalog")
    names = [f"io.delta_delta-{part}-4.4.0.jar" for part in parts]
    names += [f"io.unitycatalog_unitycatalog-{part}-0.6.0.jar" for part in ("client", "hadoop")]
    for name in names:
        with zipfile.ZipFile(folder / name, "w") as jar:
            jar.writestr("MANIFEST.MF", "")
    (folder / "org.slf4j_slf4j-api-2.0.jar").touch()
    return sorted(folder / name for name in names)


def test_delta_lake_has_the_version_that_was_tried_whatever_python_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("importlib_metadata.version", lambda _: "4.4.1")
    assert jars("/photos", None) == {"spark.jars.packages": DELTA}
    monkeypatch.setattr(jars_module, "_SPARK", "4.9")
    monkeypatch.setattr(pyspark, "__version__", "4.9.0")
    assert jars(S3) == {"spark.jars.packages": "io.delta:delta-spark_4.9_2.13:4.4.1"}


def test_for_s3_its_connector_comes_too() -> None:
    first, connector, *amazons = jars("/photos", S3)["spark.jars.packages"].split(",")
    assert (first, connector) == (DELTA, "org.apache.hadoop:hadoop-aws:3.5.0")
    assert "software.amazon.awssdk:s3:2.57.8" in amazons
    assert len(amazons) == 5


def test_jars_that_are_there_are_not_asked_for_again(home: Path) -> None:
    there = write_ivy(home)
    assert jars() == {"spark.jars": ",".join(map(str, there))}
    assert jars(S3)["spark.jars.packages"].startswith("org.apache.hadoop:hadoop-aws:")
    (home / "spark" / "jars").mkdir()
    (home / "spark" / "jars" / "hadoop-aws-3.5.0.jar").touch()
    assert "spark.jars.packages" not in jars(S3)


@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_jars_of_a_download_that_was_killed_are_asked_for_again(home: Path, damage: str) -> None:
    for jar in write_ivy(home):
        content = jar.read_bytes()
        jar.unlink() if damage == "gone" else jar.write_bytes(content[:30])
        assert jars() == {"spark.jars.packages": DELTA}
        jar.write_bytes(content)


def write_s3_jars(home: Path) -> list[Path]:
    """Note a start that asked for S3's connector; return the jars that it got."""
    folder = home / ".ivy2.5.2" / "jars"
    asked = jars_module.connector("s3a")
    names = ["{}_{}-{}.jar".format(*package.split(":")) for package in asked]
    jars_of_s3 = [folder / name for name in (*names, "other_a-1.jar")]
    for path in jars_of_s3:
        with zipfile.ZipFile(path, "w") as jar:
            jar.writestr("MANIFEST.MF", "")
    files = ["file:/mine/a.jar", *(f"file://{path}" for path in jars_of_s3)]
    jars_module.record_jars(",".join(asked), ",".join(files))
    return jars_of_s3


def test_jars_of_a_store_are_asked_for_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = write_ivy(home)
    assert "spark.jars.packages" in jars(S3)
    of_s3 = write_s3_jars(home)
    assert jars(S3) == {"spark.jars": ",".join(sorted(map(str, [*there, *of_s3])))}
    assert jars() == {"spark.jars": ",".join(map(str, there))}, "what S3 needs comes for S3 only"
    of_s3[-1].write_bytes(b"cut")
    assert "spark.jars.packages" in jars(S3)
    monkeypatch.setattr(jars_module, "_TRIED", {"4.2": ("4.4.0", "3.5.1", "2.57.8")})
    write_s3_jars(home)
    assert jars(S3)["spark.jars"].count("other_a-1.jar") == 1, "of the new version"


def test_a_start_without_the_jars_that_it_asked_for_is_not_noted(home: Path) -> None:
    write_ivy(home)
    jars_module.record_jars(",".join(jars_module.connector("s3a")), ",".join(map(str, write_ivy(home))))
    assert not list((home / ".ivy2.5.2").glob("nsfw-spark-*.json"))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"packages": 1, "jars": 2}'])
def test_a_damaged_note_is_as_none(home: Path, text: str) -> None:
    write_ivy(home)
    write_s3_jars(home)
    (note,) = (home / ".ivy2.5.2").glob("nsfw-spark-*.json")
    note.write_text(text)
    assert "spark.jars.packages" in jars(S3)


def test_packages_of_the_defaults_file_are_asked_for_at_each_start(home: Path) -> None:
    write_ivy(home)
    write_s3_jars(home)
    write_defaults(home, "spark.jars.packages org.my:b:1")
    assert jars(S3)["spark.jars.packages"].startswith("org.my:b:1,org.apache.hadoop:hadoop-aws:")


def test_jars_of_the_defaults_file_stay(home: Path) -> None:
    write_defaults(home, "# spark.jars no", "spark.jars=/my/a.jar", " spark.jars.packages  org.my:b:1", "")
    assert jars() == {"spark.jars.packages": f"org.my:b:1,{DELTA}"}
    there = ",".join(map(str, write_ivy(home)))
    assert jars() == {"spark.jars": f"/my/a.jar,{there}"}
    write_defaults(home, f"spark.jars.packages {DELTA},org.apache.hadoop:hadoop-aws:3.5.0")
    assert jars(S3) == {}


def test_a_directory_of_jars_needs_no_network(home: Path) -> None:
    (home / "mine").mkdir()
    for name in ("delta-spark_4.2_2.13-4.4.0.jar", "hadoop-aws-3.5.0.jar"):
        (home / "mine" / name).touch()
    write_defaults(home, f"spark.jars {home}/mine/*.jar")
    assert jars(S3) == {}


def test_without_its_jars_spark_says_which_and_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise pyspark.errors.PySparkRuntimeError(errorClass="JAVA_GATEWAY_EXITED", messageParameters={})

    monkeypatch.setattr(session.SparkSession.Builder, "getOrCreate", fail)
    monkeypatch.setattr(session, "check_java", lambda: None)
    monkeypatch.setenv("PYSPARK_PYTHON", "python3")
    with pytest.raises(ConfigError, match=rf"Maven for {DELTA}.*proxyHost.*jars DIR.*spark\.jars /DIR"):
        session._local_session([])


def test_jars_are_downloaded_only_into_a_new_directory(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "old.jar").touch()
    with pytest.raises(SystemExit) as ended:
        cli.main(["jars", str(home), "--s3"])
    assert ended.value.code == 2
    assert "is not empty; expected a new directory" in capsys.readouterr().err


def test_jars_of_a_store_are_those_that_have_run_with_this_spark(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jars_module, "_SPARK", "4.9")
    with pytest.raises(ConfigError, match=r"no versions of a connector for s3a:// are known.*Spark 4\.2"):
        jars_module.fetch_jars(home / "new", ["s3a"])


def test_a_store_without_a_connector_is_told_of_with_its_jars() -> None:
    said = str(jars_module.no_connector("s3a", S3))
    assert "--packages org.apache.hadoop:hadoop-aws:3.5.0,software.amazon.awssdk:s3:2.57.8" in said
    assert "nsfw-spark jars DIR --s3" in said
    assert "--packages" not in str(jars_module.no_connector("oss", "oss://bucket"))


def java_options() -> str:
    return session._local_settings().get("spark.driver.extraJavaOptions", "")


def test_the_log_is_quiet_beside_javas_other_options(home: Path) -> None:
    assert java_options().endswith("nsfw_spark/spark/log4j2.properties")
    (home / "spark" / "conf" / "log4j2.properties.template").touch()  # Spark comes with it
    write_defaults(home, "spark.driver.extraJavaOptions  -Xss4m -Dmine=1 ", "spark.ui.port 1")
    assert java_options().startswith("-Xss4m -Dmine=1 -Dlog4j2.configurationFile=file:/")


@pytest.mark.parametrize("place", ["defaults", "variable", "file"])
def test_a_log_that_the_user_has_configured_stays(
    home: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    option = "-Dlog4j2.configurationFile=file:/my/log.xml"
    if place == "defaults":
        write_defaults(home, f"spark.driver.extraJavaOptions {option}")
    elif place == "variable":
        monkeypatch.setenv("JAVA_TOOL_OPTIONS", option)
    else:
        (home / "spark" / "conf" / "log4j2.properties").touch()
    assert java_options() == (option if place == "defaults" else "")
