"""The options of a job, validated: from the command line, a config file, or a caller.

Knows neither Spark nor models, so that a wrong option is told in a second and not after a cluster started.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    field_validator,
    model_validator,
)

from nsfw_spark.cascade import Band
from nsfw_spark.decode import DEFAULT_MAX_BYTES, DEFAULT_MAX_PIXELS
from nsfw_spark.errors import ConfigError
from nsfw_spark.isolation import DECODE_TIMEOUT_SECONDS
from nsfw_spark.uris import credentials_problem, is_listed_in, is_schema
from nsfw_spark.yaml_sections import describe, parse_section

_Share = Annotated[float, Field(ge=0, le=1)]


def _is_band(text: str | None) -> str | None:
    if text is not None:
        try:
            Band.parse(text)
        except ConfigError as error:
            raise ValueError(str(error)) from None
    return text


def _count(value: Any) -> int | Literal["auto"]:  # noqa: ANN401 - whatever was written
    if value == "auto":
        return "auto"
    try:
        number = 0 if isinstance(value, bool | float) else int(value)
    except (TypeError, ValueError):
        number = 0
    if number < 1:
        raise ValueError(f"expected a whole number from 1, or auto; got {value!r}")
    return number


_Count = Annotated[int | Literal["auto"], PlainValidator(_count)]


class JobOptions(BaseModel):
    """Options of `run`, `score` and `filter`; each field is the option of that name."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), use_attribute_docstrings=True
    )

    input: str | None = None
    """URI of the images: any that Spark reads."""
    output: str
    """URI of a directory for the tables, or a catalog schema: `catalog.schema`."""
    format: Literal["auto", "files", "webdataset", "parquet", "delta", "embeddings", "cloudfiles"] = "auto"
    """What INPUT holds: files, webdataset, parquet, delta, embeddings, cloudfiles; `auto` looks."""
    glob: str | None = None
    """Only files whose names match, such as `*.{jpg,png}`; default: all that the format expects."""
    content_column: str | None = None
    """Column with the images, or the embeddings; default: found by its type."""
    id_column: str | None = None
    """Column whose values become image_id, none null or twice; default: image_id, else file#row."""
    carry: str = "all"
    """Columns of the source to carry along: `all`, `none`, or names with commas between them."""
    model: str = "laion-vit-l-14"
    """A built-in model card, or the path of a card file."""
    heads: str | None = None
    """The model's heads to compute, commas between them: `nsfw,aesthetic`; default: all of its card."""
    score_class: str | None = None
    """Class whose score becomes nsfw_score, of a model that has classes; default: the card's."""
    second: str | None = None
    """A second model card, for the images of which the first model is not sure."""
    uncertain: Annotated[str | None, AfterValidator(_is_band)] = None
    """With `second`: LOW:HIGH, the scores of which the first is not sure, both included; default 0.1:0.9."""
    model_dir: Path | None = None
    """Directory with weights, so that no network is needed."""
    model_source: str | None = None
    """URI of a mirror for weights that are not here, laid out as a `model_dir`; any that fsspec reads."""
    weights_lock: Path | None = None
    """Lock file, which pins the weights; default: weights.lock.yaml in the directory with weights."""
    ship_weights: bool = False
    """Send the weights from the driver to the executors, which then need no directory and no network."""
    threshold: _Share = 0.5
    """An image is safe if its nsfw_score is below."""
    policy: Path | None = None
    """File with one SQL expression on columns of image_scores, true for safe images; for `threshold`."""
    batch_size: _Count = "auto"
    """Images in one forward pass."""
    files_per_batch: _Count = "auto"
    """Files in one micro-batch; `auto` aims at a minute's work."""
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    """`auto` (GPUs where there are any), `cpu` or `cuda`."""
    host: Literal["auto", "off"] = "auto"
    """`auto`: one model for each GPU of an executor, in a process of its own; `off`: one a Python worker."""
    host_timeout_seconds: Annotated[float, Field(ge=1)] = 120.0
    """Without a sign of life for so long, the model host counts as dead; longer than one batch may take."""
    max_pixels: Annotated[int, Field(ge=1, le=178_956_970)] = DEFAULT_MAX_PIXELS
    """Width x height above which an image is `too_large`; Pillow itself refuses above 178,956,970."""
    max_bytes: Annotated[int, Field(ge=1)] = DEFAULT_MAX_BYTES
    """Bytes of an encoded image above which it is `too_large`."""
    strict: bool = False
    """Score what else an image may show than its centre: frames, margins, pages; the highest score counts."""
    decode_timeout_seconds: Annotated[float, Field(ge=1)] = DECODE_TIMEOUT_SECONDS
    """An image that takes longer to decode is `crashed`."""
    max_error_rate: _Share = 0.1
    """Share of the run's images without a score above which the exit status is 3."""
    keep_content: bool = False
    """Keep the encoded images in the tables."""
    content_from: str | None = None
    """URI of the images: join them to the filtered tables, as the column `content`."""
    keep_embedding: bool = False
    """With `--format embeddings`: copy the embeddings into the tables."""
    rescore: Literal["changed", "all"] | None = None
    """`changed`: score changed files again; `all`: score all again, into a new version of the table."""
    prune: bool = False
    """Delete the rows of files that are gone."""
    checkpoints: str | None = None
    """URI for Spark's checkpoints; default OUT/_checkpoints."""
    allow_random_weights: bool = False
    """Accept a model card with random weights, whose scores mean nothing."""

    @model_validator(mode="after")
    def _one_policy(self) -> JobOptions:
        if self.policy is not None and "threshold" in self.model_fields_set:
            raise ValueError(
                f"got policy {self.policy} and threshold {self.threshold}; expected one of the two: a policy "
                "says itself which nsfw_score is safe"
            )
        return self

    @field_validator("input", "output", "checkpoints", "content_from", "model_source")
    @classmethod
    def _no_credentials(cls, uri: str | None) -> str | None:
        if uri is not None and (problem := credentials_problem(uri)):
            raise ValueError(problem)
        return uri

    @model_validator(mode="after")
    def _output_is_not_read(self) -> JobOptions:
        if self.input is None or self.glob is not None or self.format == "webdataset":
            return self  # nothing is read but what is named so
        for place in (self.checkpoints, None if self.is_schema else self.output):
            if place is not None and is_listed_in(place, self.input):
                raise ValueError(
                    f"{place} lies in the input {self.input}, so that the next run would read what this one "
                    "writes; expected a place outside of it, or a --glob that names the images, as '*.jpg'"
                )
        return self

    @model_validator(mode="after")
    def _second_is_for_images(self) -> JobOptions:
        if self.uncertain is not None and self.second is None:
            raise ValueError(f"got uncertain {self.uncertain} and no second; expected both, or second alone")
        if self.second is not None and self.format == "embeddings":
            raise ValueError("second looks at images, and format embeddings has none: leave one out")
        return self

    @property
    def band(self) -> Band:
        """The scores of which the first model of a cascade is not sure."""
        return Band.parse(self.uncertain or "0.1:0.9")

    @property
    def head_names(self) -> list[str] | None:
        """The heads that were named; None for all."""
        return None if self.heads is None else [name.strip() for name in self.heads.split(",")]

    @property
    def is_schema(self) -> bool:
        """Whether the output is a catalog schema and not a path."""
        return is_schema(self.output)


