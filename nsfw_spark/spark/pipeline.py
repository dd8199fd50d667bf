"""The flow: source → scorer → image_scores → filtered tables.

The job is a stream that ends. Spark's checkpoint knows what it has seen and Delta's log which micro-batches
were written, so a job that was killed, or that runs each night, takes up exactly what is new.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from nsfw_spark.errors import ConfigError, TableError
from nsfw_spark.options import JobOptions
from nsfw_spark.spark import filtered, schema, tables, versions
from nsfw_spark.spark.checkpoints import find_checkpoint, last_batch
from nsfw_spark.spark.content import Contents, open_contents
from nsfw_spark.spark.gpu import num_visible_gpus
from nsfw_spark.spark.interrupted import account_for_interrupted, account_for_rescoring
from nsfw_spark.spark.lock import one_run_at_a_time
from nsfw_spark.spark.policy import Policy
from nsfw_spark.spark.progress import OBSERVATION, Counts, counting_columns, follow
from nsfw_spark.spark.reconcile import account_for_skipped
from nsfw_spark.spark.rescore import check_comparable, prune, rescore_changed
from nsfw_spark.spark.scoring import ImageScoring, VectorScoring, choose_scoring, score_listed
from nsfw_spark.spark.session import executor_cores, get_session, num_slots
from nsfw_spark.spark.sources import DeltaImages, Limit, Source, SourceOptions, check_ids, open_source
from nsfw_spark.spark.summary import Clock, Summary, count_run, count_tables, finish_run
from nsfw_spark.spark.tables import IMAGE_SCORES, Output
from nsfw_spark.spark.udf import model_columns, new_run_id

_MICRO_BATCH_SECONDS: Final = 60  # a micro-batch costs 2 s of its own: make it a minute's work
_DECODES_PER_SECOND: Final = 500  # of one core, photographs of half a megapixel
_VECTORS_PER_SECOND: Final = 25_000  # of one core, LAION's L/14 head
_STAGES_OF_RUN: Final = ("decode_seconds", "wait_seconds", "encode_seconds", "batch_fill")


def run_job(options: JobOptions, *, with_filter: bool = True) -> Summary:
    """Score what is new in the input; then bring the filtered tables up to date.

    Args:
        options: The job's options; `input` is needed.
        with_filter: False for `score`, which leaves the filtered tables alone.

    Raises:
        ConfigError: An option or the model card is wrong, or the weights are random.
        InputError: The input is missing or empty.
        TableError: The output belongs to something else, or another run is writing to it.
        WeightsError: Weights absent, or not the ones that the card pins.
    """
    _check_options(options)
    policy = Policy.of(options)
    scoring = choose_scoring(options)
    spark = get_session()
    scoring = scoring.on_executors_with(executor_cores(spark))
    source = open_source(spark, _source_options(options, scoring))
    output = Output.of(options)
    contents = _contents(spark, options, source) if with_filter else None
    job = _Job(
        spark, options, source, scoring, policy, contents, output, new_run_id(), with_filter=with_filter
    )
    with one_run_at_a_time(spark, output):
        return job.run()


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
    contents = open_contents(spark, options.content_from, options.content_column, options.id_column)
    with one_run_at_a_time(spark, output) as is_alone:
        if is_alone:  # else what looks interrupted may be under way
            account_for_interrupted(spark, output)
        filtered.update_filtered(spark, output, policy, contents)
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


@dataclass(frozen=True)
class _Job:
    """One run, in the order of its methods."""

    spark: SparkSession
    options: JobOptions
    source: Source
    scoring: ImageScoring | VectorScoring
    policy: Policy
    contents: Contents | None
    output: Output
    run_id: str
    with_filter: bool

    def run(self) -> Summary:
        """Score, then filter, then say so in the table `runs`."""
        clock = Clock()
        check_ids(self.source)
        account_for_interrupted(self.spark, self.output)
        if self.options.rescore == "changed" or self.options.prune:
            check_comparable(self.source, "--prune" if self.options.prune else "--rescore changed")
        begins_again = self.options.rescore == "all" and self.output.exists(self.spark, IMAGE_SCORES)
        counts, checkpoint = self._score_all_again() if begins_again else self._score_new(self.output)
        if self.options.rescore == "changed" or self.options.prune:
            counts = self._follow_changes(counts)
        score_seconds = clock.seconds()
        if self.with_filter:
            filtered.update_filtered(self.spark, self.output, self.policy, self.contents)
        run = self._model_columns() | {
            **self._origin(),
            "checkpoint": checkpoint.rpartition("/")[2],
            "last_batch": last_batch(self.spark, checkpoint),
            "score_seconds": score_seconds,
            **{name: getattr(counts.stages, name) for name in _STAGES_OF_RUN},
            "normalized": int(counts.stages.normalized),
            "threshold": self.policy.threshold if self.with_filter else None,
            "policy": self.policy.text if self.with_filter else None,
        }
        return finish_run(self.spark, self.output, clock, counts, run)

    def _score_new(self, target: Output, *, generation: str | None = None) -> tuple[Counts, str]:
        """Append to a target's image_scores what its checkpoint has not seen; return that too."""
        spark, source, scoring = self.spark, self.source, self.scoring
        columns = schema.image_scores(source.columns, keep_content=self.options.keep_content)
        tables.check_output(spark, target, columns, scoring.card.name, scoring.fingerprint)
        filtered.check_filter(spark, target, self.policy, columns)
        if generation is None:
            generation = versions.generation(spark, target)
        checkpoint = find_checkpoint(spark, target, source, generation)
        tables.ensure_image_scores(spark, target, columns, scoring.card.name, scoring.fingerprint)
        listed = source.stream(_limit(spark, self.options, scoring))
        counted = self._scored(listed, columns).observe(OBSERVATION, *counting_columns(self.policy))
        rows = self._with_model(counted).select(columns.names)
        counts = _write(rows, target, checkpoint, self._origin())
        counts += Counts(images=self._account_for_skipped(target, checkpoint, counts))
        if isinstance(source, DeltaImages) and source.has_changed():
            counts = self._score_left_over(source, target, columns, counts)
        return counts, checkpoint

    def _score_left_over(
        self, source: DeltaImages, target: Output, columns: StructType, counts: Counts
    ) -> Counts:
        """Append what the stream of a changed Delta table passed over; return the counts with these."""
        listed = source.left_over(self.spark.table(target.name(IMAGE_SCORES)))
        rows = self._with_model(self._scored(listed, columns)).select(columns.names)
        writer = rows.writeTo(target.name(IMAGE_SCORES))
        writer.option("userMetadata", json.dumps(self._origin())).append()
        return count_run(self.spark, target, self.run_id, self.policy, counts.stages)

    def _scored(self, listed: DataFrame, columns: StructType) -> DataFrame:
        """Return those columns of image_scores that the executors fill, and the stages."""
        theirs = [field for field in columns if field.name not in schema.MODEL.names]
        result = StructType([*theirs, schema.STAGES])
        return score_listed(listed, self.source.reader, self.scoring, result)

    def _account_for_skipped(self, target: Output, checkpoint: str, counts: Counts) -> int:
        """Add a row for each file that Spark listed and passed over; return how many."""
        before = tables.last_accounted_batch(self.spark, self.output, checkpoint.rpartition("/")[2])
        if self.source.file_column is None or before >= last_batch(self.spark, checkpoint):
            return 0
        return account_for_skipped(
            self.spark,
            target,
            checkpoint,
            self.source.file_column,
            after_batch=before,
            num_rows=counts.images,
            row=self._model_columns(),
        )

    def _score_all_again(self) -> tuple[Counts, str]:
        """Score all into a table apart, whose rows then replace those of image_scores in one commit."""
        fingerprint = self.scoring.fingerprint
        if versions.is_adopted(self.spark, self.output, fingerprint):
            counts, checkpoint = self._score_new(self.output)
        else:
            generation = versions.next_generation(self.spark, self.output, fingerprint)
            apart = versions.apart(self.output, generation)
            counts, checkpoint = self._score_new(apart, generation=generation)
            account_for_rescoring(self.spark, apart, self.output, self.run_id)
            versions.adopt(self.spark, apart, self.output, generation)
        versions.forget(self.spark, self.output)
        return counts, checkpoint

    def _follow_changes(self, counts: Counts) -> Counts:
        """Score changed files again, delete the rows of files that are gone; return the counts with these."""
        source = check_comparable(self.source, "--prune" if self.options.prune else "--rescore changed")
        if self.options.rescore == "changed":
            columns = self.spark.table(self.output.name(IMAGE_SCORES)).schema
            ours = schema.image_scores(source.columns, keep_content=self.options.keep_content)

            def score(listed: DataFrame) -> DataFrame:
                known = self._with_model(self._scored(listed, ours)).select(ours.names)
                absent = [field for field in columns if field.name not in ours.names]
                nulls = {field.name: F.lit(None).cast(field.dataType) for field in absent}
                return known.withColumns(nulls).select(columns.names)

            if rescore_changed(self.spark, self.output, source, score):
                counts = count_run(self.spark, self.output, self.run_id, self.policy, counts.stages)
        if self.options.prune:
            num_gone = prune(self.spark, self.output, source)
            sys.stderr.write(f"nsfw-spark: --prune deleted {num_gone:,} rows of files that are gone\n")
        return counts

    def _origin(self) -> dict[str, str]:
        """Return what `runs` says of this run even if it does not live to say so: part of each commit."""
        return {"command": "run" if self.with_filter else "score", "input": self.source.uri}

    def _with_model(self, scored: DataFrame) -> DataFrame:
        return scored.withColumns(model_columns(self.scoring.card, self.scoring.fingerprint, self.run_id))

    def _model_columns(self) -> dict[str, Any]:
        """Return the values of `schema.MODEL` for rows that no executor made."""
        return {
            "model": self.scoring.card.name,
            "model_fingerprint": self.scoring.fingerprint,
            "run_id": self.run_id,
            "scored_at": datetime.now(UTC),
        }


