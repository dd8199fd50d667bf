"""Where a file of weights comes from, and how it is known to be the right one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from nsfw_spark.inside import InnerFile, Package, Repository, Revision
from nsfw_spark.sections import Section


class WeightsSource(Section):
    """Where one weights file comes from: exactly one of the first five fields."""

    huggingface: Repository | None = None
    """Repository on the Hugging Face hub: `owner/name`."""
    github: Repository | None = None
    """Repository on GitHub: `owner/name`; with `revision`."""
    package: Package | None = None
    """Installed Python package that carries the file."""
    path: Path | None = None
    """A file of your own, relative to the card file, in its folder or below."""
    random: int | None = None
    """Seed of random weights. For tests and benchmarks: scores from them mean nothing."""
    file: InnerFile | None = None
    """Path inside the repository or the package."""
    revision: Revision | None = None
    """Commit of the repository."""
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    """The file's checksum; null where it is not known: then it is only recorded."""
    git_sha1: Annotated[str, Field(pattern="^[0-9a-f]{40}$")] | None = None
    """The file's id in git, for whoever knows that and not its sha256."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        named = {"huggingface", "github", "package", "path", "random"} & {
            name for name, value in self if value is not None
        }
        if len(named) != 1:
            got = " and ".join(sorted(named)) or "none"
            raise ValueError(f"expected one of huggingface, github, package, path, random; got {got}")
        if named & {"huggingface", "github", "package"} and self.file is None:
            raise ValueError(f"{named.pop()} needs `file`, the path of the weights inside it")
        if self.github is not None and self.revision is None:
            raise ValueError("github needs `revision`, the commit that holds the file")
        return self

    @property
    def repository(self) -> str | None:
        """Its `owner/name`, where the file is downloaded from a repository."""
        return self.huggingface or self.github
