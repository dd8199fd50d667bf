"""A full disk and forbidden files: the command says what is wrong, and ends well once that is mended."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import pytest

from tests.cluster.commands import FILTERED, Step, rows, runs, steps
from tests.conftest import encoded, png

NUM_IMAGES: Final = 12
SIZES: Final = ("48k", "250k", "3m")
"""Of a disk that is full when the checkpoint is made, in the midst of scoring, and of filtering."""
ENOUGH: Final = "100m"


def noise(seed: int) -> bytes:
    """Return a PNG of about 120 kB, which nothing makes smaller."""
    return encoded(np.random.default_rng(seed).integers(0, 256, (200, 200, 3), dtype=np.uint8), "PNG")


def arguments(images: Path, output: Path, card: Path, *more: object) -> Sequence[object]:
    model = ("--model", card, "--allow-random-weights", "--device", "cpu")
    return ("run", images, "--output", output, *model, "--threshold", 0.002, "--max-error-rate", 1, *more)


def assert_complete(output: Path, ids: set[str]) -> None:
    assert set(rows(output / "image_scores")) == ids
    assert set().union(*(rows(output / table) for table in FILTERED)) == ids
    assert sum(len(rows(output / table)) for table in FILTERED) == len(ids)
    assert sum(row["images"] for row in runs(output)) == len(ids)


@pytest.fixture
def own_mounts() -> list[str]:
    """What starts a command that may mount file systems, which nobody else sees: no root is needed."""
    under = ["unshare", "--user", "--map-root-user", "--mount"]
    if shutil.which("unshare") is None or subprocess.run([*under, "true"], check=False).returncode:
        pytest.skip("needs Linux and user namespaces (sysctl kernel.apparmor_restrict_unprivileged_userns=0)")
    return under


def test_a_run_on_a_full_disk_says_so_wherever_that_happens_and_ends_well_when_there_is_room(
    card: Path, tmp_path: Path, own_mounts: list[str]
) -> None:
    images, disk, kept = tmp_path / "images", tmp_path / "disk", tmp_path / "kept"
    for folder in (images, disk):
        folder.mkdir()
    for i in range(NUM_IMAGES):
        (images / f"{i}.png").write_bytes(noise(i))
    command = arguments(images, disk / "out", card, "--keep-content", "--files-per-batch", NUM_IMAGES // 3)
    commands: list[Sequence[object]] = [("mount", "-t", "tmpfs", "-o", f"size={SIZES[0]}", "tmpfs", disk)]
    for size in (*SIZES, ENOUGH):
        commands += [("mount", "-o", f"remount,size={size}", disk), command]
    *full, last = steps(tmp_path / "cwd", *commands, ("cp", "-r", disk / "out", kept), under=own_mounts)
    for step in full:
        assert (step.status, "nsfw-spark: no space is left" in step.stderr) == (1, True), step.stderr[-3_000:]
        assert f"{disk}/out" in step.stderr
        assert "make room" in step.stderr
    assert last.status == 0, last.stderr
    assert_complete(kept, {f"file:{images}/{i}.png" for i in range(NUM_IMAGES)})


@pytest.fixture
def without_privileges() -> list[str]:
    """What starts a command whom a file's mode binds, as it binds all but root."""
    if os.geteuid() != 0:
        return []
    under = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    if shutil.which("setpriv") is None:
        pytest.skip("needs setpriv (util-linux), or another user than root")
    return under


def test_a_forbidden_directory_ends_the_run_and_a_forbidden_file_is_a_row(
    card: Path, tmp_path: Path, without_privileges: list[str]
) -> None:
    images, output, refused = tmp_path / "images", tmp_path / "out", tmp_path / "refused"
    names = ["a.png", "b.png", "closed/c.png"]
    for i, name in enumerate(names):
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        (images / name).write_bytes(png(seed=i))
    refused.mkdir()
    command = arguments(images, output, card)
    found: list[Step] = steps(
        tmp_path / "cwd",
        ("chmod", "0", images / "a.png", images / "closed"),
        ("chmod", "500", refused),
        command,
        ("chmod", "700", images / "closed"),
        arguments(images, refused / "out", card),
        command,
        ("cp", "-r", output, tmp_path / "before"),
        ("chmod", "600", images / "a.png"),
        (*command, "--rescore", "changed"),
        under=without_privileges,
    )
    closed, forbidden, without_a, with_a = found
    for step, path, status in ((closed, images / "closed", 1), (forbidden, refused / "out", 2)):
        assert step.status == status, step.stderr
        assert str(path) in step.stderr.strip().splitlines()[-1]
    assert (without_a.status, with_a.status) == (0, 0), without_a.stderr + with_a.stderr
    ids = {f"file:{images}/{name}" for name in names}
    assert_complete(tmp_path / "before", ids)
    unread = rows(tmp_path / "before" / "quarantined_images")
    assert {key: row["status"] for key, row in unread.items()} == {f"file:{images}/a.png": "missing"}
    assert "Permission denied" in unread[f"file:{images}/a.png"]["error"]
    assert {row["status"] for row in rows(output / "image_scores").values()} == {"ok"}
