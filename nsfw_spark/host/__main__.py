"""The start of the model host's process: `python -m nsfw_spark.host DIRECTORY LOCK EXECUTOR_LOG`.

A task starts it, in `start.py`. LOCK and EXECUTOR_LOG are numbers of open files, which the process inherits;
standard input is the spec as JSON.
"""

from __future__ import annotations

import faulthandler
import sys
from pathlib import Path

from nsfw_spark.host.directory import HostDirectory, HostSpec
from nsfw_spark.host.server import HostProcess, log_to

if __name__ == "__main__":
    faulthandler.enable()  # if a library crashes, the log shows in which call
    path, lock, executor_log = sys.argv[1:]
    log_to(int(executor_log))
    HostProcess(HostDirectory(Path(path)), HostSpec.from_json(sys.stdin.read())).run(int(lock))
