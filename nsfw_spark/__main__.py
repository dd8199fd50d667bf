"""`python -m nsfw_spark …` is `nsfw-spark …`."""

from __future__ import annotations

from nsfw_spark.cli import main

if __name__ == "__main__":
    main()
