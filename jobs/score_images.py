"""Scores new images without filtering: `spark-submit jobs/score_images.py INPUT --output OUT …`."""

from __future__ import annotations

import sys

from nsfw_spark.cli import main

if __name__ == "__main__":
    main(["score", *sys.argv[1:]])
