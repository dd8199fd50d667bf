"""Runs a model host: `python -m nsfw_spark.host HOME LOCK EXECUTOR_LOG`, the spec as JSON on standard input.

LOCK and EXECUTOR_LOG are open files, by number: see `lifecycle`.
"""

from __future__ import annotations

import faulthandler
import json
import sys
from pathlib import Path

from nsfw_spark.host.directory import Home, HostSpec
from nsfw_spark.host.server import HostProcess, log_to

if __name__ == "__main__":
    faulthandler.enable()  # where a library crashes, the log says in which call
    path, lock, executor_log = sys.argv[1:]
    log_to(int(executor_log))
    HostProcess(Home(Path(path)), HostSpec.from_json(json.load(sys.stdin))).run(int(lock))
