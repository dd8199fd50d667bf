"""Measure the throughput and the memory of the model host.

K processes do the work of K tasks without Spark: they read files, decode, send pixels to one host, and make
rows of its answers. All start at the same moment, each with its own share of the files; the clock runs from
there to the last row. The same run measures two ceilings, in turns, over several rounds:

- `encoder`: the same model in one process, in a loop over pixels in memory;
- `decoding`: reading, decoding and resizing on all cores, without a model.

On one machine, the host cannot be faster than the lower ceiling.

    python bench/host.py [--processes 1,2,4,8,16] [--size 500x375] [--files 4000] [--rounds 3]
    python bench/host.py --model laion-vit-l-14 --random-weights 0 --files 32 --processes 1,2

On a GPU, --flops-per-image and --peak-tflops add the used share of its peak. The image tower of
ViT-L-14 at 224 x 224 takes about 162e9 floating-point operations: 81e9 multiply-adds, each counted as two.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil
from images import make_images
from processes import Run, Usage, run

from nsfw_spark.cards import load_card
from nsfw_spark.decode import decode
from nsfw_spark.host import HostedModel, HostSpec, Owner
from nsfw_spark.host.directory import HostDirectory
from nsfw_spark.model import ModelSpec, load_model
from nsfw_spark.model_card import ModelCard
from nsfw_spark.scorer import Scorer

_FREE_ENCODER: Final = Path(__file__).parent / "free-encoder.yaml"
_PHOTO: Final = min((Path(__file__).parent.parent / "examples/images/photos").glob("*.jpg"))
_BARE_LOOP_SECONDS: Final = 3.0  # and at least two batches, however long they take
_IDLE_SECONDS: Final = 86_400.0  # the host must not end while this process measures
_LIBRARIES: Final = ("pillow", "cykooz-resizer", "numpy", "torch", "open-clip-torch", "onnxruntime")
Runs = dict[str, Run]
"""The runs of one round, by name: a number of processes, `encoder` or `decoding`."""


def main() -> None:
    """Run the benchmark and print its result."""
    given = _options()
    width, height = map(int, given.size.split("x"))
    images = given.work_dir / f"{given.size}-{given.files}-{given.distinct}"
    make_images(images, (width, height), num_files=given.files, num_distinct=given.distinct)
    files = sorted(images.iterdir())

    spec = _spec(given)
    host = _Host.start(spec)
    _say(f"the host was ready after {host.seconds_until_ready:.1f} s")
    rounds = [_round(number, spec, host, files, given) for number in range(1, given.rounds + 1)]
    print(json.dumps(_result(given, spec, host, rounds), indent=2))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    option = parser.add_argument
    option("--model", default=str(_FREE_ENCODER), help="name or file of a model card")
    option("--model-dir", type=lambda path: Path(path).absolute(), help="directory with weights")
    option(
        "--random-weights",
        type=int,
        metavar="SEED",
        help="random weights cost the same",
    )
    option("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    option("--batch-size", type=lambda n: n if n == "auto" else int(n), default="auto")
    option("--processes", type=lambda ks: [int(k) for k in ks.split(",")], default="1,2,4,8,16")
    option(
        "--cores",
        type=int,
        default=_num_cores(),
        help="for `decoding`, and threads of a model on the CPU",
    )
    option("--size", default="500x375", help="width x height of the images")
    option("--files", type=int, default=4_000, help="a few batches are enough for a slow model")
    option("--distinct", type=int, default=1_000)
    option("--rounds", type=int, default=3)
    option("--flops-per-image", type=float, help="operations of the encoder; ViT-L-14 at 224: 162e9")
    option("--peak-tflops", type=float, help="peak of the GPU, dense, in the card's precision")
    option("--work-dir", type=Path, default=Path(tempfile.gettempdir()) / "nsfw-spark-bench")
    given = parser.parse_args()
    given.distinct = min(given.distinct, given.files)
    return given


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _spec(given: argparse.Namespace) -> HostSpec:
    card = load_card(given.model)
    if given.random_weights is not None:
        content = card.model_dump()
        content["encoder"]["weights"] = {"random": given.random_weights}
        card = ModelCard.model_validate(content)
    model = ModelSpec(card, given.model_dir, given.device, given.batch_size)
    return HostSpec((model,), Owner.process(os.getpid()), given.cores, idle_seconds=_IDLE_SECONDS)


@dataclass(frozen=True)
class _Host:
    """The host of this run, as another process sees it."""

    directory: HostDirectory
    process: psutil.Process
    device: str
    images_per_request: int
    seconds_until_ready: float

    @classmethod
    def start(cls, spec: HostSpec) -> _Host:
        """Start the host, wait until its model is loaded, and let it score one image."""
        started = time.perf_counter()
        with HostedModel(spec, "benchmark") as model:
            seconds = time.perf_counter() - started
            Scorer(spec.models[0].card, model).score([_PHOTO.read_bytes()])
            directory = HostDirectory.of(spec.identity)
            host = directory.read_host()
            assert host is not None  # noqa: S101 - it has just answered
            return cls(directory, psutil.Process(host["pid"]), model.device, model.batch_size, seconds)

    @property
    def batch_size(self) -> int:
        """Images in one forward pass."""
        return int(re.findall(r"batches of (\d+) images", self.directory.log.read_text())[-1])

    @property
    def times_loaded(self) -> int:
        """How often a model was loaded, by this host or by its successors."""
        return len(re.findall(r"^model host \d+: loaded ", self.directory.log.read_text(), re.MULTILINE))

    @property
    def gpu(self) -> int | None:
        """Index of its GPU; None on a CPU."""
        return int(self.device.partition(":")[2]) if self.device.startswith("cuda") else None


def _round(
    number: int, spec: HostSpec, host: _Host, files: Sequence[Path], given: argparse.Namespace
) -> Runs:
    runs: Runs = {}

    def finish(name: str, one: Run) -> None:
        runs[name] = one
        _say(f"round {number}, {name}: {one.images_per_second:.1f} images/s")

    for k in given.processes:
        tasks = [(spec, files[i::k]) for i in range(k)]
        finish(str(k), run(_task, tasks, other=host.process, gpu=host.gpu))
    # The host may have measured its batch size: the bare loop takes the same.
    model = replace(spec.models[0], batch_size=host.batch_size)
    finish("encoder", run(_bare_loop, [(model,)], num_threads=given.cores, gpu=host.gpu))
    shares = [(spec.models[0].card, files[i :: given.cores]) for i in range(given.cores)]
    finish("decoding", run(_decoding, shares))
    return runs


def _say(progress: str) -> None:
    sys.stderr.write(progress + "\n")


def _task(spec: HostSpec, files: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """Score files with the host, as a task does."""
    with HostedModel(spec, f"task {os.getpid()}") as model:
        scorer = Scorer(spec.models[0].card, model)
        _load_plugins(spec.models[0].card)
        yield {}
        num_ok = sum(row.status == "ok" for row in scorer.stream(path.read_bytes() for path in files))
        if num_ok < len(files):
            raise RuntimeError(f"{len(files) - num_ok} of {len(files)} images got no score")
        yield {"images": num_ok, **asdict(scorer.timings)}


def _bare_loop(spec: ModelSpec) -> Iterator[dict[str, Any]]:
    """Run the model on pixels in memory; on a GPU one batch ahead, as the host does."""
    model, size = load_model(spec), spec.card.preprocessing.size
    pixels = model.buffer((model.batch_size, size, size, 3))
    pixels[:] = np.random.default_rng(0).integers(0, 256, pixels.shape, np.uint8)
    model.predict(pixels)  # the first batch also chooses kernels
    yield {}
    num_images, deadline = 0, time.perf_counter() + _BARE_LOOP_SECONDS
    running = model.start([pixels])
    while num_images == 0 or time.perf_counter() < deadline:
        begun = model.start([pixels])
        num_images += len(running())
        running = begun
    num_images += len(running())
    yield {"images": num_images, "gpu": _gpu_name(model.device)}


def _decoding(card: ModelCard, files: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """Read and decode files."""
    _load_plugins(card)
    yield {}
    for path in files:
        decode(path.read_bytes(), card.preprocessing)
    yield {"images": len(files)}


def _load_plugins(card: ModelCard) -> None:
    """Decode an image, so that Pillow imports its plugins before the clock runs."""
    decode(_PHOTO.read_bytes(), card.preprocessing)


def _gpu_name(device: str) -> str | None:
    if not device.startswith("cuda"):
        return None
    import torch

    return torch.cuda.get_device_name(device)


def _result(
    given: argparse.Namespace, spec: HostSpec, host: _Host, rounds: Sequence[Runs]
) -> dict[str, object]:
    def by_k(describe: Callable[[str, Sequence[Runs]], object]) -> dict[str, object]:
        return {str(k): describe(str(k), rounds) for k in given.processes}

    card = spec.models[0].card
    return {
        "benchmark": "host",
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "cores": given.cores,
        "machine": platform.machine(),
        "python": platform.python_version(),
        "versions": {library: _version(library) for library in _LIBRARIES},
        "model": card.name,
        "random_weights": card.encoder.weights.random,
        "device": host.device,
        "gpu": rounds[0]["encoder"].results[0]["gpu"],
        "batch_size": host.batch_size,
        "images_per_request": host.images_per_request,
        "size": given.size,
        "files": given.files,
        "distinct": given.distinct,
        "seconds_until_ready": host.seconds_until_ready,
        "times_loaded": host.times_loaded,
        "images_per_second": [{name: one.images_per_second for name, one in runs.items()} for runs in rounds],
        "over_lower_ceiling": by_k(_over_lower_ceiling),
        "stages": by_k(_stages),
        "cpu_ms_per_image": {**by_k(_cpu_of_host_and_tasks), **_cpu_of_ceilings(rounds)},
        "memory_mib": {"one_model": _memory(rounds[-1]["encoder"].usage), **by_k(_memory_of_host_and_tasks)},
        "gpu_use": {name: _gpu_use(name, rounds, given) for name in rounds[0]}
        if host.gpu is not None
        else None,
    }


def _version(library: str) -> str | None:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None


def _over_lower_ceiling(k: str, rounds: Sequence[Runs]) -> dict[str, float]:
    ratios = [
        runs[k].images_per_second / min(runs["encoder"].images_per_second, runs["decoding"].images_per_second)
        for runs in rounds
    ]
    return {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}


def _stages(k: str, rounds: Sequence[Runs]) -> dict[str, float]:
    """Return seconds, summed over processes, as the mean of all rounds, and the fill of the batches."""
    names = ("decode_seconds", "wait_seconds", "encode_seconds")
    means = {name: statistics.mean(runs[k].total(name) for runs in rounds) for name in names}
    encoded, slots = (sum(runs[k].total(name) for runs in rounds) for name in ("encoded", "batch_slots"))
    return {**means, "batch_fill": encoded / slots}


def _cpu_of_host_and_tasks(k: str, rounds: Sequence[Runs]) -> dict[str, float]:
    return {
        "host": statistics.median(_cpu_ms(runs[k], runs[k].other) for runs in rounds),
        "tasks": statistics.median(_cpu_ms(runs[k], *runs[k].usage) for runs in rounds),
    }


def _cpu_of_ceilings(rounds: Sequence[Runs]) -> dict[str, float]:
    return {
        name: statistics.median(_cpu_ms(runs[name], *runs[name].usage) for runs in rounds)
        for name in ("encoder", "decoding")
    }


def _cpu_ms(one: Run, *usage: Usage | None) -> float:
    """Return CPU milliseconds for one image, summed over the given processes."""
    return 1000 * sum(each.cpu_seconds for each in usage if each) / one.total("images")


def _memory_of_host_and_tasks(k: str, rounds: Sequence[Runs]) -> dict[str, object]:
    """Return the memory in the last round, and the memory of a task beyond one model."""
    one, model = rounds[-1][k], rounds[-1]["encoder"].usage
    host = [one.other] if one.other else []
    beyond = sum(each.uss_mib for each in (*host, *one.usage)) - model[0].uss_mib
    return {"host": _memory(host), "tasks": _memory(one.usage), "beyond_one_model_per_task": beyond / int(k)}


def _memory(usage: Sequence[Usage]) -> dict[str, list[float]]:
    """Return unique (uss), resident (rss) and peak resident memory of each process."""
    return {
        "uss": [round(each.uss_mib, 1) for each in usage],
        "rss": [round(each.rss_mib, 1) for each in usage],
        "peak_rss": [round(each.peak_mib, 1) for each in usage if each.peak_mib is not None],
    }


def _gpu_use(name: str, rounds: Sequence[Runs], given: argparse.Namespace) -> dict[str, float | None]:
    watts = [runs[name].watts for runs in rounds]
    known = [each for each in watts if each is not None]
    share = None
    if given.flops_per_image and given.peak_tflops:
        rate = statistics.median(runs[name].images_per_second for runs in rounds)
        share = rate * given.flops_per_image / (given.peak_tflops * 1e12)
    return {"mean_watts": statistics.mean(known) if known else None, "share_of_peak": share}


if __name__ == "__main__":
    main()
