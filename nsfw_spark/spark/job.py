"""What a run does to image_scores: score the new images, the changed ones, or all of them again.

In: a source, a scorer and an output. Out: rows in image_scores, and their counts. Each step ends in a commit:
a killed run resumes after its last one. This module does not write the filtered tables.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from datetime import UTC, datetime

from pyspark.errors import StreamingQueryException
from pyspark.sql import DataFrame
from pyspark.sql.types import StructType

from nsfw_spark.errors import InputError
from nsfw_spark.options import JobOptions
from nsfw_spark.readers.chunk import MOST_BYTES
from nsfw_spark.scorer import Timings
from nsfw_spark.self_check import SelfCheck
from nsfw_spark.spark import filtered, rescore, schema, tables
from nsfw_spark.spark.checkpoints import (
    begin_empty_batch,
    check_still_there,
    checkpoint_id,
    find_checkpoint,
    is_known,
    last_accounted_batch,
    last_batch,
    last_committed_batch,
    unwritten_batch,
)
from nsfw_spark.spark.faults import check_holds, may_be_of_files, reason, text_of, written_batch
from nsfw_spark.spark.follow import follow
from nsfw_spark.spark.policy import Policy
from nsfw_spark.spark.progress import OBSERVATION, Counts, counting_columns
from nsfw_spark.spark.reconcile import account_for_skipped, listed_files, readable_files
from nsfw_spark.spark.runs import count_run, record_rescored
from nsfw_spark.spark.scoring import ImageScoring, score_listed
from nsfw_spark.spark.sources import Limit, ListedFiles, Source, check_ids, check_opened
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
        """Refuse what is wrong with the policy, the ids or the input, before the run takes the lock."""
        if self.source.lack and (self.options.rescore == "all" or not self._is_known()):
            raise InputError(self.source.lack)
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
        check_holds(output, checkpoint, is_repair=self.options.rescore == "changed")
        return Target(output, generation, checkpoint)

    def score(self, target: Target) -> Counts:
        """Bring image_scores up to date, as the options say; return the counts of the new rows."""
        timings = self._score_new(target)
        if target.output != self.output:
            record_rescored(self.output, target.output, self.run_id)
            rescore.replace_image_scores(target.output, self.output, target.generation)
        rescore.delete_staging(self.output, None if self.options.rescore == "all" else target.generation)
        if isinstance(self.source, ListedFiles):
            listed = rescore.Files(self.source, self.limit, self._rescored)
            rescore.follow_changes(self.output, listed, self.options, self.run_id)
        # Not what the stream observed: Spark counts the rows of a task twice if it loses an executor.
        return count_run(self.output, self.run_id, self.policy, timings)

    def checkpoint_column(self, checkpoint: str) -> str:
        """Return the value of `runs.checkpoint`: name and random id of a checkpoint."""
        return f"{checkpoint.rpartition('/')[2]} {checkpoint_id(self.output.spark, checkpoint)}"

    def _score_new(self, target: Target) -> Timings:
        """Append the images that the checkpoint has not seen; return what the tasks spent."""
        source, scoring, output, columns = self.source, self.scoring, target.output, self._columns()
        if last_batch(output.spark, target.checkpoint) < 0:
            check_opened(source)
        known = self._self_check(output)
        tables.ensure_image_scores(output, columns, scoring.name, scoring.fingerprint, self_check=known)
        timings, is_cut_off = Timings(), False
        try:
            timings = self._stream(target, columns)
        except StreamingQueryException as error:
            if not (is_cut_off := source.is_cut_off(text_of(error))):
                raise
            said = f"the log of {source.uri} no longer tells what is new; comparing all ids"
            sys.stderr.write(f"nsfw-spark: {said}\n")
        self._account_for_skipped(target)
        version = tables.last_version(output, IMAGE_SCORES) or 0
        if (listed := source.left_over(output.table(IMAGE_SCORES), is_cut_off=is_cut_off)) is not None:
            writer = output.writer(IMAGE_SCORES, self._rows(listed, columns, output))
            writer.options(**tables.only_once(version)).append()
        return timings

    def _stream(self, target: Target, columns: StructType) -> Timings:
        """Append the new images micro-batch by micro-batch; return what the tasks spent.

        A file that Spark can neither list nor read costs its own row and not the job: see `_write_without`.
        """
        while True:
            rows = self._rows(self.source.stream(self.limit), columns, target.output, is_counted=True)
            try:
                return self._write(rows, target).timings
            except StreamingQueryException as error:
                if not (may_be_of_files(error) and self._write_without(target, columns)):
                    raise
                said = f"going on without the files that cannot be read: {reason(error)}"
                sys.stderr.write(f"nsfw-spark: {said}\n")

    def _write(self, scored: DataFrame, target: Target) -> Counts:
        """Append to image_scores with Delta's streaming sink, and wait for the end."""
        spark, name, output = scored.sparkSession, target.output.name(IMAGE_SCORES), target.output
        first_batch = last_committed_batch(spark, target.checkpoint) + 1
        writer = (
            scored.writeStream.format("delta")
            .outputMode("append")
            .queryName(f"nsfw-spark: score, run {self.run_id}")  # a session has one query of a name
            .option("checkpointLocation", target.checkpoint)
            .trigger(availableNow=True)
        )
        output.fence.check()
        query = writer.toTable(name) if output.is_schema else writer.start(output.path(IMAGE_SCORES))
        unit = None
        if isinstance(self.source, ListedFiles):
            unit = "images" if self.source.has_image_files else "files"
        try:
            return follow(query, output.fence, spark, unit=unit, first_batch=first_batch)
        except StreamingQueryException:
            check_still_there(spark, target.checkpoint)
            raise

    def _write_without(self, target: Target, columns: StructType) -> bool:
        """Write the micro-batch that failed, without files that cannot be looked up; return whether it was.

        Spark lists the files of a micro-batch once more, and one that is forbidden fails the micro-batch each
        time. `reconcile` adds the rows of the files that are left out.
        """
        spark, checkpoint, output = self.output.spark, target.checkpoint, target.output
        batch = unwritten_batch(spark, checkpoint)
        if batch is None or self.source.file_column is None or not isinstance(self.source, ListedFiles):
            return False
        number, entry = batch
        if written_batch(output, checkpoint) < number:
            listed = listed_files(spark, checkpoint, after_batch=entry - 1)
            files = readable_files(spark, listed, self.source.max_bytes)
            if not files:
                return False  # the whole store is away
            query, next_ = checkpoint_id(spark, checkpoint), str(number + 1)
            metadata = json.dumps({"queryId": query, "epochId": next_})
            options = {"txnAppId": query, "txnVersion": next_, "userMetadata": metadata}
            rows = self._rows(self.source.listed_again(files), columns, output)
            output.writer(IMAGE_SCORES, rows).options(**options).append()
        begin_empty_batch(spark, checkpoint, number)
        return True

    def _account_for_skipped(self, target: Target) -> None:
        """Add a row for each file that Spark listed and skipped."""
        spark, checkpoint = self.output.spark, target.checkpoint
        check_still_there(spark, checkpoint)
        before = last_accounted_batch(self.output, self.checkpoint_column(checkpoint))
        if self.source.file_column is None or before >= last_batch(spark, checkpoint):
            return
        of_model = {
            "model": self.scoring.name,
            "model_fingerprint": self.scoring.fingerprint,
            "run_id": self.run_id,
            "scored_at": datetime.now(UTC),
        }
        account_for_skipped(
            target.output,
            listed_files(spark, checkpoint, after_batch=before),
            self.source.file_column,
            max_bytes=min(self.options.max_bytes, MOST_BYTES),
            num_rows=count_run(target.output, self.run_id, None, Timings()).images,
            row=of_model,
        )

    def _rescored(self, listed: DataFrame) -> DataFrame:
        return self._rows(listed, self._columns(), self.output)

    def _is_known(self) -> bool:
        return is_known(self.output, self.source, rescore.generation(self.output))

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
