"""What does `filter` cost, against the plain Spark SQL that writes the same rows?

Makes `image_scores` with SQL, without a model. Then measures two ways, interleaved, in several rounds. Each
changes the policy, so that it rewrites all three tables:

- `filter`: `nsfw-spark filter` with its counts and its row in `runs`, without Spark's start;
- `sql`: three times `CREATE OR REPLACE TABLE … USING DELTA AS SELECT … WHERE`, one after another, with
  Spark's own settings, into other tables.

Rows have no embeddings by default: with little data in a row, the work besides writing counts most. Rows of
the default model carry 768 floats (--dim 768: 3 GB for a million rows).

    python bench/filter.py [--rows 1000000] [--files 200] [--dim 0] [--rounds 3]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from pyspark.sql import SparkSession
from pyspark.sql.types import StructType

from nsfw_spark.options import JobOptions, job_options
from nsfw_spark.spark import schema, tables
from nsfw_spark.spark.pipeline import filter_job
from nsfw_spark.spark.session import get_session
from nsfw_spark.spark.tables import FILTERED, IMAGE_SCORES, Output

_ROW: Final = """
SELECT 'file:/data/photos/' || lpad(id % 1000, 4, '0') || '/' || md5(string(id)) || '.jpg' AS image_id,
       20000 + hash(id) % 10000 AS length, sha2(string(id), 256) AS content_sha256,
       640 AS width, 480 AS height, 'JPEG' AS format, status,
       if(status = 'ok', NULL, 'damaged: the data end early') AS error,
       if(status = 'ok', pow(u, 4), NULL) AS nsfw_score, NULL AS class_scores,
       {embedding} AS embedding, 'laion-vit-l-14' AS model, 'f1d0f1d0f1d0f1d0' AS model_fingerprint,
       'bench' AS run_id, timestamp'2026-01-01' AS scored_at,
       timestamp_seconds(1700000000 + id) AS modification_time
FROM (SELECT id, rand(1) AS u, if(rand(2) < 0.01, 'undecodable', 'ok') AS status
      FROM range(0, {rows}, 1, {files}))
"""
"""One row in a hundred has no score; 6 in 7 of the others score below 0.5, like photographs."""
_EMBEDDING: Final = "transform(sequence(1, {dim}), i -> cast(sin(id * i) / sqrt({dim} / 2) AS float))"
_SQL: Final = {
    "safe_images": "status = 'ok' AND nsfw_score < {limit}",
    "flagged_images": "status = 'ok' AND NOT nsfw_score < {limit}",
    "quarantined_images": "status <> 'ok'",
}
_OURS: Final = ("spark.sql.files.openCostInBytes", "spark.sql.files.minPartitionNum")
_MIB: Final = 1 << 20


def main() -> None:
    """Run the benchmark and print its result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--files", type=int, default=200, help="files of image_scores")
    parser.add_argument("--dim", type=int, default=0, help="floats in an embedding; 0 for no embeddings")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work-dir", type=Path, default=Path(tempfile.gettempdir()) / "nsfw-spark-bench")
    given = parser.parse_args()

    spark = get_session()
    out = given.work_dir / "filter"
    shutil.rmtree(out, ignore_errors=True)
    _make_scores(spark, out, given)
    ways = {"sql": _sql, "filter": _filter}
    rounds = []
    for number in range(given.rounds + 1):  # the first makes the tables and is reported apart
        seconds = {name: _seconds(way, spark, out, 0.4 + 0.05 * number) for name, way in ways.items()}
        sys.stderr.write(json.dumps(seconds) + "\n")
        rounds.append(seconds)
    print(json.dumps(_result(given, spark, out, rounds), indent=2))


def _make_scores(spark: SparkSession, out: Path, given: argparse.Namespace) -> None:
    columns = StructType([schema.IMAGE_ID, *schema.SCORE, *schema.MODEL]).add(
        "modification_time", "timestamp"
    )
    output = Output.of(spark, _options(out, 0.5))
    tables.ensure_image_scores(output, columns, "laion-vit-l-14", "f1d0f1d0f1d0f1d0")
    embedding = _EMBEDDING.format(dim=given.dim) if given.dim else "NULL"
    rows = spark.sql(_ROW.format(rows=given.rows, files=given.files, embedding=embedding))
    typed = rows.select([rows[field.name].cast(field.dataType).alias(field.name) for field in columns])
    spark.conf.set("spark.databricks.delta.autoCompact.enabled", "false")  # it would merge the --files
    typed.writeTo(output.name(IMAGE_SCORES)).option("optimizeWrite", "false").append()
    spark.conf.unset("spark.databricks.delta.autoCompact.enabled")


def _options(out: Path, threshold: float) -> JobOptions:
    return job_options({"output": str(out), "threshold": threshold})


def _seconds(
    way: Callable[[SparkSession, Path, float], None], spark: SparkSession, out: Path, threshold: float
) -> float:
    started = time.perf_counter()
    way(spark, out, threshold)
    return time.perf_counter() - started


def _filter(spark: SparkSession, out: Path, threshold: float) -> None:  # noqa: ARG001 - both ways have one signature
    filter_job(_options(out, threshold))


def _sql(spark: SparkSession, out: Path, threshold: float) -> None:
    ours = {key: spark.conf.get(key) for key in _OURS}
    for key in _OURS:
        spark.conf.unset(key)
    for table, condition in _SQL.items():
        spark.sql(
            f"CREATE OR REPLACE TABLE delta.`{out}/sql/{table}` USING DELTA AS SELECT * "  # noqa: S608
            f"FROM delta.`{out}/{IMAGE_SCORES}` WHERE {condition.format(limit=f'{threshold}f')}"
        )
    for key, value in ours.items():
        spark.conf.set(key, value)


def _result(
    given: argparse.Namespace, spark: SparkSession, out: Path, rounds: list[dict[str, float]]
) -> dict[str, Any]:
    ratios = [each["filter"] / each["sql"] for each in rounds[1:]]
    return {
        "benchmark": "filter",
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "versions": {library: metadata.version(library) for library in ("pyspark", "delta-spark")},
        "rows": given.rows,
        "dim": given.dim,
        "seconds": rounds[1:],
        "seconds_from_nothing": rounds[0],
        "filter_over_sql": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)},
        "tables": {name: _describe(spark, out / name) for name in (IMAGE_SCORES, *FILTERED)},
        "tables_of_sql": {name: _describe(spark, out / "sql" / name) for name in FILTERED},
    }


def _describe(spark: SparkSession, table: Path) -> dict[str, Any]:
    detail = spark.sql(f"DESCRIBE DETAIL delta.`{table}`").collect()[0]
    rows = spark.read.format("delta").load(str(table)).count()
    return {"rows": rows, "files": detail.numFiles, "mib": round(detail.sizeInBytes / _MIB, 1)}


if __name__ == "__main__":
    main()
