"""Files that vanish or change after Spark has listed them: one row each, true to the bytes that were read."""

from __future__ import annotations

import hashlib
import os
from datetime import datetime
from pathlib import Path
from typing import Final

from pyspark.sql import SparkSession

from tests.cluster.conftest import within
from tests.conftest import png
from tests.spark.conftest import Run, Tables, image_id, meanwhile, write_files

DEADLINE_SECONDS: Final = 300
BATCH: Final = 4
NEW: Final = {
    "longer.png": png(120, 90, seed=50),
    "shorter.png": png(9, 9, seed=51),
    "broken.png": b"no image",
}
OLD: Final = {f"{i}.png": png(seed=i) for i in range(3 * BATCH)}


def change(images: Path) -> None:
    (images / "vanishes.png").unlink()
    write_files(images, NEW)


def test_files_that_vanish_or_change_after_they_were_listed_are_one_row_each(
    spark: SparkSession, score: Run, tmp_path: Path
) -> None:
    late = dict.fromkeys([*NEW, "vanishes.png"], png(seed=40))
    images, output = write_files(tmp_path / "images", {**OLD, **late}), tmp_path / "out"
    for seconds, name in enumerate([*OLD, *late]):  # the oldest come first
        os.utime(images / name, (1e9 + seconds, 1e9 + seconds))

    def change_in_time() -> None:
        log = "_checkpoints/image_scores-*/sources/0/0"
        assert within(DEADLINE_SECONDS, lambda: list(output.glob(log)))
        change(images)

    with meanwhile(change_in_time):
        summary = score(images, output, files_per_batch=BATCH)
    rows = Tables(spark, output).rows("image_scores")
    assert set(rows) == {image_id(images / name) for name in {**OLD, **late}}
    assert summary.counts.images == len(rows)
    gone = rows[image_id(images / "vanishes.png")]
    assert (gone.status, gone.nsfw_score, gone.length) == ("missing", None, None)
    for name, content in NEW.items():
        row, modified = rows[image_id(images / name)], (images / name).stat().st_mtime_ns // 10**6
        assert row.status == ("undecodable" if name == "broken.png" else "ok")
        assert (row.length, row.content_sha256) == (len(content), hashlib.sha256(content).hexdigest())
        assert row.modification_time == datetime.fromtimestamp(modified / 1000)  # noqa: DTZ006 - as Spark
    assert score(images, output, rescore="changed").counts.images == 0, (
        "the rows are of the files as they are"
    )
    write_files(images, {"broken.png": png(seed=60)})
    assert score(images, output).counts.images == 0
    assert score(images, output, rescore="changed").counts.images == 1
    assert score(images, output, prune=True, prune_limit=1).counts.images == 0
    after = Tables(spark, output).rows("image_scores")
    assert {Path(key).name for key in rows.keys() - after.keys()} == {"vanishes.png"}
    assert {row.status for row in after.values()} == {"ok"}
