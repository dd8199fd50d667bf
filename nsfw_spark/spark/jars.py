"""The jars of Delta Lake and of stores' connectors: which ones, and how a Spark gets them.

In: the locations that a job uses, and the jars that Spark's user names or has. Out: Maven coordinates,
settings for a session, and a directory of jars for machines without a network. Spark's own package manager
downloads them.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Collection, Sequence
from contextlib import suppress
from glob import glob
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final
from zipfile import is_zipfile

import pyspark
from pyspark.sql import SparkSession

from nsfw_spark.errors import ConfigError

PACKAGES: Final = "spark.jars.packages"

_SPARK: Final = ".".join(pyspark.__version__.split(".")[:2])
_TRIED: Final = {"4.2": ("4.4.0", "3.5.0", "2.57.8")}
"""Spark's version → versions of Delta Lake, Hadoop's connectors and Amazon's SDK that have run together."""

_RECORD: Final = "nsfw-spark-{}.json"  # beside the package manager's directory of jars
_CONNECTORS: Final = {"s3a": "hadoop-aws", "abfss": "hadoop-azure"}
_SDK: Final = ("s3", "s3-transfer-manager", "sts", "apache-client", "netty-nio-client")
# Delta and the connectors depend on these. Spark has them; the bundle is 600 MB, and _SDK is 16.
EXCLUDES: Final = (
    *("org.apache.hadoop:hadoop-client-api", "org.apache.hadoop:hadoop-client-runtime"),
    *("org.apache.logging.log4j:log4j-api", "org.apache.logging.log4j:log4j-core"),
    *("org.apache.logging.log4j:log4j-slf4j2-impl", "org.slf4j:slf4j-api"),
    *("org.apache.parquet:parquet-hadoop", "org.roaringbitmap:RoaringBitmap"),
    *("com.fasterxml.jackson.core:jackson-databind", "com.fasterxml.jackson.datatype:jackson-datatype-jdk8"),
    *("com.fasterxml.jackson.core:jackson-core", "com.fasterxml.jackson.core:jackson-annotations"),
    *("commons-codec:commons-codec", "commons-logging:commons-logging", "com.google.code.findbugs:jsr305"),
    *("org.apache.httpcomponents:httpclient", "org.apache.httpcomponents:httpcore"),
    *("org.wildfly.openssl:wildfly-openssl", "software.amazon.awssdk:bundle", "io.netty:*"),
)


def delta_package() -> str:
    """Return the Maven coordinate of Delta Lake for this Spark: a tried one, or that of delta-spark."""
    if _SPARK in _TRIED:
        return f"io.delta:delta-spark_{_SPARK}_2.13:{_TRIED[_SPARK][0]}"
    from delta import configure_spark_with_delta_pip

    return str(configure_spark_with_delta_pip(SparkSession.Builder())._options[PACKAGES])  # noqa: SLF001


def connector(scheme: str) -> list[str]:
    """Return the Maven coordinates of a scheme's connector; none if it is unknown, or this Spark untried."""
    if scheme not in _CONNECTORS or _SPARK not in _TRIED:
        return []
    _, hadoop, sdk = _TRIED[_SPARK]
    amazons = [f"software.amazon.awssdk:{module}:{sdk}" for module in _SDK] if scheme == "s3a" else []
    return [f"org.apache.hadoop:{_CONNECTORS[scheme]}:{hadoop}", *amazons]


def jar_settings(locations: Sequence[str | None]) -> dict[str, str]:
    """Return the settings that bring Delta Lake's jars and stores', beside those that Spark's user names."""
    named = defaults()
    patterns = [*named.get("spark.jars", "").split(","), f"{_spark_home()}/jars/*.jar"]
    files = [file for each in patterns for file in (each, *glob(each.removeprefix("file:")))]  # noqa: PTH207
    there = " ".join([named.get(PACKAGES, ""), *(Path(file).name for file in files)])
    jars: list[str] = [] if "delta-spark" in there else downloaded_jars()
    packages: list[str] = [] if jars or "delta-spark" in there else [delta_package()]
    schemes = {(each or "").partition(":")[0] for each in locations}
    for scheme, artefact in _CONNECTORS.items():
        if scheme in schemes and artefact not in there:
            packages += connector(scheme)
    if packages and PACKAGES not in named:  # else the package manager runs in any case
        recorded = _recorded_jars(packages)
        jars, packages = (sorted({*jars, *recorded}), []) if recorded else (jars, packages)
    added = {"spark.jars": jars, PACKAGES: packages, "spark.jars.excludes": EXCLUDES}
    return {key: ",".join([*filter(None, [named.get(key)]), *new]) for key, new in added.items() if new}


def defaults() -> dict[str, str]:
    """Return the settings in `spark-defaults.conf`."""
    file = conf_directory() / "spark-defaults.conf"
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    return dict(re.findall(r"^[ \t]*(spark\.[\w.]+)[ \t=:]+(\S.*?)[ \t]*$", text, re.MULTILINE))


def conf_directory() -> Path:
    """Return the directory of Spark's configuration; it may not exist."""
    return Path(os.environ.get("SPARK_CONF_DIR") or f"{_spark_home()}/conf")


def downloaded_jars() -> list[str]:
    """Return Delta's jars that Spark's package manager stored at an earlier start, if all are there.

    The package manager takes 3 s and prints 70 lines, even if it has the jars.
    """
    delta = _TRIED.get(_SPARK, ("none",))[0]
    parts = (f"spark_{_SPARK}_2.13", "storage", "kernel-api", "kernel-defaults", "kernel-unitycatalog")
    patterns = [f"io.delta_delta-{part}-{delta}.jar" for part in parts]
    patterns += [f"io.unitycatalog_unitycatalog-{part}-*.jar" for part in ("client", "hadoop")]
    for folder in _ivy_folders():
        found = [max(map(str, folder.glob(pattern)), default="") for pattern in patterns]
        if all(map(is_zipfile, found)):  # not of one that was killed
            return sorted(found)
    return []


