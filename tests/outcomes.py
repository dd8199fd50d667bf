"""Decodes images, each in a process of its own, and prints one line of JSON with the outcome of each.

`python -m tests.outcomes` decodes the corpus of hostile files, `python -m tests.outcomes DIR` the files of a
directory; `--strict` decodes all views. A process that dies, hangs or takes too much memory is an outcome,
too.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import psutil

from nsfw_spark.decode import decode
from nsfw_spark.errors import ImageError
from nsfw_spark.model_card import Preprocessing
from tests.corpus import hostile_images
from tests.hostile.made import SEEDS

HOW: Final = Preprocessing(size=224, mean=(0, 0, 0), std=(1, 1, 1))
_MAX_SECONDS: Final = 120
_MAX_ADDRESS_SPACE: Final = 8 << 30  # bytes: the machine survives, whatever an image asks for


@dataclass(frozen=True)
class Outcome:
    """How decoding an image ended."""

    name: str
    status: str
    """One of `errors.Status`; the name of an exception that is no ImageError; or `killed by signal N`."""
    message: str = ""
    format: str = ""
    size: tuple[int, int] = (0, 0)
    num_views: int = 0
    num_frames: int = 0
    seconds: float = 0.0
    peak_bytes: int = 0
    """Memory beyond the process's own, the encoded image included."""


def outcome(name: str, content: bytes, *, strict: bool = False) -> Outcome:
    """Decode an image in a forked process."""
    _give_back_memory()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        os.write(writing, json.dumps(_decoded(content, strict=strict)).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as answer:
        said = answer.read()
    _, how, usage = os.wait4(child, 0)
    if os.WIFSIGNALED(how):
        return Outcome(name, f"killed by signal {os.WTERMSIG(how)}")
    fields = json.loads(said)
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    peak = usage.ru_maxrss * unit - fields.pop("base") + len(content)
    return Outcome(name, peak_bytes=peak, **fields)


def _give_back_memory() -> None:
    """Make glibc return free memory: the child would use it again, and it would not be counted."""
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


def _decoded(content: bytes, *, strict: bool) -> dict[str, object]:
    base, started = psutil.Process().memory_info().rss, time.perf_counter()
    resource.setrlimit(resource.RLIMIT_AS, (_MAX_ADDRESS_SPACE, _MAX_ADDRESS_SPACE))
    signal.alarm(_MAX_SECONDS)
    decoded = None
    try:
        decoded = decode(content, HOW, strict=strict)
        header, status, message = decoded.header, "ok", ""
    except ImageError as error:
        header, status, message = error.header, error.status, str(error)
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is reported
        header, status, message = None, type(error).__name__, repr(error)[:300]
    fields = {"base": base, "status": status, "message": message, "seconds": time.perf_counter() - started}
    if decoded is not None:
        fields |= {"num_views": len(decoded.views), "num_frames": decoded.num_frames}
    return fields | ({"format": header.format, "size": (header.width, header.height)} if header else {})


def _main(images: Iterable[tuple[str, bytes]], *, strict: bool) -> None:
    decode(SEEDS["baseline.jpg"], HOW)  # what is loaded once is not counted for an image; and no threads yet
    for name, content in images:
        print(json.dumps(asdict(outcome(name, content, strict=strict))), flush=True)  # noqa: T201


if __name__ == "__main__":
    arguments = sys.argv[1:]
    if is_strict := "--strict" in arguments:
        arguments.remove("--strict")
    if arguments:
        files = (path for path in sorted(Path(arguments[0]).iterdir()) if path.is_file())
        _main(((path.name, path.read_bytes()) for path in files), strict=is_strict)
    else:
        _main(((name, content) for name, content, _ in hostile_images()), strict=is_strict)
