"""The Java that a local Spark would run: where it is, and whether its version suffices.

In: JAVA_HOME and PATH. Out: a program and a version, or a `ConfigError` that says what to install. Needs no
pyspark.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Final

from nsfw_spark.errors import ConfigError

_MIN_JAVA: Final = 17
INSTALL_JAVA: Final = (
    f"Spark needs Java {_MIN_JAVA} or newer: install it (Debian and Ubuntu: apt-get install "
    "openjdk-17-jre-headless; macOS: brew install openjdk@17) and set JAVA_HOME if it is not in PATH"
)


def check_java() -> tuple[str, str]:
    """Return the program and its version, such as `17.0.12`; fail before Spark does with a stack trace.

    Raises:
        ConfigError: There is no Java, or an old one.
    """
    home = os.environ.get("JAVA_HOME")
    java = str(Path(home) / "bin" / "java") if home else shutil.which("java")
    if java is None or not Path(java).exists():
        raise ConfigError(f"no Java found{f' at JAVA_HOME={home}' if home else ' in PATH'}. {INSTALL_JAVA}")
    version = _version(java)
    if version is None or version[1] < _MIN_JAVA:
        raise ConfigError(f"{java} is Java {version[1] if version else 'of unknown version'}. {INSTALL_JAVA}")
    return java, version[0]


def _version(java: str) -> tuple[str, int] | None:
    """Return the version of a Java program and its major part; None if it does not say."""
    text = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr  # noqa: S603
    found = re.search(r'version "((?:1\.)?(\d+)[^"]*)"', text)
    return None if found is None else (found[1], int(found[2]))
