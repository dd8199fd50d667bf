"""Applies a policy without scoring; needs no GPU: `spark-submit jobs/filter_images.py OUT --threshold T`."""

from __future__ import annotations

import sys

from nsfw_spark.cli import main

if __name__ == "__main__":
    main(["filter", *sys.argv[1:]])
