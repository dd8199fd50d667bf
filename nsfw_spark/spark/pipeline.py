"""The flow: source → scorer → image_scores → filtered tables.

The job is a stream that ends. Spark's checkpoint knows which files it has seen and Delta's log which
micro-batches were written, so a job that was killed, or that runs each night, takes up exactly what is new.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from typing import Any, Final

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

import nsfw_spark
from nsfw_spark.errors import ConfigError, TableError
from nsfw_spark.model_card import ModelCard, load_card
from nsfw_spark.options import JobOptions
from nsfw_spark.scorer import ScorerSpec
from nsfw_spark.spark import filtered, schema, sources, tables
from nsfw_spark.spark.gpu import num_visible_gpus
from nsfw_spark.spark.hadoop import exists
from nsfw_spark.spark.progress import OBSERVATION, Counts, counting_columns, follow
from nsfw_spark.spark.reconcile import account_for_skipped, last_batch
from nsfw_spark.spark.session import get_session, num_slots
from nsfw_spark.spark.tables import IMAGE_SCORES, Output
from nsfw_spark.spark.udf import add_scores, driver_fingerprint, new_run_id

_MICRO_BATCH_SECONDS: Final = 60  # a micro-batch costs 2 s of its own: make it a minute's work
_UNSCORED_SHOWN: Final = 5
_DECODES_PER_SECOND: Final = 500  # of one core, photographs of half a megapixel


@dataclass(frozen=True)
class Summary:
    """What a job did; the last line of the command's output."""

    counts: Counts
    """Of this run; of the tables as they are, for `filter`."""
    totals: dict[str, int]
    """Rows of each table, now."""
    unscored: list[tuple[str, str, str]]
    """Of a few images of this run that have no score: image_id, status, error."""
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Return the keys that users and checks rely on, in their order."""
        counts = self.counts
        return {
            "images": counts.images,
            "ok": counts.ok,
            "safe": counts.safe,
            "flagged": counts.flagged,
            "quarantined": counts.quarantined,
            "seconds": round(self.seconds, 3),
            "images_per_second": round(counts.images / self.seconds, 1) if self.seconds else 0.0,
        }


def run_job(options: JobOptions, *, with_filter: bool = True) -> Summary:
    """Score what is new in the input; then bring the filtered tables up to date.

    Args:
        options: The job's options; `input` is needed.
        with_filter: False for `score`, which leaves the filtered tables alone.

    Raises:
        ConfigError: An option or the model card is wrong, or the weights are random.
        InputError: The input is missing or empty.
        TableError: The output belongs to something else.
        WeightsError: Weights absent, or not the ones that the card pins.
    """
    spec, fingerprint = _model(options)
    spark = get_session()
    clock, output, run_id = _Clock(), Output.of(options), new_run_id()
    columns = schema.image_scores(keep_content=options.keep_content)
    input_uri = sources.check_directory(spark, str(options.input), glob=options.glob)
    tables.check_output(spark, output, columns, spec.card.name, fingerprint)
    checkpoint = _checkpoint(spark, output, input_uri)
    tables.create_image_scores(spark, output, columns, spec.card.name, fingerprint)

    images = sources.stream_images(
        spark, input_uri, files_per_batch=_files_per_batch(spark, options, spec.card), glob=options.glob
    )
    # Bytes that Spark does not read need not be copied, several times, on their way to Python.
    is_local = input_uri.startswith("file:") and not options.keep_content
    scored = add_scores(images, spec, fingerprint, run_id, from_path=is_local)
    scored = scored.withColumnRenamed("modificationTime", "modification_time").select(columns.names)
    counts = _write(scored, output, checkpoint, options.threshold)
    accounted = last_batch(spark, checkpoint)
    if (before := tables.last_accounted_batch(spark, output, input_uri)) < accounted:
        row = _model_columns(spec.card, fingerprint, run_id)
        num_skipped = account_for_skipped(
            spark, output, checkpoint, after_batch=before, num_rows=counts.images, row=row
        )
        counts += Counts(images=num_skipped)
    score_seconds = clock.seconds()
    if with_filter:
        filtered.update_filtered(spark, output, options.threshold)

    run = _model_columns(spec.card, fingerprint, run_id) | {
        "command": "run" if with_filter else "score",
        "input": input_uri,
        "last_batch": accounted,
        "score_seconds": score_seconds,
        "threshold": options.threshold if with_filter else None,
    }
    return _finish(spark, output, clock, counts, run)


def filter_job(options: JobOptions) -> Summary:
    """Bring the filtered tables up to date under the options' threshold; loads no model.

    Raises:
        TableError: There is no image_scores, or it is not this project's.
    """
    spark = get_session()
    clock, output = _Clock(), Output.of(options)
    if not output.exists(spark, IMAGE_SCORES):
        raise TableError(
            f"there is no table {output.name(IMAGE_SCORES)} to filter. First: "
            f"nsfw-spark score INPUT --output {options.output}"
        )
    tables.properties(spark, output)
    filtered.update_filtered(spark, output, options.threshold)
    totals = _count_tables(spark, output)
    ok = totals["safe_images"] + totals["flagged_images"]
    counts = Counts(totals[IMAGE_SCORES], ok, totals["safe_images"])
    run = {"run_id": new_run_id(), "command": "filter", "score_seconds": 0.0, "threshold": options.threshold}
    return _finish(spark, output, clock, counts, run)


def _model(options: JobOptions) -> tuple[ScorerSpec, str]:
    """Return what to score with, and its fingerprint; what is wrong here is said before Spark starts."""
    if options.input is None:
        raise ConfigError("no INPUT was given; expected the URI of a directory with images")
    if options.is_schema and options.checkpoints is None:
        raise ConfigError(
            f"output {options.output} is a catalog schema; expected --checkpoints URI with it, a directory "
            f"for Spark's checkpoints. (For a directory of that name, write ./{options.output})"
        )
    card = load_card(options.model)
    if card.has_random_weights and not options.allow_random_weights:
        raise ConfigError(
            f"the model {card.name} has random weights, so its scores mean nothing. Choose another model, "
            "or pass --allow-random-weights for a test"
        )
    model_dir = options.model_dir and options.model_dir.absolute()  # the workers' directory is another
    spec = ScorerSpec(card, model_dir, options.device, options.batch_size, options.max_pixels)
    return spec, driver_fingerprint(spec)


def _write(scored: DataFrame, output: Output, checkpoint: str, threshold: float) -> Counts:
    """Append to image_scores with Delta's own streaming sink, and wait for the end."""
    writer = (
        scored.observe(OBSERVATION, *counting_columns(threshold))
        .writeStream.format("delta")
        .outputMode("append")
        .queryName("nsfw-spark: score")
        .option("checkpointLocation", checkpoint)
        .trigger(availableNow=True)
    )
    if output.is_schema:
        return follow(writer.toTable(output.name(IMAGE_SCORES)))
    return follow(writer.start(output.path(IMAGE_SCORES)))


