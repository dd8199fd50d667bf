"""What a model host holds, and for whom: all that it is told when it starts, as JSON."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import psutil

from nsfw_spark.model import ModelSpec
from nsfw_spark.model_card import ModelCard


@dataclass(frozen=True)
class Owner:
    """Whom a host serves; it ends when its owner does."""

    name: str
    """Tasks that name the same owner share a host."""
    pid: int | None = None
    """The executor's process; None where it is not known: then the host ends when it was idle for a while."""
    started: float | None = None
    """When that process started, seconds since 1970: a process id is used again one day."""
    directory: str | None = None
    """A directory that is there as long as the owner is."""

    @classmethod
    def process(cls, pid: int, name: str | None = None, directory: str | None = None) -> Self:
        """Return the owner that is a running process."""
        return cls(name or f"process {pid}", pid, psutil.Process(pid).create_time(), directory)

    def is_alive(self) -> bool:
        """Whether the owner is still there."""
        if self.directory is not None and not Path(self.directory).is_dir():
            return False
        return self.pid is None or is_running(self.pid, self.started)


@dataclass(frozen=True)
class HostSpec:
    """What a host holds, for whom, and how patiently."""

    model: ModelSpec
    owner: Owner
    num_threads: int | None = None
    """Of the model, where it computes on the CPU; None: as many as the machine has cores for this process."""
    timeout_seconds: float = field(default=120.0, compare=False)
    """Without a sign of life for so long, a host counts as dead. Longer than a forward pass may take."""
    idle_seconds: float = field(default=300.0, compare=False)
    """Without a task for so long, a host ends. Longer than a job pauses between two micro-batches."""
    second: ModelSpec | None = None
    """Of a cascade: loaded after the first, into the same process."""

    @property
    def models(self) -> list[ModelSpec]:
        """The model, and the second if there is one: tasks ask for one by its place here."""
        return [self.model] if self.second is None else [self.model, self.second]

    @property
    def identity(self) -> str:
        """Tasks whose specs have the same identity share a host."""
        # CUDA counts devices by this variable: with another value, the same number is another device.
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        content = {**self.as_json(), "timeout_seconds": None, "idle_seconds": None, "visible": visible}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def as_json(self) -> dict[str, Any]:
        """Return what `from_json` reads."""
        second = None if self.second is None else _model_as_json(self.second)
        return {**asdict(self), "model": _model_as_json(self.model), "second": second}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self:
        """Return the spec that `as_json` wrote."""
        second = None if content["second"] is None else _model_from_json(content["second"])
        model, owner = _model_from_json(content["model"]), Owner(**content["owner"])
        return cls(**{**content, "model": model, "second": second, "owner": owner})


def _model_as_json(model: ModelSpec) -> dict[str, Any]:
    directory = None if model.model_dir is None else str(model.model_dir)
    return {**asdict(model), "card": model.card.model_dump(mode="json"), "model_dir": directory}


def _model_from_json(content: dict[str, Any]) -> ModelSpec:
    directory = None if content["model_dir"] is None else Path(content["model_dir"])
    card = ModelCard.model_validate(content["card"])
    return ModelSpec(**{**content, "card": card, "model_dir": directory})


def is_running(pid: int, started: float | None) -> bool:
    """Whether a process runs, and is the one that started then."""
    try:
        process = psutil.Process(pid)
        if started is not None and abs(process.create_time() - started) > 1:
            return False
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.AccessDenied:
        return True
    except psutil.NoSuchProcess:
        return False
