"""The order of a run: source → scorer → image_scores → filtered tables.

In: the job's options. Out: the tables, and a summary. The job is a stream that ends: Spark's checkpoint knows
the files that it has seen, and Delta's log the micro-batches that were written. So a killed job resumes, and
a nightly job scores exactly the new images.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, Unpack

from pyspark.sql import SparkSession

from nsfw_spark import early
from nsfw_spark.cascade import model_specs
from nsfw_spark.embeddings import head_fingerprint
from nsfw_spark.errors import ConfigError, TableError
from nsfw_spark.options import JobKeywords, JobOptions
from nsfw_spark.spark import filtered, tables
from nsfw_spark.spark.checkpoints import last_batch
from nsfw_spark.spark.content import Contents, open_contents
from nsfw_spark.spark.delivery import deliver
from nsfw_spark.spark.faults import RAISED, check_readable, explained
from nsfw_spark.spark.job import ScoringJob
from nsfw_spark.spark.lock import one_run_at_a_time
from nsfw_spark.spark.policy import Policy
from nsfw_spark.spark.progress import Counts
from nsfw_spark.spark.report import pictured
from nsfw_spark.spark.runs import RunRecord, count_tables, record_interrupted
from nsfw_spark.spark.schema import SCORE
from nsfw_spark.spark.scorer_spec import ScorerSpec
from nsfw_spark.spark.scoring import ImageScoring
from nsfw_spark.spark.session import get_session, num_slots, starts_local_session
from nsfw_spark.spark.sources import Limit, Source, SourceOptions, open_source
from nsfw_spark.spark.summary import RunSummary
from nsfw_spark.spark.tables import IMAGE_SCORES, Output
from nsfw_spark.spark.udf import new_run_id
from nsfw_spark.spark.vector_scoring import VectorScoring
from nsfw_spark.spark.worker import num_visible_gpus

_MICRO_BATCH_SECONDS: Final = 60  # each micro-batch has an overhead of 2 s
_DECODES_PER_SECOND: Final = 500  # of one core, photographs of half a megapixel
_VECTORS_PER_SECOND: Final = 25_000  # of one core, LAION's L/14 head
_TIMINGS_OF_RUN: Final = ("decode_seconds", "wait_seconds", "encode_seconds", "batch_fill")


def run(
    input: str,  # noqa: A002 - the option's name
    output: str,
    *,
    model: str | Path = "laion-vit-l-14",
    **options: Unpack[JobKeywords],
) -> RunSummary:
    """Run the whole job in this session: the command `nsfw-spark run`, for notebooks and schedulers.

    Args:
        input: URI of the images, or a table's name.
        output: URI of a directory for the tables, or a catalog schema.
        model: Name of a built-in model card, or path of a card file.
        options: See `JobOptions`: the options of the command, with `_` for `-`.

    Returns:
        Counts of this run and of the tables. More images without a score than `max_error_rate` allows are no
        error here: compare `RunSummary.counts`.

    Raises:
        NsfwSparkError: See `run_job`.
    """
    given = JobOptions.parse({"input": input, "output": output, "model": model, **options})
    summary = run_job(given)
    return pictured(summary, given) if _is_notebook() and summary.counts.ok else summary


def _is_notebook() -> bool:
    """Whether this process shows the values of its cells, as Jupyter and Databricks do."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return getattr(shell, "kernel", None) is not None


def run_job(options: JobOptions, *, with_filter: bool = True) -> RunSummary:
    """Score the new images of the input; then bring the filtered tables up to date.

    Args:
        options: The job's options; `input` is needed.
        with_filter: False for `score`, which leaves the filtered tables alone.

    Raises:
        ConfigError: An option or the model card is wrong, or the weights are random.
        InputError: The input is missing or empty.
        RunInterruptedError: Ctrl-C ended scoring after a micro-batch; the next run goes on.
        StorageError: Storage failed: no space, no permission, a deleted checkpoint.
        TableError: The output holds other things, is damaged, or another run is writing to it.
        WeightsError: The weights are absent, or not the ones that the card pins.
    """
    _check_options(options)
    policy = Policy.of(options) if with_filter else None
    scoring = choose_scoring(options)
    spark = get_session(options.input, options.output, options.checkpoints, options.content_from)
    scoring = scoring.on_executors_of(spark)
    output = Output.of(spark, options)
    with explained(output):
        source = open_source(spark, _source_options(options, scoring))
        contents = _contents(spark, options, source) if with_filter else None
        limit = _limit(spark, options, scoring)
        job = ScoringJob(options, source, scoring, policy, output, limit, new_run_id())
        check_readable(output)
        job.check()
        with one_run_at_a_time(output):
            return _run(job, contents)


def filter_job(options: JobOptions) -> RunSummary:
    """Bring the filtered tables up to date under the options' policy; load no model.

    Raises:
        ConfigError: The policy cannot be applied.
        StorageError: Storage failed: no space, no permission.
        TableError: image_scores does not exist, is damaged, or was not made by this package.
    """
    policy = Policy.of(options)
    spark = get_session(options.output, options.checkpoints, options.content_from)
    output = Output.of(spark, options)
    with explained(output):
        check_readable(output)
        return _filter(options, output, policy)


