"""Runs a model host: `python -m nsfw_spark.host HOME EXECUTOR_LOG`, the spec as JSON on standard input."""

from __future__ import annotations

import faulthandler
import json
import sys
from pathlib import Path

from nsfw_spark.host.home import Home
from nsfw_spark.host.process import HostProcess, log_to
from nsfw_spark.host.spec import HostSpec

if __name__ == "__main__":
    faulthandler.enable()  # where a library crashes, the log says in which call
    log_to(int(sys.argv[2]))
    HostProcess(Home(Path(sys.argv[1])), HostSpec.from_json(json.load(sys.stdin))).run()
