"""One Spark for the whole tier, the images that it reads, and how a job is run.

Without pyspark or Java the tier is left out; where FAIL_WITHOUT_SPARK is 1, it fails instead.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
import yaml

from tests import java
from tests.conftest import jpeg, png
from tests.fakes import card_content

if TYPE_CHECKING:  # this file is read by plain `pytest` too, where pyspark may be absent
    from delta import DeltaTable
    from pyspark.sql import DataFrame, Row, SparkSession

    from nsfw_spark.spark.summary import RunSummary

_HERE: Final = Path(__file__).parent
if java.ABSENT and not java.MUST_RUN:
    collect_ignore_glob = ["test_*.py"]

_WARNINGS: Final = [
    # pyspark leaves the sockets of toLocalIterator and collect to the garbage collector.
    "ignore:unclosed <socket:ResourceWarning",
    "ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning",
]

GOOD: Final = {
    "plain.png": png(seed=1),
    "photo.jpg": jpeg(seed=2),
    "deep/er/name with spaces.png": png(seed=3),
    "per%20cent.png": png(seed=4),
    "100%.png": png(seed=5),
    "hash#1.png": png(seed=6),
    "one+one.png": png(seed=7),
    "it's.png": png(seed=8),
    'say "hi".png': png(seed=9),
    "größe-日本.png": png(seed=10),
}
"""Files that have a score, by name."""

BAD: Final = {
    "empty.jpg": (b"", "undecodable", "0 bytes"),
    "empty %2B+#'ü.jpg": (b"", "undecodable", "0 bytes"),
    "truncated.jpg": (jpeg()[:400], "undecodable", "damaged"),
    "text.jpg": (b"Only the name says that it is a photograph.", "undecodable", "not an image"),
    "document.pdf": (b"%PDF-1.7 ...", "unsupported", "PDF"),
}
"""Files that have none, by name: content, status, and a word of the error."""

THRESHOLD: Final = 0.002
"""About half of GOOD score less."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let pass what Spark, not this project, warns of."""
    for item in items:
        if _HERE in item.path.parents:
            for warning in _WARNINGS:
                item.add_marker(pytest.mark.filterwarnings(warning))


def pytest_report_header() -> str | None:
    """Say why the tier is left out."""
    return f"tests/spark: left out, {' and '.join(java.ABSENT)} not installed" if java.ABSENT else None


@pytest.fixture(scope="session", autouse=True)
def _need_spark() -> None:
    java.need_spark()


@pytest.fixture(scope="session")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkSession]:
    """The session that the command line makes, on two cores, with its warehouse out of the repository."""
    from nsfw_spark.spark.session import get_session

    warehouse = tmp_path_factory.mktemp("warehouse")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPARK_CONF_DIR", str(java.write_defaults(warehouse, {})))
        patch.setattr(os, "cpu_count", lambda: 2)
        settings = {
            "spark.sql.warehouse.dir": warehouse,
            "spark.ui.enabled": "false",
            # Delta remembers 10,000 tables for an hour; no user has so many, here each test has five.
            "spark.databricks.delta.delta.log.cacheSize": 20,
        }
        patch.setenv("PYSPARK_SUBMIT_ARGS", java.arguments({**java.INTERPRETED, **settings}))
        session = get_session()
    yield session
    session.stop()


def write_card(path: Path, seed: int = 1) -> str:
    """Write the card of a model that costs nothing; another seed is another model."""
    content = card_content(name=path.stem, encoder={"weights": {"random": seed}})
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="session")
def card_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A card file whose model gives reproducible scores, without torch."""
    return write_card(tmp_path_factory.mktemp("card") / "sampled.yaml")


@pytest.fixture(scope="session")
def other_card_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A card file like `card_file`, of another model."""
    return write_card(tmp_path_factory.mktemp("card") / "other.yaml", seed=2)


def write_files(folder: Path, files: dict[str, bytes]) -> Path:
    """Write files, by their names in the folder; return the folder."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def write_images(folder: Path) -> Path:
    """Write GOOD and BAD, and two files that Spark's listing leaves out."""
    hidden = {".hidden.jpg": jpeg(), "_temporary/half.jpg": jpeg()}
    bad = {name: content for name, (content, _, _) in BAD.items()}
    return write_files(folder, {**GOOD, **bad, **hidden})


