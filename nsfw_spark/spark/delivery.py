"""How executors come to a model's weights where they do not share the driver's directory.

Two ways: each machine asks a mirror for what it lacks; or the driver ships the files through Spark
(`addArtifacts`, on classic clusters `SparkContext.addFile`), which sends one copy to each executor before its
first task there, whole or not at all, and removes it with the executor. On the driver: `deliver`, then
`Delivery.send`. In a Python worker: `Delivery.received`.
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
    """Of the model: see `ModelCard.weights_sources`."""
    path: Path
    """On the driver."""
    sha256: str

    @property
    def name(self) -> str:
        """Its name on the executors, where all that is shipped lies in one directory."""
        return f"nsfw-spark-{self.sha256[:16]}-{self.path.name}"


@dataclass(frozen=True)
class Delivery:
    """Where an executor has the weights from. Small and picklable: it travels there."""

    model_source: str | None = None
    """URI of a mirror that is asked for what lies neither in the model directory nor in the cache."""
    shipped: tuple[ShippedFile, ...] = ()

    def send(self, spark: SparkSession) -> None:
        """Hand the files that are to be shipped to Spark.

        Raises:
            WeightsError: There is no room for a copy on the driver.
        """
        for file in self.shipped:
            spark.addArtifacts(str(_named(file)), file=True)

    def received(
        self, card: ModelCard, model_dir: Path | None, parts: Collection[str] | None = None
    ) -> tuple[ModelCard, Path | None]:
        """Return what to load on this executor: the card, and where its weights are looked for.

        Args:
            card: The model.
            model_dir: The driver's.
            parts: Those that are needed, of `card.weights_sources`; None: all.

        Raises:
            WeightsError: The mirror cannot be reached or lacks a file, or Spark has sent none.
        """
        if self.shipped:
            return card.with_weights_sources(
                {file.part: _received(card, file) for file in self.shipped if file.model == card.name}
            ), None
        if self.model_source is not None:
            obtain_missing(card, model_dir, model_source=self.model_source, parts=parts)
        return card, model_dir


AS_ON_DRIVER: Final = Delivery()
"""The weights lie in the same directory on all machines, or in the cache of each."""


def deliver(
    models: Sequence[ModelSpec],
    *,
    model_source: str | None = None,
    ship: bool = False,
    parts: Collection[str] | None = None,
) -> Delivery:
    """Make sure that the driver has the weights, and return how the executors get them.

    Args:
        models: With the directory where weights lie, and where those of a mirror go.
        model_source: URI of a mirror.
        ship: Whether the driver sends them.
        parts: Those that are needed, of `card.weights_sources`; None: all.

    Raises:
        ConfigError: Nothing here reads the mirror's URI, or the lock file is wrong.
        WeightsError: Weights absent, or not the ones that card or lock file pin.
    """
    if model_source is not None:
        model_source = absolute_uri(model_source)  # the workers' directory is another
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
            f"{card.name}: {file.path.name} was to be shipped to this executor, and {path} is not there. Was "
            "this DataFrame made in another session? Make it anew"
        )
    return WeightsSource(path=path, sha256=file.sha256)


def _named(file: ShippedFile) -> Path:
    """Return the file under its name on the executors: Spark resolves links, and keeps the name it finds."""
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
    """Return a directory of this driver's own: executors that start later want the files too."""
    folder = Path(tempfile.mkdtemp(prefix="nsfw-spark-ship-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
