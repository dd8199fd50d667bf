"""How executors get a model's weights if they do not share the driver's directory.

There are two ways. Each machine downloads missing files from a mirror. Or the driver ships the files through
Spark (`addArtifacts`, on classic clusters `SparkContext.addFile`): Spark sends one copy to each executor
before its first task, and removes it with the executor. On the driver: `deliver`, then `Delivery.send`. In a
Python
worker: `Delivery.received`.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

from pyspark import SparkFiles
from pyspark.sql import SparkSession

from nsfw_spark.errors import WeightsError
from nsfw_spark.model import ModelSpec
from nsfw_spark.model_card import ModelCard, WeightsSource
from nsfw_spark.uris import absolute_uri
from nsfw_spark.weights import locate_weights, obtain_missing


@dataclass(frozen=True)
class ShippedFile:
    """A file that Spark sends to each executor."""

    model: str
    """Name of the card."""
    part: str
    """Part of the model: see `ModelCard.weights_sources`."""
    path: Path
    """Its path on the driver."""
    sha256: str

    @property
    def name(self) -> str:
        """Its name on the executors, unique in their one directory of shipped files."""
        return f"nsfw-spark-{self.sha256[:16]}-{self.path.name}"


@dataclass(frozen=True)
class Delivery:
    """Where an executor gets the weights. Small and picklable: it travels there."""

    model_source: str | None = None
    """URI of a mirror for files that are neither in the model directory nor in the cache."""
    shipped: tuple[ShippedFile, ...] = ()

    def send(self, spark: SparkSession) -> None:
        """Give the shipped files to Spark.

        Raises:
            WeightsError: There is no room for a copy on the driver.
        """
        for file in self.shipped:
            spark.addArtifacts(str(_named(file)), file=True)

    def received(
        self, card: ModelCard, model_dir: Path | None, parts: Collection[str] | None = None
    ) -> tuple[ModelCard, Path | None]:
        """Return the card to load on this executor, and the directory with its weights.

        Args:
            card: The model.
            model_dir: The driver's directory.
            parts: The needed parts of `card.weights_sources`; None means all.

        Raises:
            WeightsError: The mirror cannot be reached or lacks a file, or Spark sent no file.
        """
        if self.shipped:
            return card.with_weights_sources(
                {file.part: _received(card, file) for file in self.shipped if file.model == card.name}
            ), None
        if self.model_source is not None:
            obtain_missing(card, model_dir, model_source=self.model_source, parts=parts)
        return card, model_dir


AS_ON_DRIVER: Final = Delivery()
"""The weights are in the same directory on all machines, or in the cache of each."""


def deliver(
    models: Sequence[ModelSpec],
    *,
    model_source: str | None = None,
    ship: bool = False,
    parts: Collection[str] | None = None,
) -> Delivery:
    """Make sure that the driver has the weights, and return how the executors get them.

    Args:
        models: Cards, and the directory that has the weights or receives those of a mirror.
        model_source: URI of a mirror.
        ship: Whether the driver sends the weights.
        parts: The needed parts of `card.weights_sources`; None means all.

    Raises:
        ConfigError: No installed library reads the mirror's URI, or the lock file is wrong.
        WeightsError: Weights are absent, or are not the ones that card or lock file pin.
    """
    if model_source is not None:
        model_source = absolute_uri(model_source)  # workers have another current directory
        for model in models:
            obtain_missing(model.card, model.model_dir, model_source=model_source, parts=parts)
    if not ship:
        return Delivery(model_source)
    return Delivery(shipped=tuple(file for model in models for file in _shipped(model, parts)))


def _shipped(model: ModelSpec, parts: Collection[str] | None) -> Iterator[ShippedFile]:
    files = locate_weights(model.card, model.model_dir, download=True, parts=parts)
    for part, file in files.items():
        if file.path is not None:
            yield ShippedFile(model.card.name, part, file.path, file.sha256)


def _received(card: ModelCard, file: ShippedFile) -> WeightsSource:
    path = Path(SparkFiles.get(file.name))
    if not path.is_file():
        raise WeightsError(
            f"{card.name}: {file.path.name} should be shipped to this executor, but {path} is missing. If "
            "this DataFrame was made in another session, make it again"
        )
    return WeightsSource(path=path, sha256=file.sha256)


def _named(file: ShippedFile) -> Path:
    """Return a link to the file, or a copy, that has the file's name on the executors."""
    path = _folder() / file.name
    if not path.exists():
        try:
            _link_or_copy(file.path.resolve(), path)
        except OSError as error:
            raise WeightsError(
                f"cannot copy {file.path} to {path} to ship it: {error}. Make room there, or set TMPDIR"
            ) from error
    return path


def _link_or_copy(path: Path, new: Path) -> None:
    try:
        os.link(path, new)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(path, new)


@lru_cache(maxsize=1)
def _folder() -> Path:
    """Return this driver's own directory; it stays, since executors that start later need the files too."""
    folder = Path(tempfile.mkdtemp(prefix="nsfw-spark-ship-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
