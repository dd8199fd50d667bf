"""Facts about a computer and the Python process that runs there, measured in that process.

Out: `Facts`, which travels from executors to the driver as JSON. The driver measures itself by the same
function. Nothing is imported that a run would not import, and torch is not loaded: that takes seconds.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from importlib import metadata, util
from io import BytesIO
from pathlib import Path
from typing import Final, Self

import numpy as np
import psutil
from PIL import Image

from nsfw_spark import __version__
from nsfw_spark.decode import decode
from nsfw_spark.model_card import Preprocessing

PACKAGES: Final = (
    *("pillow", "numpy", "cykooz-resizer", "pyarrow", "pandas", "pyspark", "delta-spark"),
    *("torch", "open-clip-torch", "timm", "onnxruntime"),
)
"""Packages whose versions matter."""

WIDTH, HEIGHT = 832, 624  # about half a megapixel, as pipeline.py assumes for its 500 decodes a second
_NVIDIA: Final = ("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")


@dataclass(frozen=True)
class Facts:
    """What one process found where it runs."""

    host: str
    executor: str = ""
    """Tells two executors of one host apart; empty for the driver."""
    python: str = ""
    """Version of Python."""
    executable: str = ""
    """Path of Python."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Versions of `nsfw-spark` and of the installed packages of `PACKAGES`."""
    cpus: int = 1
    """Cores that this process may use: the limits of its container count."""
    memory_bytes: int = 0
    """Memory of the machine, or the limit of the container."""
    shm_bytes: int | None = None
    """Free bytes of /dev/shm; None if there is none."""
    scratch: str = ""
    """Directory for temporary files: Spark's, or Python's."""
    scratch_bytes: int = 0
    """Free bytes there."""
    gpus: tuple[str, ...] = ()
    """Name, driver and memory of each GPU that nvidia-smi lists."""
    visible: str | None = None
    """CUDA_VISIBLE_DEVICES; None if it is not set."""
    torch_cuda: str | None = None
    """CUDA version of the installed torch; None for a CPU build, and without torch."""
    assigned: tuple[str, ...] = ()
    """Addresses of the GPUs that Spark gave to the task."""
    decodes_per_second: float = 0.0
    """Images of half a megapixel that one process decodes in a second."""
    weights: str = ""
    """Fingerprint of the model's weights, or why there are none; empty if it was not asked."""

    @property
    def num_visible_gpus(self) -> int:
        """GPUs that CUDA shows to this process."""
        if self.visible is None:
            return len(self.gpus)
        named = [each for each in self.visible.split(",") if each.strip() not in {"", "-1"}]
        return min(len(named), len(self.gpus))

    def as_json(self) -> str:
        """Return the text that `from_json` reads."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the facts in a text of `as_json`."""
        given = json.loads(text)
        return cls(**{**given, "gpus": tuple(given["gpus"]), "assigned": tuple(given["assigned"])})


def measure(preprocessing: Preprocessing, seconds: float = 0.3) -> Facts:
    """Return the facts of this process.

    Args:
        preprocessing: Of the model; images are decoded with it.
        seconds: How long to decode.
    """
    directories = os.environ.get("SPARK_LOCAL_DIRS", "").split(",")  # Spark sets it in Python workers
    scratch = next((each for each in directories if each and Path(each).is_dir()), tempfile.gettempdir())
    shm = Path("/dev/shm")  # noqa: S108 - only looked at
    return Facts(
        host=socket.gethostname(),
        executor=os.environ.get("SPARK_LOCAL_DIRS", ""),
        python=".".join(map(str, sys.version_info[:3])),
        executable=sys.executable,
        versions=versions(),
        cpus=num_cpus(),
        memory_bytes=memory_limit(),
        shm_bytes=shutil.disk_usage(shm).free if shm.is_dir() else None,
        scratch=scratch,
        scratch_bytes=shutil.disk_usage(scratch).free,
        gpus=gpus(),
        visible=os.environ.get("CUDA_VISIBLE_DEVICES"),
        torch_cuda=torch_cuda(),
        decodes_per_second=decode_speed(preprocessing, seconds),
    )


def versions() -> dict[str, str]:
    """Return the versions of nsfw-spark and of installed packages."""
    found = {"nsfw-spark": __version__}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def num_cpus(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the cores that this process may use: by its affinity, and by its container's quota."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _first_line(cgroup / "cpu.max").partition(" ")
    if quota.isdecimal() and period.isdecimal():
        return max(1, min(allowed, round(int(quota) / int(period))))
    return allowed


def memory_limit(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the bytes of memory of this machine, or of its container if that has less."""
    limit = _first_line(cgroup / "memory.max")
    total = int(psutil.virtual_memory().total)
    return min(total, int(limit)) if limit.isdecimal() else total


def _first_line(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def gpus() -> tuple[str, ...]:
    """Return the GPUs that nvidia-smi lists; none without it."""
    try:
        done = subprocess.run(_NVIDIA, capture_output=True, text=True, check=False, timeout=20)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return ()
    lines = [line.strip() for line in done.stdout.splitlines()] if done.returncode == 0 else []
    return tuple(line for line in lines if line.count(",") >= 2)  # noqa: PLR2004 - else it is a message


def torch_cuda() -> str | None:
    """Return the CUDA version of the installed torch, from its version file; None for a CPU build."""
    spec = util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    try:
        text = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
    except OSError:
        return None
    match = re.search(r"^cuda(?::[^=]*)? = '([^']+)'", text, re.MULTILINE)
    return match[1] if match else None


def decode_speed(preprocessing: Preprocessing, seconds: float) -> float:
    """Return how many JPEGs of half a megapixel this process decodes in a second."""
    content = _photograph()
    decode(content, preprocessing)  # the first one loads libraries
    started, images = time.perf_counter(), 0
    while (passed := time.perf_counter() - started) < seconds or not images:
        decode(content, preprocessing)
        images += 1
    return images / max(passed, 1e-9)


@lru_cache(maxsize=1)
def _photograph() -> bytes:
    """Return a JPEG with as much detail as a photograph: smooth waves under noise, about 150 KB."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    waves = np.stack([np.sin(x / 37 + i) + np.cos(y / (23 + 9 * i)) for i in range(3)], axis=-1)
    noise = np.random.default_rng(0).normal(0, 12, waves.shape)
    buffer = BytesIO()
    pixels = np.clip(128 + 50 * waves + noise, 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()
