"""How fast is each source, from first listing to last commit, against plain Python over the same bytes?

Measures two ways over the same files, interleaved, in several rounds:

- `job`: the whole of `nsfw-spark run`, into new tables, in a warm session;
- `plain`: plain Python without Spark, which writes nothing. For images, a process on each core, started
  before the clock, reads the files with open, tarfile or pyarrow and passes the images to the same `Scorer`.
  For embeddings, one process passes the arrays of np.load or pyarrow to the same head, with numpy's threads.

The encoder is every 14th pixel times a matrix, so that the pipeline takes all the time. The head of ViT-L/14
scores embeddings. Spark's start and a first small run of each source are timed apart.

    python bench/sources.py [--source webdataset …] [--images 20000] [--vectors 1000000] [--rounds 3]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from importlib import metadata
from io import BytesIO
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from images import make_images

from nsfw_spark import Cascade, Scorer, load_scorer
from nsfw_spark.cards import load_card
from nsfw_spark.encoders import Encoded
from nsfw_spark.heads import Head, load_heads
from nsfw_spark.options import job_options
from nsfw_spark.spark.pipeline import run_job
from nsfw_spark.spark.session import get_session
from nsfw_spark.weights import locate_weights

_CARD: Final = str(Path(__file__).parent / "free-encoder.yaml")
_HEAD: Final = "laion-vit-l-14"
_DIM: Final = 768
_IMAGES_PER_FILE: Final = 1_000  # in a tar or Parquet file
_ROW_GROUP: Final = 100  # images in a row group, as Hugging Face's `datasets` writes them
_VECTORS_PER_FILE: Final = 50_000
_BLOCK: Final = 2_048  # vectors that plain Python scores at once: they fit into the processor's cache
_SMALL: Final = {"images": 200, "vectors": 10_000}


@dataclass(frozen=True)
class Input:
    """One source: how to make it, and how to score it in plain Python."""

    unit: str
    """`images` or `vectors`."""
    make: Callable[[Path, Path, int], None]
    """Fills a directory with a number of images or vectors; the images come from another directory."""
    plain: Callable[[Path], int]
    """Scores one file and returns the number of images or vectors in it."""
    files: str
    """Glob of the files."""
    options: dict[str, str] = field(default_factory=dict)
    """Further options of the job."""


def main() -> None:
    """Run the benchmark and print its result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", action="append", choices=INPUTS, help="default: all")
    parser.add_argument("--size", default="500x375", help="width x height of the images")
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--distinct", type=int, default=2_000)
    parser.add_argument("--vectors", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work-dir", type=Path, default=Path(tempfile.gettempdir()) / "nsfw-spark-bench")
    given = parser.parse_args()

    sources = {name: INPUTS[name] for name in given.source or INPUTS}
    with _pool() as pool:
        started = time.perf_counter()
        get_session()
        start_up = {"spark": time.perf_counter() - started}
        for name, source in sources.items():
            small = _made(given, name, source, _SMALL[source.unit])
            start_up[f"{name}, first {_SMALL[source.unit]}"] = _job(source, small, given.work_dir)["seconds"]
        rounds = {
            name: _rounds(given, source, _made(given, name, source, getattr(given, source.unit)), pool)
            for name, source in sources.items()
        }
    print(json.dumps(_result(given, sources, rounds, start_up), indent=2))


def _rounds(
    given: argparse.Namespace, source: Input, directory: Path, pool: ProcessPoolExecutor
) -> list[dict[str, Any]]:
    rounds = []
    for _ in range(given.rounds):
        load = os.getloadavg()[0]  # over the minute before: other work on the machine
        job = _measured(lambda: _job(source, directory, given.work_dir))
        plain = _measured(lambda: _plain(source, directory, pool))
        if job["images"] != plain["images"]:
            sys.exit(
                f"{directory}: the job scored {job['images']}, Python {plain['images']}; expected as many"
            )
        rounds.append({"job": job, "plain": plain, "load_before": load})
        sys.stderr.write(f"{directory.name}: {json.dumps(rounds[-1])}\n")
    return rounds


def _measured(way: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Run one way and add the CPU seconds of all cores, which other programs disturb less than the clock."""
    before = _cpu_seconds()
    result = way()
    # This leaves out processes that ended since, and the model host, which is no child of this process.
    used = sum(seconds - before.get(pid, 0.0) for pid, seconds in _cpu_seconds().items())
    return {**result, "cpu_seconds": round(used, 2)}


def _cpu_seconds() -> dict[int, float]:
    """Return CPU seconds by process number: this process, Java, Python workers and the pool."""
    seconds = {}
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        with suppress(psutil.Error):
            times = process.cpu_times()
            seconds[process.pid] = times.user + times.system
    return seconds


def _job(source: Input, directory: Path, work_dir: Path) -> dict[str, Any]:
    """Run the job; return figures of its row in `runs`, and its seconds by the clock."""
    out = work_dir / "out"
    shutil.rmtree(out, ignore_errors=True)
    images = {"model": _CARD, "allow_random_weights": True}
    given = images if source.unit == "images" else {"model": _HEAD, "format": "embeddings"}
    started = time.perf_counter()
    run_job(job_options({"input": str(directory), "output": str(out), **given, **source.options}))
    seconds = time.perf_counter() - started
    run = get_session().read.format("delta").load(str(out / "runs")).collect()[0]
    figures = (
        "images",
        "score_seconds",
        "filter_seconds",
        "decode_seconds",
        "wait_seconds",
        "encode_seconds",
    )
    return {"seconds": seconds, **{name: run[name] for name in figures}}


def _plain(source: Input, directory: Path, pool: ProcessPoolExecutor) -> dict[str, Any]:
    """Score all files of a source without Spark."""
    files = sorted(directory.rglob(source.files))
    started = time.perf_counter()
    if source.unit == "images":
        counts = pool.map(source.plain, files, chunksize=64 if len(files) > _IMAGES_PER_FILE else 1)
    else:
        counts = map(source.plain, files)
    return {"images": sum(counts), "seconds": time.perf_counter() - started}


@contextmanager
def _pool() -> Iterator[ProcessPoolExecutor]:
    """Yield a pool of processes, one on each core, that have loaded their scorers."""
    cores = os.cpu_count() or 1
    os.environ["OMP_NUM_THREADS"] = (
        "1"  # for each process; this one has loaded OpenMP already and keeps all threads
    )
    with ProcessPoolExecutor(cores, get_context("spawn")) as pool:
        list(pool.map(_warm_up, range(cores)))
        del os.environ["OMP_NUM_THREADS"]
        yield pool


def _warm_up(_: int) -> None:
    _scorer()
    time.sleep(1)  # so that each process gets one call


@lru_cache
def _scorer() -> Scorer | Cascade:
    return load_scorer(_CARD)


@lru_cache
def _head() -> Head:
    card = load_card(_HEAD)
    return load_heads(card, locate_weights(card, parts=["head"]))


def _score(contents: Iterator[bytes]) -> int:
    return sum(score.status == "ok" for score in _scorer().stream(contents))


def _score_file(path: Path) -> int:
    return _score(iter([path.read_bytes()]))


def _score_tar(path: Path) -> int:
    with tarfile.open(path) as tar:
        return _score(tar.extractfile(entry).read() for entry in tar if entry.name.endswith(".jpg"))  # type: ignore[union-attr]


def _score_table(path: Path) -> int:
    batches = pq.ParquetFile(path).iter_batches(_ROW_GROUP)
    images = (_bytes(batch).to_pylist() for batch in batches)
    return _score(content for some in images for content in some)


def _bytes(batch: pa.RecordBatch) -> pa.Array:
    return (
        batch.column("content") if "content" in batch.schema.names else batch.column("image").field("bytes")
    )


def _score_npy(path: Path) -> int:
    return _score_vectors(np.load(path))


def _score_lists(path: Path) -> int:
    column = pq.read_table(path, columns=["embedding"]).column(0).combine_chunks()
    return _score_vectors(column.flatten().to_numpy(zero_copy_only=False).reshape(-1, _DIM))


def _score_vectors(vectors: npt.NDArray[Any]) -> int:
    for start in range(0, len(vectors), _BLOCK):
        _head().score(Encoded(vectors[start : start + _BLOCK].astype(np.float32, copy=False)))
    return len(vectors)


def _made(given: argparse.Namespace, name: str, source: Input, number: int) -> Path:
    """Return the directory of a source; make it if needed."""
    width, height = map(int, given.size.split("x"))
    distinct = min(given.distinct, number)
    work_dir: Path = given.work_dir
    images = work_dir / f"{given.size}-{number}-{distinct}"
    if source.unit == "images":
        make_images(images, (width, height), num_files=number, num_distinct=distinct)
    if name == "files":
        return images
    directory = (
        work_dir / f"{name}-{images.name}" if source.unit == "images" else work_dir / f"{name}-{number}"
    )
    if not directory.exists():
        partial = directory.with_name(f"{directory.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        source.make(partial, images, number)
        partial.rename(directory)
    return directory


def _make_tars(directory: Path, images: Path, number: int) -> None:  # noqa: ARG001 - all have one signature
    for i, files in enumerate(_file_groups(sorted(images.iterdir()))):
        with tarfile.open(directory / f"{i:05}.tar", "w", dereference=True) as tar:  # the files are links
            for file in files:
                tar.add(file, file.name)
                caption = tarfile.TarInfo(f"{file.stem}.txt")
                caption.size = len(file.stem)
                tar.addfile(caption, BytesIO(file.stem.encode()))


def _make_parquet(directory: Path, images: Path, number: int) -> None:  # noqa: ARG001
    for i, files in enumerate(_file_groups(sorted(images.iterdir()))):
        column = [{"bytes": file.read_bytes(), "path": file.name} for file in files]
        table = pa.table({"image": column, "caption": [file.stem for file in files]})
        pq.write_table(table, directory / f"{i:05}.parquet", row_group_size=_ROW_GROUP)


def _make_delta(directory: Path, images: Path, number: int) -> None:
    spark = get_session()
    files = spark.read.format("binaryFile").load(str(images))
    rows = files.selectExpr("path AS image_id", "length AS size", "content")
    num_files = -(-number // _IMAGES_PER_FILE)
    rows.repartition(num_files).write.format("delta").mode("overwrite").save(str(directory))


def _file_groups(files: list[Path]) -> list[list[Path]]:
    return [files[i : i + _IMAGES_PER_FILE] for i in range(0, len(files), _IMAGES_PER_FILE)]


def _make_npy(dtype: type[np.floating[Any]]) -> Callable[[Path, Path, int], None]:
    def make(directory: Path, images: Path, number: int) -> None:  # noqa: ARG001
        for name in ("img_emb", "metadata"):
            (directory / name).mkdir()
        for i, vectors in enumerate(_vectors(number)):
            np.save(directory / "img_emb" / f"img_emb_{i}.npy", vectors.astype(dtype))
            paths = pa.table({"image_path": [f"{i:05}/{row:09}.jpg" for row in range(len(vectors))]})
            pq.write_table(paths, directory / "metadata" / f"metadata_{i}.parquet")

    return make


def _make_lists(directory: Path, images: Path, number: int) -> None:  # noqa: ARG001
    for i, vectors in enumerate(_vectors(number)):
        lists = pa.ListArray.from_arrays(
            np.arange(len(vectors) + 1, dtype=np.int32) * _DIM, vectors.reshape(-1)
        )
        paths = [f"{i:05}/{row:09}.jpg" for row in range(len(vectors))]
        table = pa.table({"image_path": paths, "embedding": lists})
        pq.write_table(table, directory / f"{i:05}.parquet", row_group_size=10_000, use_dictionary=False)


def _vectors(number: int) -> Iterator[npt.NDArray[np.float32]]:
    """Yield embeddings of unit length, those of one file at a time."""
    for i, start in enumerate(range(0, number, _VECTORS_PER_FILE)):
        shape = (min(_VECTORS_PER_FILE, number - start), _DIM)
        vectors = np.random.default_rng(i).standard_normal(shape, dtype=np.float32)
        yield vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


INPUTS: Final = {
    "files": Input("images", lambda *_: None, _score_file, "*.jpg"),
    "webdataset": Input("images", _make_tars, _score_tar, "*.tar"),
    "parquet": Input("images", _make_parquet, _score_table, "*.parquet"),
    "delta": Input("images", _make_delta, _score_table, "*.parquet", {"id_column": "image_id"}),
    "npy-float16": Input("vectors", _make_npy(np.float16), _score_npy, "*.npy"),
    "npy-float32": Input("vectors", _make_npy(np.float32), _score_npy, "*.npy"),
    "vectors-parquet": Input("vectors", _make_lists, _score_lists, "*.parquet"),
}


def _result(
    given: argparse.Namespace,
    sources: dict[str, Input],
    rounds: dict[str, list[dict[str, Any]]],
    start_up: dict[str, float],
) -> dict[str, Any]:
    libraries = ("pyspark", "delta-spark", "pyarrow", "numpy", "pillow", "cykooz-resizer")
    return {
        "benchmark": "sources",
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "versions": {library: metadata.version(library) for library in libraries},
        "size": given.size,
        "images": given.images,
        "distinct": given.distinct,
        "vectors": given.vectors,
        "sources": {name: _compared(source, rounds[name]) for name, source in sources.items()},
        "start_up_seconds": start_up,
    }


def _compared(source: Input, rounds: list[dict[str, Any]]) -> dict[str, Any]:
    ratios = [each["plain"]["seconds"] / each["job"]["seconds"] for each in rounds]
    rates = [
        {way: round(each[way]["images"] / each[way]["seconds"]) for way in ("job", "plain")}
        for each in rounds
    ]
    return {
        f"{source.unit}_per_second": rates,
        "job_over_plain": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)},
        "cpu_job_over_plain": statistics.median(
            each["job"]["cpu_seconds"] / each["plain"]["cpu_seconds"] for each in rounds
        ),
        "rounds": rounds,
    }


if __name__ == "__main__":
    main()
