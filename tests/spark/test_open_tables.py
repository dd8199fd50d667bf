"""Open tables: a Delta reader without Spark sees the same rows as Spark."""

from __future__ import annotations

from pathlib import Path

import pytest
from deltalake import DeltaTable
from pyspark.sql import SparkSession

from tests.spark.conftest import Tables

TABLES = ("image_scores", "safe_images", "flagged_images", "quarantined_images", "runs")


@pytest.mark.parametrize("table", TABLES)
def test_another_delta_reader_sees_the_same_table(spark: SparkSession, scored: Path, table: str) -> None:
    with_spark = Tables(spark, scored).frame(table)
    without = DeltaTable(f"{scored}/{table}").to_pyarrow_table()
    assert without.column_names == with_spark.columns
    assert without.num_rows == with_spark.count() > 0


def test_another_delta_reader_sees_the_same_scores(spark: SparkSession, scored: Path) -> None:
    names = ["image_id", "status", "nsfw_score", "error", "embedding"]
    without = DeltaTable(f"{scored}/image_scores").to_pyarrow_table(columns=names).to_pylist()
    with_spark = Tables(spark, scored).frame("image_scores").select(*names).collect()
    by_id = {row.image_id: row.asDict() for row in with_spark}
    assert {row["image_id"]: row for row in without} == by_id
