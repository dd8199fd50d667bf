"""Fuzzes one target with atheris, which searches for bytes that reach new lines of Python code.

    python -m tests.fuzz.with_atheris TARGET --seconds 60
    python -m tests.fuzz.with_atheris TARGET --file fuzz-findings/crash-…

What breaks a target is written to `fuzz-findings/`. Decoders in C are mutated, but not watched from inside.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["nsfw_spark", "tarfile", "zipfile", "yaml", "PIL"]):
    from tests.fuzz.targets import TARGETS

FINDINGS = Path("fuzz-findings")


def main() -> None:
    """Fuzz until the time is over or a target fails; exit with 0 or libFuzzer's status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target", choices=TARGETS, nargs="?")
    parser.add_argument("--list", action="store_true", help="print the targets, and no more")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--file", type=Path, help="only try this one, as found before")
    arguments = parser.parse_args()
    if arguments.list:
        return print("\n".join(TARGETS))  # noqa: T201 - what --list is for
    target = TARGETS[arguments.target or "image"]
    if arguments.file:
        return target.check(arguments.file.read_bytes())
    FINDINGS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as corpus:
        for number, content in enumerate(target.seeds().values()):
            Path(corpus, str(number)).write_bytes(content)
        limits = [f"-max_total_time={arguments.seconds}", "-timeout=60", "-rss_limit_mb=3072"]
        sizes = ["-max_len=200000", "-print_final_stats=1", f"-artifact_prefix={FINDINGS}/"]
        atheris.Setup([sys.argv[0], *limits, *sizes, corpus], target.check)
        atheris.Fuzz()  # ends the process
    return None


if __name__ == "__main__":
    main()
