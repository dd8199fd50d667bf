"""What a run does to image_scores: scores what is new, what changed, or all again.

Each step ends in commits that the next run can tell from their absence, so that a run may be killed anywhere.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pyspark.errors import StreamingQueryException
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
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
from nsfw_spark.spark.reconcile import account_for_skipped
from nsfw_spark.spark.rescore import check_comparable, prune, rescore_changed
from nsfw_spark.spark.runs import account_for_rescoring, count_run
from nsfw_spark.spark.scoring import ImageScoring, VectorScoring, score_listed
from nsfw_spark.spark.sources import DeltaImages, Limit, ListedFiles, Source, check_ids
from nsfw_spark.spark.tables import IMAGE_SCORES, Output
from nsfw_spark.spark.udf import model_columns
from nsfw_spark.spark.worker import ask_executor


@dataclass(frozen=True)
class ScoringJob:
    """The part of one run that scores."""

    options: JobOptions
    source: Source
    scoring: ImageScoring | VectorScoring
    policy: Policy
    """What the rows are counted by."""
    output: Output
    limit: Limit
    run_id: str
    command: str
    """`run` or `score`."""

    def check(self) -> None:
        """Say what is wrong before anything is written.

        Raises:
            ConfigError: The policy cannot be applied, or lets an image without a score pass.
            InputError: Ids are null or repeated.
        """
        if not self.output.exists(IMAGE_SCORES):  # else no other run may change it meanwhile
            filtered.check_filter(self.output, self.policy, self._columns())
        check_ids(self.source)

    def score(self) -> tuple[Counts, str]:
        """Bring image_scores up to date, as the options say; return what was added, and the checkpoint."""
        if follows := self.options.rescore == "changed" or self.options.prune:
            check_comparable(self.source, "--prune" if self.options.prune else "--rescore changed")
        begins_again = self.options.rescore == "all" and self.output.exists(IMAGE_SCORES)
        counts, checkpoint = self.score_all_again() if begins_again else self.score_new(self.output)
        return self.follow_changes(counts) if follows else counts, checkpoint

    def score_new(self, target: Output, *, generation: str | None = None) -> tuple[Counts, str]:
        """Append to a target's image_scores what its checkpoint has not seen; return that too."""
        source, scoring, columns = self.source, self.scoring, self._columns()
        tables.check_output(target, columns, scoring.name, scoring.fingerprint)
        filtered.check_filter(target, self.policy, columns)
        if generation is None:
            generation = rescore.generation(target)
        checkpoint = find_checkpoint(target, source, generation)
        check_holds(target, checkpoint)
        known, name, fingerprint = self._self_check(target), scoring.name, scoring.fingerprint
        tables.ensure_image_scores(target, columns, name, fingerprint, self_check=known)
        counts = self._stream(target, checkpoint, columns)
        counts += Counts(images=self._account_for_skipped(target, checkpoint, counts))
        if isinstance(source, DeltaImages) and source.has_changed():
            counts = self._score_left_over(source, target, columns, counts)
        return counts, checkpoint

    def _stream(self, target: Output, checkpoint: str, columns: StructType) -> Counts:
        """Append what is new, micro-batch by micro-batch; return what that was.

        A file that a store does not give out, however often Spark tries its task, is passed over, so that it
        costs its own row and not the job: `reconcile` finds it.
        """
        source = self.source

        def write(listed: DataFrame) -> Counts:
            scored = self._scored(listed, columns, target)
            counted = scored.observe(OBSERVATION, *counting_columns(self.policy))
            rows = self._with_model(counted).select(columns.names)
            return _write(rows, target, checkpoint, self.origin())

        try:
            return write(source.stream(self.limit))
        except StreamingQueryException as error:
            if not isinstance(source, ListedFiles) or source.file_column is None:
                raise  # nobody would know which files were passed over
            if not is_of_a_file(error, source.uri):
                raise
            sys.stderr.write(f"nsfw-spark: going on without what cannot be read: {reason(error)}\n")
        counts = write(source.stream_without_unreadable(self.limit))
        return count_run(target, self.run_id, self.policy, counts.timings)

    def _score_left_over(
        self, source: DeltaImages, target: Output, columns: StructType, counts: Counts
    ) -> Counts:
        """Append what the stream of a changed Delta table passed over; return the counts with these."""
        listed = source.left_over(target.table(IMAGE_SCORES))
        rows = self._with_model(self._scored(listed, columns, target)).select(columns.names)
        writer = rows.writeTo(target.name(IMAGE_SCORES))
        writer.option("userMetadata", json.dumps(self.origin())).append()
        return count_run(target, self.run_id, self.policy, counts.timings)

    def _account_for_skipped(self, target: Output, checkpoint: str, counts: Counts) -> int:
        """Add a row for each file that Spark listed and passed over; return how many."""
        check_still_there(self.output.spark, checkpoint)
        before = last_accounted_batch(self.output, self.checkpoint_column(checkpoint))
        if self.source.file_column is None or before >= last_batch(self.output.spark, checkpoint):
            return 0
        return account_for_skipped(
            target,
            checkpoint,
            self.source.file_column,
            after_batch=before,
            max_bytes=min(self.options.max_bytes, MOST_BYTES),
            num_rows=counts.images,
            row=self.model_columns(),
            user_metadata=json.dumps(self.origin()),
        )

    def score_all_again(self) -> tuple[Counts, str]:
        """Score all into a table apart, whose rows then replace those of image_scores in one commit."""
        fingerprint = self.scoring.fingerprint
        if rescore.is_adopted(self.output, fingerprint):
            counts, checkpoint = self.score_new(self.output)
        else:
            generation = rescore.next_generation(self.output, fingerprint)
            apart = rescore.apart(self.output, generation)
            counts, checkpoint = self.score_new(apart, generation=generation)
            account_for_rescoring(apart, self.output, self.run_id)
            rescore.adopt(apart, self.output, generation)
        rescore.forget(self.output)
        return counts, checkpoint

    def follow_changes(self, counts: Counts) -> Counts:
        """Score changed files again, delete the rows of files that are gone; return the counts with these."""
        source = check_comparable(self.source, "--prune" if self.options.prune else "--rescore changed")
        if self.options.rescore == "changed":
            columns = self.output.table(IMAGE_SCORES).schema
            ours = self._columns()

            def score(listed: DataFrame) -> DataFrame:
                known = self._with_model(self._scored(listed, ours, self.output)).select(ours.names)
                absent = [field for field in columns if field.name not in ours.names]
                nulls = {field.name: F.lit(None).cast(field.dataType) for field in absent}
                return known.withColumns(nulls).select(columns.names)

            if rescore_changed(self.output, source, score, json.dumps(self.origin())):
                counts = count_run(self.output, self.run_id, self.policy, counts.timings)
        if self.options.prune:
            num_gone = prune(self.output, source)
            sys.stderr.write(f"nsfw-spark: --prune deleted {num_gone:,} rows of files that are gone\n")
        return counts

    def _columns(self) -> StructType:
        """Return the columns of image_scores that this source and these options ask for."""
        scores, keep_content = self.scoring.scores, self.options.keep_content
        return schema.image_scores(self.source.columns, scores, keep_content=keep_content)

    def _self_check(self, target: Output) -> SelfCheck | None:
        """Return what the model of a target's rows made of the built-in test image.

        Where there are none yet, an executor says what its model makes of it; all others must agree. Where
        they did not, the table has no rows still, and what it says may be the odd one's: it is asked again.
        """
        known = tables.self_check(target)
        if isinstance(self.scoring, VectorScoring):
            return known
        if known is not None and not target.table(IMAGE_SCORES).isEmpty():
            return known
        return ask_executor(self.output.spark, self.scoring.spec, self.scoring.fingerprint)

    def _scored(self, listed: DataFrame, columns: StructType, target: Output) -> DataFrame:
        """Return those columns of a target's image_scores that the executors fill, and the timings."""
        theirs = [field for field in columns if field.name not in schema.MODEL.names]
        result = StructType([*theirs, schema.TIMINGS])
        scoring = self.scoring.expecting(tables.self_check(target))
        return score_listed(listed, self.source.reader, scoring, result)

    def _with_model(self, scored: DataFrame) -> DataFrame:
        return scored.withColumns(model_columns(self.scoring.name, self.scoring.fingerprint, self.run_id))

    def checkpoint_column(self, checkpoint: str) -> str:
        """Return what `runs` says of a checkpoint: its name, and which of that name it was."""
        return f"{checkpoint.rpartition('/')[2]} {checkpoint_id(self.output.spark, checkpoint)}"

    def origin(self) -> dict[str, str]:
        """Return what `runs` says of this run even if it does not live to say so: part of each commit."""
        return {"command": self.command, "input": self.source.uri}

    def model_columns(self) -> dict[str, Any]:
        """Return the values of `schema.MODEL` for rows that no executor made."""
        return {
            "model": self.scoring.name,
            "model_fingerprint": self.scoring.fingerprint,
            "run_id": self.run_id,
            "scored_at": datetime.now(UTC),
        }


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
    name = output.name(IMAGE_SCORES)
    query = writer.toTable(name) if output.is_schema else writer.start(output.path(IMAGE_SCORES))
    try:
        return follow(query)
    except StreamingQueryException:
        check_still_there(scored.sparkSession, checkpoint)
        raise
