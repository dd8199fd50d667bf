"""What a run does to image_scores: score the new images, the changed ones, or all of them again.

In: a source, a scorer and an output. Out: rows in image_scores, and their counts. Each step ends in a commit:
a killed run resumes after its last one. This module does not write the filtered tables.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from datetime import UTC, datetime

from pyspark.errors import StreamingQueryException
from pyspark.sql import DataFrame
from pyspark.sql.types import StructType

from nsfw_spark.options import JobOptions
from nsfw_spark.readers.chunk import MOST_BYTES
from nsfw_spark.self_check import SelfCheck
from nsfw_spark.spark import filtered, rescore, schema, tables
from nsfw_spark.spark.checkpoints import (
    check_still_there,
    checkpoint_id,
    find_checkpoint,
    last_accounted_batch,
    last_batch,
)
from nsfw_spark.spark.faults import check_holds, is_of_a_file, reason
from nsfw_spark.spark.policy import Policy
from nsfw_spark.spark.progress import OBSERVATION, Counts, counting_columns, follow
from nsfw_spark.spark.reconcile import account_for_skipped, listed_files
from nsfw_spark.spark.runs import count_run, record_rescored
from nsfw_spark.spark.scoring import ImageScoring, score_listed
from nsfw_spark.spark.sources import Limit, Source, check_ids
from nsfw_spark.spark.tables import IMAGE_SCORES, Output
from nsfw_spark.spark.udf import model_columns
from nsfw_spark.spark.vector_scoring import VectorScoring
from nsfw_spark.spark.worker import ask_executor


@dataclass(frozen=True)
class Target:
    """Where a run writes its rows."""

    output: Output
    """The job's output; for `--rescore all` a staging table beside its checkpoints."""
    generation: str
    """Number of `--rescore all` runs so far, and the model's fingerprint."""
    checkpoint: str
    """URI."""


