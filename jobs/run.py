"""Scores new images and filters the tables: `spark-submit jobs/run.py INPUT --output OUT …`."""

from __future__ import annotations

import sys

from nsfw_spark.cli import main

if __name__ == "__main__":
    main(["run", *sys.argv[1:]])