def _check_options(options: JobOptions) -> None:
    """Say what is wrong with the options before Spark starts."""
    if options.input is None:
        raise ConfigError("no INPUT was given; expected the URI of a directory with images")
    if options.is_schema and options.checkpoints is None:
        raise ConfigError(
            f"output {options.output} is a catalog schema; expected --checkpoints URI with it, a directory "
            f"for Spark's checkpoints. (For a directory of that name, write ./{options.output})"
        )


def _source_options(options: JobOptions, scoring: ImageScoring | VectorScoring) -> SourceOptions:
    return SourceOptions(
        str(options.input),
        options.format,
        options.glob,
        options.content_column,
        options.id_column,
        options.carry,
        scoring.card.encoder.embedding_dim,
    )


def _contents(spark: SparkSession, options: JobOptions, source: Source) -> Contents | None:
    """Return what joins images to the filtered tables; the input's own as the options describe it."""
    if options.content_from == options.input and not source.has_vectors:
        return Contents((source,))
    return open_contents(spark, options.content_from)


def _write(scored: DataFrame, output: Output, checkpoint: str, origin: dict[str, str]) -> Counts:
    """Append to image_scores with Delta's own streaming sink, and wait for the end."""
    writer = (
        scored.writeStream.format("delta")
        .outputMode("append")
        .queryName("nsfw-spark: score")
        .option("checkpointLocation", checkpoint)
        .option("userMetadata", json.dumps(origin))
        .trigger(availableNow=True)
    )
    if output.is_schema:
        return follow(writer.toTable(output.name(IMAGE_SCORES)))
    return follow(writer.start(output.path(IMAGE_SCORES)))


def _limit(spark: SparkSession, options: JobOptions, scoring: ImageScoring | VectorScoring) -> Limit:
    """Return what is about a minute's work."""
    if options.files_per_batch != "auto":
        return Limit(options.files_per_batch, options.files_per_batch)
    slots = num_slots(spark) or 1
    if isinstance(scoring, VectorScoring):
        return Limit(slots * _VECTORS_PER_SECOND * _MICRO_BATCH_SECONDS)
    gpus_a_task = float(spark.conf.get("spark.task.resource.gpu.amount", "0") or 0)
    num_gpus = 0.0 if options.device == "cpu" else slots * gpus_a_task or num_visible_gpus()
    cost = scoring.card.seconds_per_image
    scored = num_gpus / cost.cuda if num_gpus else slots / cost.cpu
    per_second = min(scored, slots * _DECODES_PER_SECOND)
    return Limit(max(64, round(per_second * _MICRO_BATCH_SECONDS)))
