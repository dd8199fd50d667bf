"""The environment of a fresh Python interpreter that finds the same packages as this one.

For child processes: a fork would inherit threads, CUDA and locks in whatever state they are.
"""

from __future__ import annotations

import os
import sys


def environment(**changes: str) -> dict[str, str]:
    """Return this process's environment, with `changes`, for a new interpreter."""
    packages = [os.path.abspath(entry) for entry in sys.path if entry]  # noqa: PTH100 - text to text
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(packages),  # with what Spark added for this job
        "PYTHONSAFEPATH": "1",  # and without the working directory
        **changes,
    }