@dataclass(frozen=True)
class ScoringJob:
    """The part of one run that scores."""

    options: JobOptions
    source: Source
    scoring: ImageScoring | VectorScoring
    policy: Policy | None
    """Decides which rows count as safe; None for `score`."""
    output: Output
    limit: Limit
    run_id: str

    def check(self) -> None:
        """Refuse a policy that cannot be applied, and repeated or null ids, before the run takes the lock."""
        if not self.output.exists(IMAGE_SCORES):  # else `target` checks it, under the lock
            self._check_policy(self.output)
        check_ids(self.source)

    def target(self) -> Target:
        """Return where this run writes, after all checks; write nothing.

        Raises:
            ConfigError: The policy cannot be applied, or the source has no files to compare.
            TableError: The output must not be written to, or does not agree with its checkpoint.
        """
        rescore.check_options(self.source, self.options)
        output, fingerprint = self.output, self.scoring.fingerprint
        generation = rescore.generation(output)
        rescores_all = self.options.rescore == "all" and output.exists(IMAGE_SCORES)
        if rescores_all and not rescore.is_replaced(output, fingerprint):
            generation = rescore.next_generation(output, fingerprint)
            output = rescore.staging(output, generation)
        tables.check_output(output, self._columns(), self.scoring.name, fingerprint)
        self._check_policy(output)
        checkpoint = find_checkpoint(output, self.source, generation)
        check_holds(output, checkpoint)
        return Target(output, generation, checkpoint)

    def score(self, target: Target) -> Counts:
        """Bring image_scores up to date, as the options say; return the counts of the new rows."""
        counts = self._score_new(target)
        if target.output != self.output:
            record_rescored(self.output, target.output, self.run_id)
            rescore.replace_image_scores(target.output, self.output, target.generation)
        if self.options.rescore == "all":
            rescore.delete_staging(self.output)
        if rescore.follow_changes(self.output, self.source, self.options, self._rescored):
            counts = count_run(self.output, self.run_id, self.policy, counts.timings)
        return counts

    def checkpoint_column(self, checkpoint: str) -> str:
        """Return the value of `runs.checkpoint`: name and random id of a checkpoint."""
        return f"{checkpoint.rpartition('/')[2]} {checkpoint_id(self.output.spark, checkpoint)}"

    def _score_new(self, target: Target) -> Counts:
        """Append the images that the checkpoint has not seen; return their counts."""
        source, scoring, output, columns = self.source, self.scoring, target.output, self._columns()
        known = self._self_check(output)
        tables.ensure_image_scores(output, columns, scoring.name, scoring.fingerprint, self_check=known)
        counts = Counts(safe=None if self.policy is None else 0) + self._stream(target, columns)
        counts += Counts(images=self._account_for_skipped(target, counts))
        if (listed := source.left_over(output.table(IMAGE_SCORES))) is not None:
            self._rows(listed, columns, output).writeTo(output.name(IMAGE_SCORES)).append()
            counts = count_run(output, self.run_id, self.policy, counts.timings)
        return counts

    def _stream(self, target: Target, columns: StructType) -> Counts:
        """Append the new images micro-batch by micro-batch; return their counts.

        If a store fails to return a file, however often Spark tries its task, the stream goes on without the
        file. It costs its own row and not the job: `reconcile` adds the row.
        """
        source = self.source

        def write(listed: DataFrame) -> Counts:
            return _write(self._rows(listed, columns, target.output, is_counted=True), target)

        try:
            return write(source.stream(self.limit))
        except StreamingQueryException as error:
            if source.file_column is None:
                raise  # nothing would tell which files were skipped
            if not is_of_a_file(error, source.uri):
                raise
            sys.stderr.write(f"nsfw-spark: going on without the files that cannot be read: {reason(error)}\n")
        counts = write(source.stream(self.limit, skip_unreadable=True))
        return count_run(target.output, self.run_id, self.policy, counts.timings)

    def _account_for_skipped(self, target: Target, counts: Counts) -> int:
        """Add a row for each file that Spark listed and skipped; return how many."""
        spark, checkpoint = self.output.spark, target.checkpoint
        check_still_there(spark, checkpoint)
        before = last_accounted_batch(self.output, self.checkpoint_column(checkpoint))
        if self.source.file_column is None or before >= last_batch(spark, checkpoint):
            return 0
        of_model = {
            "model": self.scoring.name,
            "model_fingerprint": self.scoring.fingerprint,
            "run_id": self.run_id,
            "scored_at": datetime.now(UTC),
        }
        return account_for_skipped(
            target.output,
            listed_files(spark, checkpoint, after_batch=before),
            self.source.file_column,
            max_bytes=min(self.options.max_bytes, MOST_BYTES),
            num_rows=counts.images,
            row=of_model,
        )

    def _rescored(self, listed: DataFrame) -> DataFrame:
        return self._rows(listed, self._columns(), self.output)

    def _check_policy(self, output: Output) -> None:
        if self.policy is not None:
            models = self.scoring.spec.models if isinstance(self.scoring, ImageScoring) else [self.scoring]
            classes = {name for model in models for name in model.card.head.classes}
            filtered.check_filter(output, self.policy, self._columns(), classes)

    def _columns(self) -> StructType:
        """Return the columns of image_scores that this run fills."""
        scores, keep_content = self.scoring.scores, self.options.keep_content
        return schema.image_scores(self.source.columns, scores, keep_content=keep_content)

    def _self_check(self, output: Output) -> SelfCheck | None:
        """Return the model's result for the built-in test image, as image_scores knows it.

        For a table without rows an executor computes it, and all executors must agree with that one. If they
        did not, the table still has no rows, and the value may be wrong: then an executor computes it again.
        """
        known = tables.self_check(output)
        if isinstance(self.scoring, VectorScoring):
            return known
        if known is not None and not output.table(IMAGE_SCORES).isEmpty():
            return known
        return ask_executor(output.spark, self.scoring.spec, self.scoring.fingerprint)

    def _rows(
        self, listed: DataFrame, columns: StructType, output: Output, *, is_counted: bool = False
    ) -> DataFrame:
        """Return listed images as rows of image_scores, which the executors score when Spark writes them."""
        on_executors = [column for column in columns if column.name not in schema.MODEL.names]
        result = StructType([*on_executors, schema.TIMINGS])
        scoring = self.scoring.expecting(tables.self_check(output))
        rows = score_listed(listed, self.source.reader, scoring, result)
        if is_counted:
            rows = rows.observe(OBSERVATION, *counting_columns(self.policy))
        of_model = model_columns(self.scoring.name, self.scoring.fingerprint, self.run_id)
        return rows.withColumns(of_model).select(columns.names)


def _write(scored: DataFrame, target: Target) -> Counts:
    """Append to image_scores with Delta's streaming sink, and wait for the end."""
    writer = (
        scored.writeStream.format("delta")
        .outputMode("append")
        .queryName("nsfw-spark: score")
        .option("checkpointLocation", target.checkpoint)
        .trigger(availableNow=True)
    )
    name, output = target.output.name(IMAGE_SCORES), target.output
    query = writer.toTable(name) if output.is_schema else writer.start(output.path(IMAGE_SCORES))
    try:
        return follow(query)
    except StreamingQueryException:
        check_still_there(scored.sparkSession, target.checkpoint)
        raise
