"""Makes PNG files dangerous that say so in their text chunk `poison`; see tests/poison.py.

Python imports this at the start of each process that has this folder on PYTHONPATH: so real crashes happen in
real decoders, and nothing in the package knows of it.
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

_PAGES = 1 << 28  # bytes at once, never touched: this limits address space and no memory is used
_ENDLESS = 1 << 42  # bytes: a limit that lets this pass is none


def _crash() -> None:
    ctypes.string_at(0)


def _hang() -> None:
    ctypes.PyDLL(None).sleep(3600)  # as native code does that keeps the interpreter's lock


def _hoard() -> None:
    """Allocate without end, as a decoder does that hands the failure on."""
    held = [np.empty(_PAGES, np.uint8) for _ in range(_ENDLESS // _PAGES)]
    os._exit(len(held) % 256 or 99)


def _exhaust() -> None:
    """Allocate without end, as native code does that does not survive the failure."""
    malloc = ctypes.CDLL(None).malloc
    malloc.restype, malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    for _ in range(_ENDLESS // _PAGES):
        if malloc(_PAGES) is None:
            os.abort()
    os._exit(99)


_EFFECTS: dict[str, Callable[[], object]] = {
    "abort": os.abort,
    "crash": _crash,
    "exit": lambda: os._exit(0),
    "be killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "hang": _hang,
    "hoard": _hoard,
    "exhaust": _exhaust,
}
_harmful: list[Image.Image] = []  # those whose damage shows at the next image


class _Poisonous(PngImagePlugin.PngImageFile):
    def load(self) -> Any:  # noqa: ANN401 - as Pillow has it
        if any(each is not self for each in _harmful):
            os.abort()
        poison = self.info.get("poison")
        if poison == "damage":
            _harmful.append(self)
        elif poison is not None:
            _EFFECTS[poison]()
        return super().load()


Image.register_open("PNG", _Poisonous, PngImagePlugin._accept)