Run = Callable[..., "RunSummary"]


@pytest.fixture(scope="session")
def run(spark: SparkSession, card_file: str) -> Run:  # noqa: ARG001 - the job finds it
    """Return a function that runs the job: `run(input, output, **options)`."""
    return runner(card_file, with_filter=True)


@pytest.fixture(scope="session")
def score(spark: SparkSession, card_file: str) -> Run:  # noqa: ARG001 - the job finds it
    """Return a function that only scores, which takes half the time: `score(input, output, **options)`."""
    return runner(card_file, with_filter=False)


def runner(card_file: str, *, with_filter: bool) -> Run:
    from nsfw_spark.options import job_options
    from nsfw_spark.spark.pipeline import run_job

    def run(input_: Path, output: Path | str, **options: Any) -> RunSummary:  # noqa: ANN401
        defaults = {"model": card_file, "allow_random_weights": True, "threshold": THRESHOLD}
        given = {**defaults, "input": str(input_), "output": str(output), **options}
        return run_job(job_options(given), with_filter=with_filter)

    return run


@pytest.fixture(scope="session")
def filter_(spark: SparkSession) -> Run:  # noqa: ARG001 - the job finds it
    """Return a function that only filters: `filter_(output, threshold)`."""
    from nsfw_spark.options import job_options
    from nsfw_spark.spark.pipeline import filter_job

    def filter_(output: Path, threshold: float) -> RunSummary:
        return filter_job(job_options({"output": str(output), "threshold": threshold}))

    return filter_


class Tables:
    """Reads the tables of an output directory."""

    def __init__(self, spark: SparkSession, output: Path) -> None:
        self._spark, self._output = spark, output

    def frame(self, table: str, version: int | None = None) -> DataFrame:
        reader = self._spark.read.format("delta")
        if version is not None:
            reader = reader.option("versionAsOf", version)
        return reader.load(f"{self._output}/{table}")

    def rows(self, table: str, version: int | None = None) -> dict[str, Row]:
        """Return the rows by image_id, of which none may be there twice."""
        rows = self.frame(table, version).collect()
        by_id = {row.image_id: row for row in rows}
        assert len(by_id) == len(rows), f"{table} has an image twice"
        return by_id

    def operations(self, table: str) -> list[str]:
        """Return what the table's commits were, oldest first."""
        history = self._spark.sql(f"DESCRIBE HISTORY delta.`{self._output}/{table}`")
        return [row.operation for row in history.orderBy("version").collect()]

    def delta(self, table: str) -> DeltaTable:
        """Return the table as somebody else would change it."""
        from delta import DeltaTable

        return DeltaTable.forPath(self._spark, f"{self._output}/{table}")


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with GOOD and BAD; read only."""
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="session")
def scored(run: Run, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run over `images`; read only: to change one, take `output`."""
    output = tmp_path_factory.mktemp("scored") / "out"
    run(images, output)
    return output


@pytest.fixture
def output(scored: Path, tmp_path: Path) -> Path:
    """A copy of `scored`, the test's own: Delta's paths are relative, so a copied table is a table."""
    return shutil.copytree(scored, tmp_path / "out")


@pytest.fixture
def tables(spark: SparkSession, output: Path) -> Tables:
    """The tables of `output`."""
    return Tables(spark, output)


def image_id(path: Path) -> str:
    """Return the image_id of a local file: its URI as Hadoop writes it."""
    return f"file:{path}"


@contextmanager
def meanwhile(act: Callable[[], object]) -> Iterator[None]:
    """Do something in a thread while something else goes on; it must have been done."""
    errors: list[BaseException] = []

    def guarded() -> None:
        try:
            act()
        except BaseException as error:  # noqa: BLE001 - whatever it is, the test fails by it
            errors.append(error)

    thread = threading.Thread(target=guarded)
    thread.start()
    try:
        yield
    finally:
        thread.join()
    assert not errors, errors