def job_options(given: Mapping[str, Any], config: Path | None = None) -> JobOptions:
    """Merge options; those given win over those of the config file.

    Args:
        given: Option names and values; None means: not given.
        config: A YAML file with the same names.

    Raises:
        ConfigError: An option or the file is wrong; the message names it as it was written.
    """
    from_file = {} if config is None else _read(config)
    given = {name: value for name, value in given.items() if value is not None}
    for one, other in (("threshold", "policy"), ("policy", "threshold")):
        if one in given:
            from_file.pop(other, None)  # two ways to say one thing
    try:
        return JobOptions.model_validate({**from_file, **given})
    except ValidationError as error:
        raise ConfigError(_as_written(error, given, config)) from None


def _read(config: Path) -> dict[str, Any]:
    try:
        text = config.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the config file {config}: {error}") from error
    return parse_section(_AnyKeys, text, origin=str(config)).model_dump()


class _AnyKeys(BaseModel):
    """A config file before its keys are known to be right: they are checked with all other options."""

    model_config = ConfigDict(extra="allow")


def _as_written(error: ValidationError, given: Mapping[str, Any], config: Path | None) -> str:
    """Say what is wrong in the words of whoever wrote it: `--max-pixels`, or `job.yaml: max_pixels`."""
    said = []
    for name, problem in describe(error, JobOptions):
        if not name:  # of several options together
            said.append(problem)
            continue
        is_option = config is None or name in given
        said.append(f"--{name.replace('_', '-')}: {problem}" if is_option else f"{config}: {name}: {problem}")
    return "; ".join(said)