def _checkpoint(spark: SparkSession, output: Output, input_uri: str) -> str:
    """Return the checkpoint of this input, one for each, so that an output can have several.

    Raises:
        TableError: Images of this input were scored, and their checkpoint is gone.
    """
    key = hashlib.sha256(input_uri.encode()).hexdigest()[:12]
    checkpoint = f"{output.checkpoints}/{IMAGE_SCORES}-{key}"
    if not exists(spark, checkpoint) and output.exists(spark, IMAGE_SCORES):
        scored = spark.table(output.name(IMAGE_SCORES))
        if not scored.filter(F.col("image_id").startswith(f"{input_uri}/")).isEmpty():
            raise TableError(
                f"{output.name(IMAGE_SCORES)} holds images of {input_uri}, and there is no checkpoint "
                f"{checkpoint} that says which: all would be scored twice. Restore it, or choose "
                "another --output"
            )
    return checkpoint


def _files_per_batch(spark: SparkSession, options: JobOptions, card: ModelCard) -> int:
    """Return how many files are about a minute's work."""
    if options.files_per_batch != "auto":
        return options.files_per_batch
    slots = num_slots(spark) or 1
    gpus_a_task = float(spark.conf.get("spark.task.resource.gpu.amount", "0") or 0)
    num_gpus = 0.0 if options.device == "cpu" else slots * gpus_a_task or num_visible_gpus()
    cost = card.seconds_per_image
    scored = num_gpus / cost.cuda if num_gpus else slots / cost.cpu
    per_second = min(scored, slots * _DECODES_PER_SECOND)
    return max(64, round(per_second * _MICRO_BATCH_SECONDS))


class _Clock:
    """When a job began, Spark's start not included, and for how long it has run."""

    def __init__(self) -> None:
        self.at, self._start = datetime.now(UTC), time.perf_counter()

    def seconds(self) -> float:
        return time.perf_counter() - self._start


def _finish(
    spark: SparkSession, output: Output, clock: _Clock, counts: Counts, run: dict[str, Any]
) -> Summary:
    """Record the run and say what it did."""
    unscored = _unscored(spark, output, run["run_id"]) if counts.quarantined else []
    summary = Summary(counts, _count_tables(spark, output), unscored, clock.seconds())
    counted = {name: n for name, n in summary.as_dict().items() if name in schema.RUNS.names}
    times = {"started_at": clock.at, "filter_seconds": summary.seconds - run["score_seconds"]}
    tables.append_run(spark, output, {**run, **counted, **times, "versions": _versions()})
    return summary


def _unscored(spark: SparkSession, output: Output, run_id: str) -> list[tuple[str, str, str]]:
    scores = spark.table(output.name(IMAGE_SCORES))
    found = scores.filter((F.col("run_id") == run_id) & (F.col("status") != "ok"))
    rows = found.select("image_id", "status", "error").limit(_UNSCORED_SHOWN).collect()
    return [(row.image_id, row.status, row.error) for row in rows]


def _count_tables(spark: SparkSession, output: Output) -> dict[str, int]:
    """Count the rows of each table that is there; Delta's log knows, no data is read."""
    names = [name for name in (IMAGE_SCORES, *tables.FILTERED) if output.exists(spark, name)]
    counts = tables.at_once(lambda name: spark.table(output.name(name)).count(), names)
    return dict(zip(names, counts, strict=True))


def _model_columns(card: ModelCard, fingerprint: str, run_id: str) -> dict[str, Any]:
    """Return the values of `schema.MODEL` for rows that no executor made."""
    now = datetime.now(UTC)
    return {"model": card.name, "model_fingerprint": fingerprint, "run_id": run_id, "scored_at": now}


def _versions() -> dict[str, str]:
    """Return the versions of the installed libraries that a score can depend on."""
    libraries = ("pyspark", "delta-spark", "pillow", "cykooz-resizer", "numpy")
    versions = {"nsfw-spark": nsfw_spark.__version__}
    for library in (*libraries, "torch", "open-clip-torch", "onnxruntime"):
        try:
            versions[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return versions
