"""How fast is the whole job, from the first listing to the last commit?

Measures three ways over the same files, interleaved, in several rounds:

- `job`: the whole of `nsfw-spark run`;
- `notebook`: the usual notebook: a scalar-iterator pandas UDF that calls open_clip's own transform for each
  image and returns the score, with Spark's defaults, into a Delta table;
- `limit`: decoding and resizing alone, on all cores, without Spark: the ceiling of every way that decodes.

All ways use the same encoder, every 14th pixel times a matrix, so that the pipeline takes all the time.
Spark's start and a first small run of each way are timed apart.

    python bench/job.py [--size 500x375] [--files 20000] [--distinct 2000] [--rounds 3]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from functools import lru_cache
from importlib import metadata
from pathlib import Path

import pandas as pd
from images import make_images
from pyspark.sql import SparkSession
from pyspark.sql.functions import pandas_udf

from nsfw_spark.cards import load_card
from nsfw_spark.decode import decode
from nsfw_spark.model_card import Preprocessing
from nsfw_spark.options import job_options
from nsfw_spark.spark.pipeline import run_job
from nsfw_spark.spark.session import get_session

_CARD = Path(__file__).parent / "free-encoder.yaml"
_SPARK_DEFAULTS = (
    "spark.sql.files.openCostInBytes",
    "spark.sql.files.minPartitionNum",
    "spark.sql.execution.arrow.maxRecordsPerBatch",
)


def main() -> None:
    """Run the benchmark and print its result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="500x375", help="width x height of the images")
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--distinct", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work-dir", type=Path, default=Path(tempfile.gettempdir()) / "nsfw-spark-bench")
    given = parser.parse_args()

    width, height = map(int, given.size.split("x"))
    images = given.work_dir / f"{given.size}-{given.files}-{given.distinct}"
    small = given.work_dir / f"{given.size}-200-200"
    make_images(images, (width, height), num_files=given.files, num_distinct=given.distinct)
    make_images(small, (width, height), num_files=200, num_distinct=200)

    ways: dict[str, Callable[[Path, Path], None]] = {"job": _job, "notebook": _notebook, "limit": _limit}
    started = time.perf_counter()
    get_session()
    start_up = {"spark": time.perf_counter() - started}
    for name, way in ways.items():
        start_up[f"{name}, first 200 images"] = _seconds(way, small, given.work_dir)
    rounds = []
    for _ in range(given.rounds):
        seconds = {name: _seconds(way, images, given.work_dir) for name, way in ways.items()}
        rounds.append({name: given.files / value for name, value in seconds.items()})
        sys.stderr.write(json.dumps(rounds[-1]) + "\n")
    print(json.dumps(_result(given, rounds, start_up), indent=2))


def _result(
    given: argparse.Namespace, rounds: list[dict[str, float]], start_up: dict[str, float]
) -> dict[str, object]:
    def ratio(one: str, other: str) -> dict[str, float]:
        ratios = [each[one] / each[other] for each in rounds]
        return {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}

    libraries = ("pyspark", "delta-spark", "pillow", "cykooz-resizer", "torch", "open-clip-torch")
    return {
        "benchmark": "job",
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "versions": {library: metadata.version(library) for library in libraries},
        "size": given.size,
        "files": given.files,
        "distinct": given.distinct,
        "images_per_second": rounds,
        "job_over_notebook": ratio("job", "notebook"),
        "job_over_limit": ratio("job", "limit"),
        "start_up_seconds": start_up,
    }


def _seconds(way: Callable[[Path, Path], None], images: Path, work_dir: Path) -> float:
    out = work_dir / "out"
    shutil.rmtree(out, ignore_errors=True)
    started = time.perf_counter()
    way(images, out)
    return time.perf_counter() - started


def _job(images: Path, out: Path) -> None:
    options = {"input": str(images), "output": str(out), "model": str(_CARD), "allow_random_weights": True}
    run_job(job_options(options))


def _notebook(images: Path, out: Path) -> None:
    spark = get_session()
    with _spark_defaults(spark):
        files = spark.read.format("binaryFile").load(str(images))
        scored = files.select("path", _notebook_udf(str(_CARD))("content").alias("nsfw_score"))
        scored.write.format("delta").save(str(out))


class _spark_defaults:  # noqa: N801 - a context, named like those of contextlib
    """A context without this project's settings in the session."""

    def __init__(self, spark: SparkSession) -> None:
        self._spark = spark
        self._ours = {key: spark.conf.get(key) for key in _SPARK_DEFAULTS}

    def __enter__(self) -> None:
        for key in _SPARK_DEFAULTS:
            self._spark.conf.unset(key)

    def __exit__(self, *_: object) -> None:
        for key, value in self._ours.items():
            self._spark.conf.set(key, value)


def _notebook_udf(card_path: str) -> Callable[..., object]:
    @pandas_udf("float")
    def score(batches: Iterator[pd.Series]) -> Iterator[pd.Series]:
        from io import BytesIO

        import torch
        from open_clip.transform import image_transform
        from PIL import Image

        from nsfw_spark.cards import load_card
        from nsfw_spark.encoders import Encoded, load_encoder, unit_length
        from nsfw_spark.heads import load_heads
        from nsfw_spark.weights import locate_weights

        card = load_card(card_path)
        weights = locate_weights(card)
        matrix = torch.from_numpy(load_encoder(card, weights["encoder"], "cpu")._matrix)  # noqa: SLF001
        head = load_heads(card, weights)
        preprocess = image_transform(224, is_train=False)
        for contents in batches:
            images = [preprocess(Image.open(BytesIO(content)).convert("RGB")) for content in contents]
            sample = torch.stack(images)[:, :, ::14, ::14].permute(0, 2, 3, 1).flatten(1)
            embeddings = unit_length((sample @ matrix).numpy())
            yield pd.Series(head.score(Encoded(embeddings)).nsfw_scores)

    return score


def _limit(images: Path, out: Path) -> None:  # noqa: ARG001 - all ways have one signature
    files = sorted(images.iterdir())
    with ProcessPoolExecutor() as pool:
        for _ in pool.map(_decode_file, files, chunksize=64):
            pass


def _decode_file(path: Path) -> int:
    return decode(path.read_bytes(), _preprocessing()).pixels.nbytes


@lru_cache
def _preprocessing() -> Preprocessing:
    return load_card(_CARD).preprocessing


if __name__ == "__main__":
    main()
