"""The flow: source → scorer → image_scores → filtered tables.

The job is a stream that ends. Spark's checkpoint knows which files it has seen and Delta's log which
micro-batches were written, so a job that was killed, or that runs each night, takes up exactly what is new.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import Any, Final

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from nsfw_spark.errors import ConfigError, TableError
from nsfw_spark.model import ModelSpec
from nsfw_spark.model_card import ModelCard, load_card
from nsfw_spark.options import JobOptions
from nsfw_spark.spark import filtered, schema, sources, tables
from nsfw_spark.spark.gpu import num_visible_gpus
from nsfw_spark.spark.hadoop import exists
from nsfw_spark.spark.policy import Policy
from nsfw_spark.spark.progress import OBSERVATION, Counts, counting_columns, follow
from nsfw_spark.spark.reconcile import account_for_skipped, last_batch
from nsfw_spark.spark.session import executor_cores, get_session, num_slots
from nsfw_spark.spark.summary import Clock, Summary, count_tables, finish_run
from nsfw_spark.spark.tables import IMAGE_SCORES, Output
from nsfw_spark.spark.udf import add_scores, driver_fingerprint, new_run_id
from nsfw_spark.spark.worker import ScorerSpec

_MICRO_BATCH_SECONDS: Final = 60  # a micro-batch costs 2 s of its own: make it a minute's work
_DECODES_PER_SECOND: Final = 500  # of one core, photographs of half a megapixel


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
    model, fingerprint = _model(options)
    policy = Policy.of(options)
    spark = get_session()
    clock, output, run_id = Clock(), Output.of(options), new_run_id()
    columns = schema.image_scores(keep_content=options.keep_content)
    input_uri = sources.check_directory(spark, str(options.input), glob=options.glob)
    tables.check_output(spark, output, columns, model.card.name, fingerprint)
    filtered.check_filter(spark, output, policy, columns)
    checkpoint = _checkpoint(spark, output, input_uri)
    tables.create_image_scores(spark, output, columns, model.card.name, fingerprint)

    images = sources.stream_images(
        spark, input_uri, files_per_batch=_files_per_batch(spark, options, model.card), glob=options.glob
    )
    # Bytes that Spark does not read need not be copied, several times, on their way to Python.
    is_local = input_uri.startswith("file:") and not options.keep_content
    spec = ScorerSpec(
        model, options.max_pixels, options.host, options.host_timeout_seconds, executor_cores(spark)
    )
    scored = add_scores(images, spec, fingerprint, run_id, from_path=is_local, with_stages=True)
    scored = scored.withColumnRenamed("modificationTime", "modification_time")
    counted = scored.observe(OBSERVATION, *counting_columns(policy)).select(columns.names)
    counts = _write(counted, output, checkpoint)
    accounted = last_batch(spark, checkpoint)
    if (before := tables.last_accounted_batch(spark, output, input_uri)) < accounted:
        row = _model_columns(model.card, fingerprint, run_id)
        num_skipped = account_for_skipped(
            spark, output, checkpoint, after_batch=before, num_rows=counts.images, row=row
        )
        counts += Counts(images=num_skipped)
    score_seconds = clock.seconds()
    if with_filter:
        filtered.update_filtered(spark, output, policy)

    run = _model_columns(model.card, fingerprint, run_id) | {
        "command": "run" if with_filter else "score",
        "input": input_uri,
        "last_batch": accounted,
        "score_seconds": score_seconds,
        "decode_seconds": counts.stages.decode_seconds,
        "wait_seconds": counts.stages.wait_seconds,
        "encode_seconds": counts.stages.encode_seconds,
        "batch_fill": counts.stages.batch_fill,
        "threshold": policy.threshold if with_filter else None,
        "policy": policy.text if with_filter else None,
    }
    return finish_run(spark, output, clock, counts, run)


def filter_job(options: JobOptions) -> Summary:
    """Bring the filtered tables up to date under the options' policy; loads no model.

    Raises:
        ConfigError: The policy cannot be applied, or lets an image without a score pass.
        TableError: There is no image_scores, or it is not this project's.
    """
    policy, spark = Policy.of(options), get_session()
    clock, output = Clock(), Output.of(options)
    if not output.exists(spark, IMAGE_SCORES):
        raise TableError(
            f"there is no table {output.name(IMAGE_SCORES)} to filter. First: "
            f"nsfw-spark score INPUT --output {options.output}"
        )
    tables.properties(spark, output)
    filtered.check_filter(spark, output, policy, spark.table(output.name(IMAGE_SCORES)).schema)
    filtered.update_filtered(spark, output, policy)
    totals = count_tables(spark, output)
    ok = totals["safe_images"] + totals["flagged_images"]
    counts = Counts(totals[IMAGE_SCORES], ok, totals["safe_images"])
    run = {
        "run_id": new_run_id(),
        "command": "filter",
        "score_seconds": 0.0,
        "threshold": policy.threshold,
        "policy": policy.text,
    }
    return finish_run(spark, output, clock, counts, run)


def _model(options: JobOptions) -> tuple[ModelSpec, str]:
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
    model = ModelSpec(card, model_dir, options.device, options.batch_size)
    return model, driver_fingerprint(model)


def _write(scored: DataFrame, output: Output, checkpoint: str) -> Counts:
    """Append to image_scores with Delta's own streaming sink, and wait for the end."""
    writer = (
        scored.writeStream.format("delta")
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


def _model_columns(card: ModelCard, fingerprint: str, run_id: str) -> dict[str, Any]:
    """Return the values of `schema.MODEL` for rows that no executor made."""
    now = datetime.now(UTC)
    return {"model": card.name, "model_fingerprint": fingerprint, "run_id": run_id, "scored_at": now}
