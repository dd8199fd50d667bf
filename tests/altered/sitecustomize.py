"""Makes Pillow resize with another filter than it is asked for, as another version of a library might.

Python imports this at the start of each process that has this folder on PYTHONPATH: so that executors differ
as real ones do, and nothing in the package knows of it. Where ALTERED_EXECUTOR is the id of one of Spark's
executors, it is that one alone: its Python workers begin in a folder of that name, and their children know.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from PIL import Image

_as_asked = Image.Image.resize


def _resize(
    self: Image.Image,
    size: Any,  # noqa: ANN401 - as Pillow has it
    resample: Any = None,  # noqa: ANN401
    *args: Any,  # noqa: ANN401
    **options: Any,  # noqa: ANN401
) -> Image.Image:
    other = Image.Resampling.BOX if resample == Image.Resampling.BICUBIC else resample
    return _as_asked(self, size, other, *args, **options)


_only = os.environ.get("ALTERED_EXECUTOR", "here")
if _only in {"here", Path.cwd().name}:
    os.environ["ALTERED_EXECUTOR"] = "here"
    Image.Image.resize = _resize  # type: ignore[method-assign, assignment]
