"""Checks the cluster: `spark-submit --properties-file FILE jobs/doctor.py INPUT OUT --cluster`."""

from __future__ import annotations

import sys

from nsfw_spark.cli import main

if __name__ == "__main__":
    main(["doctor", *sys.argv[1:]])
