"""Runs the child of an `IsolatedDecoder`: `python -m nsfw_spark.isolation SOCKET SECONDS`.

SOCKET is an open file, by number; SECONDS is what an image may take.
"""

from __future__ import annotations

import socket
import sys

from nsfw_spark.isolation.child import run

if __name__ == "__main__":
    run(socket.socket(fileno=int(sys.argv[1])), float(sys.argv[2]))
