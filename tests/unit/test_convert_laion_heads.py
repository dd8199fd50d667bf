"""The tool that converts LAION's archives writes exactly the files that the package ships."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.conftest import LAION_ARCHIVES, LAION_HEADS
from tools.convert_laion_heads import ARCHIVES, convert

TOOL = Path(__file__).parents[2] / "tools" / "convert_laion_heads.py"


@pytest.mark.parametrize("archive", LAION_ARCHIVES, ids=lambda path: path.stem)
def test_the_package_ships_what_the_tool_makes_of_laions_archives(archive: Path, tmp_path: Path) -> None:
    written = convert(archive, tmp_path)
    assert written.name == f"{archive.stem}.safetensors"
    assert written.read_bytes() == (LAION_HEADS / written.name).read_bytes()


def test_both_archives_are_compared() -> None:
    assert len(LAION_ARCHIVES) == len(ARCHIVES) == len(list(LAION_HEADS.glob("*.safetensors"))) == 2


def test_the_arrays_are_the_archives_and_not_empty() -> None:
    tensors = load_file(LAION_HEADS / "clip_autokeras_nsfw_b32.safetensors")
    assert sum(tensor.size for name, tensor in tensors.items() if name.startswith("layers")) == 17_505
    assert all(np.ptp(tensor) > 0 for tensor in tensors.values() if tensor.size > 1)


@pytest.mark.parametrize("change", ["one byte", "half", "text"])
def test_another_file_is_refused_by_its_sha256(tmp_path: Path, change: str) -> None:
    whole = LAION_ARCHIVES[0].read_bytes()
    content = {"one byte": whole[:-1] + b"\x01", "half": whole[: len(whole) // 2], "text": b"PK"}[change]
    (tmp_path / "head.zip").write_bytes(content)
    command = [sys.executable, TOOL, tmp_path / "head.zip"]
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert "head.zip has the sha256" in refused.stderr
    assert "expected one of LAION's archives" in refused.stderr
    assert not list(tmp_path.glob("*.safetensors"))


def test_the_command_writes_beside_the_archive(tmp_path: Path) -> None:
    archive = min(LAION_ARCHIVES, key=lambda path: path.stat().st_size)
    copy = tmp_path / "head.zip"
    copy.write_bytes(archive.read_bytes())
    command = [sys.executable, TOOL, copy]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert printed.strip() == str(tmp_path / "head.safetensors")