def _run(job: ScoringJob, contents: Contents | None) -> RunSummary:
    """Score, then filter, with a row in the table `runs` from start to end."""
    output, policy, scoring = job.output, job.policy, job.scoring
    record = RunRecord(output, job.run_id, "score" if policy is None else "run")
    record_interrupted(output)
    target = job.target()
    record.start(input=job.source.uri, model=scoring.name, model_fingerprint=scoring.fingerprint)
    with _interrupted_if_it_fails(output):
        counts = job.score(target)
        score_seconds = record.seconds()
        if policy is not None:
            filtered.update_filtered(output, policy, contents)
        return record.finish(
            counts,
            score_seconds,
            checkpoint=job.checkpoint_column(target.checkpoint),
            last_batch=last_batch(output.spark, target.checkpoint),
            **{name: getattr(counts.timings, name) for name in _TIMINGS_OF_RUN},
            normalized=int(counts.timings.normalized),
            second=None if job.options.second is None else int(counts.timings.second),
            threshold=None if policy is None else policy.threshold,
            policy=None if policy is None else policy.text,
        )


def _filter(options: JobOptions, output: Output, policy: Policy) -> RunSummary:
    record = RunRecord(output, new_run_id(), "filter")
    if not output.exists(IMAGE_SCORES):
        raise TableError(
            f"there is no table {output.name(IMAGE_SCORES)} to filter. First: "
            f"nsfw-spark score INPUT --output {options.output}"
        )
    tables.properties(output)
    filtered.check_filter(output, policy, output.table(IMAGE_SCORES).schema)
    contents = open_contents(output.spark, options.content_from, options.content_column, options.id_column)
    with one_run_at_a_time(output) as is_alone:
        if is_alone:  # else a row `running` may be of a run that is alive
            record_interrupted(output)
        record.start()
        filtered.update_filtered(output, policy, contents)
        totals = count_tables(output)
        ok = totals["safe_images"] + totals["flagged_images"]
        counts = Counts(totals[IMAGE_SCORES], ok, totals["safe_images"])
        return record.finish(counts, 0.0, threshold=policy.threshold, policy=policy.text)


@contextmanager
def _interrupted_if_it_fails(output: Output) -> Iterator[None]:
    """If a run fails, complete its row at once; if that fails too, the next run does it."""
    try:
        yield
    except Exception:
        with suppress(*RAISED):
            record_interrupted(output)
        raise


def choose_scoring(options: JobOptions) -> ImageScoring | VectorScoring:
    """Choose the model that the options name; an error in it is an error before Spark starts.

    Raises:
        ConfigError: The model card is wrong or has random weights, or has no such head or class, or no head
            for embeddings.
        WeightsError: Weights are absent, or are not the ones that the card or the lock file pins.
    """
    has_vectors = options.format == "embeddings"
    if has_vectors and options.strict:
        raise ConfigError("--strict looks at images, and --format embeddings has none: leave one out")
    models = model_specs(options)
    unused = {"encoder"} if has_vectors else set()
    for model in models:
        parts = set(model.card.weights_sources) - unused
        if model.card.random_parts & parts and not options.allow_random_weights:
            raise ConfigError(
                f"the model {model.card.name} has random weights, so its scores mean nothing. Choose another "
                "model, or pass --allow-random-weights for a test"
            )
    if not has_vectors:
        spec = ScorerSpec.of(options, models)
        return ImageScoring(spec, spec.driver_fingerprint(), keep_content=options.keep_content)
    source, ship, keep = options.model_source, options.ship_weights, options.keep_embedding
    delivery = deliver(models, model_source=source, ship=ship, parts=parts)
    fingerprint = head_fingerprint(model.card, model.model_dir)
    return VectorScoring(model, fingerprint, keep_embedding=keep, delivery=delivery)


def _check_options(options: JobOptions) -> None:
    """Refuse wrong options before Spark starts."""
    early.check_options(options)
    # On a cluster, the same path may name a file of another file system.
    if starts_local_session():
        early.check_input(options)


def _source_options(options: JobOptions, scoring: ImageScoring | VectorScoring) -> SourceOptions:
    return SourceOptions(
        str(options.input),
        options.format,
        options.glob,
        options.content_column,
        options.id_column,
        options.carry,
        options.max_bytes,
        scoring.card.encoder.embedding_dim,
        True,  # noqa: FBT003 - `may_be_empty`: see `ScoringJob.check`
        options.source_option or {},
        tuple(column for column in scoring.scores.names if column not in SCORE.names),
    )


def _contents(spark: SparkSession, options: JobOptions, source: Source) -> Contents | None:
    """Return the images for the filtered tables; for the input itself, read as the options describe it."""
    if options.content_from == options.input and not source.has_vectors:
        return Contents((source,))
    return open_contents(spark, options.content_from)


def _limit(spark: SparkSession, options: JobOptions, scoring: ImageScoring | VectorScoring) -> Limit:
    """Size a micro-batch so that it takes about a minute."""
    if options.files_per_batch != "auto":
        return Limit(options.files_per_batch, options.files_per_batch)
    slots = num_slots(spark) or 1
    if isinstance(scoring, VectorScoring):
        return Limit(slots * _VECTORS_PER_SECOND * _MICRO_BATCH_SECONDS)
    gpus_a_task = float(spark.conf.get("spark.task.resource.gpu.amount", "0") or 0)
    num_gpus = 0.0 if options.device == "cpu" else slots * gpus_a_task or num_visible_gpus()
    costs = [model.card.seconds_per_image for model in scoring.spec.models]
    # The second model of a cascade sees few images. How few is unknown; a fifth is assumed.
    seconds = sum((cost.cuda if num_gpus else cost.cpu) / 5**i for i, cost in enumerate(costs))
    scored = (num_gpus or slots) / seconds
    per_second = min(scored, slots * _DECODES_PER_SECOND)
    return Limit(max(64, round(per_second * _MICRO_BATCH_SECONDS)))
