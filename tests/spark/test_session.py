"""The session: the settings that it gets by the number of slots, and locations without a connector."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from nsfw_spark.errors import ConfigError

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

LISTING = "spark.sql.sources.parallelPartitionDiscovery.parallelism"
SNAPSHOT = "spark.databricks.delta.snapshotPartitions"
SHUFFLE = "spark.sql.shuffle.partitions"


def test_small_jobs_have_few_tasks_and_what_is_set_stays(spark: SparkSession) -> None:
    from nsfw_spark.spark.session import _tune

    other = spark.newSession()  # of a cluster: nobody has set these
    for name in (LISTING, SNAPSHOT, SHUFFLE):
        other.conf.unset(name)
    other.conf.set(SHUFFLE, "77")
    _tune(other)
    assert [other.conf.get(name) for name in (LISTING, SNAPSHOT, SHUFFLE)] == ["6", "2", "77"]


def test_a_location_without_its_connector_is_an_error_that_names_the_jars(
    spark: SparkSession,  # noqa: ARG001
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from nsfw_spark.spark import session
    from nsfw_spark.spark.session import get_session

    get_session("/photos", "file:/photos", "main.safety", "s3a://bucket/photos")
    has = session.has_file_system  # as if this session had not got the jars for S3
    monkeypatch.setattr(session, "has_file_system", lambda spark, name: name != "s3a" and has(spark, name))
    with pytest.raises(
        ConfigError, match=r"connector for s3a://.*org\.apache\.hadoop:hadoop-aws:3\.5\.0,.*bundle"
    ):
        get_session("/photos", "s3a://bucket/out")
    with pytest.raises(ConfigError, match=r"connector for gs://, which gs://b/x needs; .*docs/stores\.md$"):
        get_session("gs://b/x")