def record_jars(packages: str, files: str) -> None:
    """Note the jars that Spark's package manager stored for some packages, so that no later start needs it.

    Args:
        packages: Maven coordinates that one start asked for, separated by commas.
        files: The jars of the session that started, as `spark.jars` has them.
    """
    jars = [Path("/" + file.removeprefix("file:").lstrip("/")) for file in files.split(",")]
    folders = {jar.parent for jar in jars} & set(_ivy_folders())
    if len(folders) != 1:
        return
    folder = folders.pop()
    names = [jar.name for jar in jars if jar.parent == folder]
    if not _has_all(packages.split(","), names):
        return
    text = json.dumps({"packages": packages.split(","), "excludes": EXCLUDES, "jars": names})
    file = folder.parent / _RECORD.format(hashlib.sha256(packages.encode()).hexdigest()[:12])
    with suppress(OSError):  # of another user, or on a full disk: the next start asks again
        temporary = file.with_suffix(f".{os.getpid()}")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(file)


def _recorded_jars(packages: Sequence[str]) -> list[str]:
    """Return the jars that an earlier start got for these packages, if all are there; else none."""
    for folder in _ivy_folders():
        for file in folder.parent.glob(_RECORD.format("*")):
            with suppress(OSError, ValueError, KeyError, TypeError):
                record = json.loads(file.read_text(encoding="utf-8"))
                jars = [folder / name for name in record["jars"]]
                is_ours = set(packages) <= set(record["packages"]) and record["excludes"] == list(EXCLUDES)
                if is_ours and _has_all(packages, record["jars"]) and all(map(is_zipfile, jars)):
                    return sorted(map(str, jars))
    return []


def _has_all(packages: Sequence[str], names: Collection[str]) -> bool:
    """Whether each package's own jar is among files that the package manager has named."""
    return {"{}_{}-{}.jar".format(*package.split(":")) for package in packages} <= set(names)


def _ivy_folders() -> list[Path]:
    """Return the directories in which Spark's package manager stores jars."""
    return list(Path.home().glob(".ivy2*[0-9]/jars"))


def fetch_jars(directory: Path, schemes: Collection[str]) -> list[Path]:
    """Download the jars of Delta Lake and of stores' connectors into a directory.

    Raises:
        ConfigError: The directory is not empty, or a connector is unknown, or the download failed.
    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ConfigError(f"{directory} is not empty; expected a new directory: jars of two versions clash")
    if unknown := [scheme for scheme in schemes if not connector(scheme)]:
        raise ConfigError(
            f"no versions of a connector for {unknown[0]}:// are known for Spark {_SPARK}; expected Spark "
            f"{' or '.join(_TRIED)}. Copy its jars into a directory yourself: docs/stores.md"
        )
    packages = ",".join([delta_package(), *(each for scheme in schemes for each in connector(scheme))])
    with TemporaryDirectory() as cache:
        program = Path(cache, "nothing.py")
        program.touch()
        options = {"--packages": packages, "--exclude-packages": ",".join(EXCLUDES)}
        options |= {"--master": "local", "--conf": f"spark.jars.ivy={cache}"}
        words = [word for option in options.items() for word in option]
        home = {"SPARK_HOME": _spark_home(), "PYSPARK_PYTHON": sys.executable}
        command = [f"{_spark_home()}/bin/spark-submit", *words, str(program)]
        status = subprocess.run(command, check=False, env=os.environ | home, stdout=sys.stderr).returncode  # noqa: S603
        jars = sorted(Path(cache, "jars").glob("*.jar"))
        if status or not jars:
            raise not_downloaded(packages)
        directory.mkdir(parents=True, exist_ok=True)
        return [Path(shutil.copy(jar, directory)) for jar in jars]


def not_downloaded(packages: str) -> ConfigError:
    """Return the error of a Spark that did not start, probably because it could not get some packages."""
    return ConfigError(
        f"Spark did not start; it asked Maven for {packages}, and its messages above say why it stopped. "
        "Behind a proxy, set JAVA_TOOL_OPTIONS='-Dhttps.proxyHost=HOST -Dhttps.proxyPort=PORT'. Without a "
        "network, fetch the jars elsewhere with `nsfw-spark jars DIR`, and write `spark.jars /DIR/*.jar` "
        "into $SPARK_CONF_DIR/spark-defaults.conf: docs/stores.md"
    )


def no_connector(scheme: str, location: str) -> ConfigError:
    """Return the error of a location for which Spark has no file system, with the jars that it needs."""
    packages, switch = connector(scheme), "--s3" if scheme == "s3a" else "--azure"
    advice = (
        f". Add them: spark-submit --packages {','.join(packages)} --exclude-packages {','.join(EXCLUDES)}; "
        f"without a network, --jars '/DIR/*.jar' with a directory from `nsfw-spark jars DIR {switch}`"
    )
    return ConfigError(
        f"Spark has no connector for {scheme}://, which {location} needs; expected its jars in "
        f"spark.jars.packages or spark.jars, or in Spark's directory jars/: docs/stores.md"
        + (advice if packages else "")
    )


def _spark_home() -> str:
    return os.environ.get("SPARK_HOME") or os.path.dirname(pyspark.__file__)  # noqa: PTH120
