"""The options of scoring and of a job: declared once, validated, in groups.

Each option is one field of one group below: its type, default and docstring. From these fields follow the
command line and its `--help`, the keys of `--config job.yaml`, the keywords of the Python functions and
docs/options.md. Knows neither Spark nor models, so that a wrong option is an error within a second.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal, NamedTuple, Self, TypedDict

import numpy as np
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from nsfw_spark.decode import DEFAULT_MAX_BYTES, DEFAULT_MAX_PIXELS, DecodeOptions
from nsfw_spark.errors import ConfigError
from nsfw_spark.isolation import DECODE_TIMEOUT_SECONDS
from nsfw_spark.uris import credentials_problem, is_listed_in, is_schema
from nsfw_spark.yaml_sections import describe, parse_section

_DEVICE: Final = re.compile(r"auto|cpu|cuda(:\d+)?")

Format = Literal["auto", "files", "webdataset", "parquet", "delta", "embeddings", "cloudfiles"]
"""What an input holds; `auto` looks at its file names."""


class Band(NamedTuple):
    """The uncertain scores of a cascade's first model, both ends included."""

    low: float
    high: float

    @classmethod
    def of(cls, low: float, high: float) -> Self:
        """Return the band between two scores.

        Raises:
            ConfigError: They are not in [0, 1], or the lower one is not first.
        """
        if not 0 <= low <= high <= 1:
            raise ConfigError(f"expected two scores from 0 to 1, the lower one first; got {low} and {high}")
        return cls(low, high)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a band from LOW:HIGH.

        Raises:
            ConfigError: The text is anything else.
        """
        low, _, high = text.partition(":")
        try:
            return cls.of(float(low), float(high))
        except (ValueError, ConfigError):
            raise ConfigError(f"expected LOW:HIGH, two scores such as 0.1:0.9; got {text!r}") from None

    def __contains__(self, score: object) -> bool:
        # As scores are float32, so must the ends be: the float32 0.7 is less than the float64 0.7.
        return isinstance(score, float) and bool(
            np.float32(self.low) <= np.float32(score) <= np.float32(self.high)
        )


def _count(value: Any) -> Any:  # noqa: ANN401 - any value that a user wrote
    """Return "auto" or a whole number from 1."""
    try:
        number = 0 if isinstance(value, bool | float) else int(value)
    except (TypeError, ValueError):
        number = 0
    if value != "auto" and number < 1:
        raise ValueError(f"expected a whole number from 1, or auto; got {value!r}")
    return value if value == "auto" else number


def _band(value: Any) -> Any:  # noqa: ANN401 - any value that a user wrote
    """Return two scores from LOW:HIGH or from a pair."""
    try:
        return tuple(Band.parse(value) if isinstance(value, str) else Band.of(*value))
    except (ConfigError, TypeError) as error:
        raise ValueError(str(error)) from None


def _names(value: Any) -> Any:  # noqa: ANN401 - any value that a user wrote
    """Split names at commas."""
    return [name.strip() for name in value.split(",")] if isinstance(value, str) else value


def _pairs(value: Any) -> Any:  # noqa: ANN401 - any value that a user wrote
    """Return a mapping from several NAME=VALUE; YAML and Python give one."""
    if isinstance(value, list | tuple):
        if wrong := [each for each in value if not re.match(r"[^=\s]+=", str(each))]:
            raise ValueError(f"expected NAME=VALUE, as cloudFiles.useNotifications=true; got {wrong[0]!r}")
        return dict(str(each).split("=", 1) for each in value)
    if not isinstance(value, Mapping):
        return value
    # YAML reads true as True; Spark expects true.
    return {name: str(each).lower() if isinstance(each, bool) else str(each) for name, each in value.items()}


def _text(value: Any) -> Any:  # noqa: ANN401 - any value that a user wrote
    """Return a path as text."""
    return str(value) if isinstance(value, Path) else value


def _device(value: Any) -> Any:  # noqa: ANN401 - any value that a user wrote
    """Refuse anything but a device that torch knows."""
    if not isinstance(value, str) or not _DEVICE.fullmatch(value):
        raise ValueError(f"expected auto, cpu, cuda or cuda:N; got {value!r}")
    return value


def _without_credentials(uri: str | None) -> str | None:
    """Refuse a URI with credentials."""
    if uri is not None and (problem := credentials_problem(uri)):
        raise ValueError(problem)
    return uri


_Share = Annotated[float, Field(ge=0, le=1)]
_Count = Annotated[int | Literal["auto"], BeforeValidator(_count)]
_NameOrPath = Annotated[str, BeforeValidator(_text)]
_Path = Annotated[Path, AfterValidator(Path.expanduser)]


class OptionGroup(BaseModel):
    """Options that belong together; a heading in `--help` and docs/options.md."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), use_attribute_docstrings=True
    )
    group: ClassVar[str] = ""

    @classmethod
    def parse(cls, options: Mapping[str, Any]) -> Self:
        """Validate keywords of a Python function.

        Raises:
            ConfigError: An option is unknown or has a wrong value.
        """
        try:
            return cls.model_validate(dict(options))
        except ValidationError as error:
            raise ConfigError(_sentence(error, cls, str)) from None


class InputOptions(OptionGroup):
    """The input: where the images are and what else its files or tables hold."""

    group = "Input"

    input: str | None = None
    """URI of a directory or file with images, or a table's name; any URI that Spark reads."""
    format: Format = "auto"
    """files, webdataset, parquet, delta, embeddings or cloudfiles; `auto` looks at the names in INPUT."""
    glob: str | None = None
    """Read only files whose names match, such as `*.{jpg,png}`; default: every name of the format."""
    content_column: str | None = None
    """Column with the images (or embeddings) of a table; default: found by its type."""
    id_column: str | None = None
    """Column whose values become image_id, unique and not null; default: image_id, else file#row."""
    carry: str = "all"
    """Columns of the source to copy into the tables: `all`, `none`, or names separated by commas."""
    files_per_batch: _Count = "auto"
    """Files in one micro-batch; `auto` sizes a micro-batch so that it takes about a minute."""
    source_option: Annotated[dict[str, str], BeforeValidator(_pairs)] | None = None
    """Option of Auto Loader, with `--format cloudfiles`, such as `cloudFiles.useManagedFileEvents=true`; may
    be repeated."""


class ModelOptions(OptionGroup):
    """The model: which model card scores, and how."""

    group = "Model"

    model: _NameOrPath = "laion-vit-l-14"
    """Name of a built-in model card, or path of a card file."""
    heads: Annotated[tuple[str, ...] | None, BeforeValidator(_names)] = None
    """Heads of the card to compute, `nsfw` among them, such as `nsfw,aesthetic`; default: every head."""
    score_class: str | None = None
    """Class whose score becomes nsfw_score, for a model with classes; default: the card's choice."""
    strict: bool = False
    """Score also margins, later frames, pages and transparent areas; the highest score counts."""
    second: Annotated[str | None, BeforeValidator(_text)] = None
    """A second model card; it scores images with an uncertain first score again, and its score counts."""
    uncertain: Annotated[tuple[float, float], BeforeValidator(_band)] = (0.1, 0.9)
    """Lowest and highest uncertain score, for `second`."""

    @model_validator(mode="after")
    def _has_second(self) -> Self:
        if "uncertain" in self.model_fields_set and self.second is None:
            low, high = self.uncertain
            raise ValueError(f"got uncertain {low}:{high} and no second; expected both, or second alone")
        return self

    @property
    def band(self) -> Band:
        """The uncertain scores of a cascade's first model."""
        return Band(*self.uncertain)


class WeightsOptions(OptionGroup):
    """The weights: where the model's files come from."""

    group = "Weights"

    model_dir: _Path | None = None
    """Directory with weights, the same on every machine; no network is needed then."""
    model_source: str | None = None
    """URI of a mirror for missing weights, laid out as a model directory; any URI that fsspec reads."""
    weights_lock: _Path | None = None
    """File that pins the weights' checksums; default: weights.lock.yaml in the model directory."""
    ship_weights: bool = False
    """Send the weights from the driver to the executors, which then need no directory and no network."""


class SpeedOptions(OptionGroup):
    """Speed: devices, batches and the model host."""

    group = "Speed"

    device: Annotated[str, BeforeValidator(_device)] = "auto"
    """`auto` (a GPU where there is one), `cpu`, `cuda` or `cuda:N`."""
    batch_size: _Count = "auto"
    """Images in one forward pass; `auto` is 16 on a CPU, and the fastest of several sizes on a GPU."""
    host: Literal["auto", "off"] = "auto"
    """`auto` holds one model for each GPU of an executor; `off` loads one in each Python worker."""
    host_timeout_seconds: Annotated[float, Field(ge=1)] = 120.0
    """Silence after which a model host counts as dead; must exceed the time of one batch."""


class LimitOptions(OptionGroup):
    """Limits: images that are too large or take too long."""

    group = "Limits"

    max_pixels: Annotated[int, Field(ge=1, le=178_956_970)] = DEFAULT_MAX_PIXELS
    """Width x height above which an image is `too_large`; memory-hungry formats have a lower limit."""
    max_bytes: Annotated[int, Field(ge=1)] = DEFAULT_MAX_BYTES
    """Bytes of an encoded image above which it is `too_large`."""
    decode_timeout_seconds: Annotated[float, Field(ge=1)] = DECODE_TIMEOUT_SECONDS
    """Seconds after which an image that is still being decoded is `crashed`."""


class PolicyOptions(OptionGroup):
    """The policy: which images are safe, and how many may lack a score."""

    group = "Policy"

    threshold: _Share = 0.5
    """An image is safe if its nsfw_score is below this number."""
    policy: Annotated[str | None, BeforeValidator(_text)] = None
    """SQL expression on the columns of image_scores, true for safe images, or a file with one; replaces
    `threshold`."""
    max_error_rate: _Share = 0.1
    """Share of the run's images without a score above which the exit status is 3."""


class TableOptions(OptionGroup):
    """The tables: where they are and what they keep."""

    group = "Tables"

    output: str
    """URI of a directory for the tables, outside INPUT, or a catalog schema: `catalog.schema`."""
    checkpoints: str | None = None
    """URI for Spark's checkpoints; default: OUT/_checkpoints."""
    rescore: Literal["changed", "all"] | None = None
    """`changed` scores changed files again; `all` scores every image into a new version of the table."""
    prune: bool = False
    """Delete the rows of files that are gone."""
    prune_limit: _Share = 0.1
    """Share of the source's rows above which `prune` deletes nothing and ends with an error."""
    keep_content: bool = False
    """Keep the encoded images in the tables."""
    keep_embedding: bool = False
    """Copy the vectors into the tables, with `--format embeddings`."""
    content_from: str | None = None
    """URI of the images, to join them to the filtered tables as the column `content`."""
    allow_random_weights: bool = False
    """Accept a model card with random weights, whose scores mean nothing; for tests."""

    @property
    def is_schema(self) -> bool:
        """Whether the output is a catalog schema and not a path."""
        return is_schema(self.output)


class ScoreOptions(LimitOptions, SpeedOptions, WeightsOptions, ModelOptions):
    """How images are scored: the keywords of `load_scorer`, `score_udf` and `score_images`."""

    @property
    def decode(self) -> DecodeOptions:
        """The options of `decode`."""
        return DecodeOptions(max_pixels=self.max_pixels, max_bytes=self.max_bytes, strict=self.strict)


class ScoreKeywords(TypedDict, total=False):
    """`ScoreOptions` without `model` as keywords, for type checkers; a test compares the two."""

    heads: Sequence[str] | None
    score_class: str | None
    strict: bool
    second: str | Path | None
    uncertain: tuple[float, float]
    model_dir: str | Path | None
    model_source: str | None
    weights_lock: str | Path | None
    ship_weights: bool
    device: str
    batch_size: int | Literal["auto"]
    host: Literal["auto", "off"]
    host_timeout_seconds: float
    max_pixels: int
    max_bytes: int
    decode_timeout_seconds: float


class JobOptions(TableOptions, PolicyOptions, ScoreOptions, InputOptions):
    """The options of `run`, `score` and `filter`; each field is the option of that name."""

    @field_validator("input", "output", "checkpoints", "content_from", "model_source")
    @classmethod
    def _no_credentials(cls, uri: str | None) -> str | None:
        return _without_credentials(uri)

    @model_validator(mode="after")
    def _one_policy(self) -> Self:
        if self.policy is not None and "threshold" in self.model_fields_set:
            raise ValueError(
                f"got policy {self.policy} and threshold {self.threshold}; expected one of the two: a policy "
                "says itself which nsfw_score is safe"
            )
        return self

    @model_validator(mode="after")
    def _output_is_not_read(self) -> Self:
        if self.input is None or self.format == "webdataset":
            return self  # Spark then lists only tars, which this job does not write
        for location in (self.checkpoints, None if self.is_schema else self.output):
            if location is not None and is_listed_in(location, self.input):
                raise ValueError(
                    f"{location} lies in the input {self.input}, so that the next run would read this run's "
                    "tables; expected a place outside of it, or a subdirectory whose name begins with _ or ."
                )
        return self

    @model_validator(mode="after")
    def _source_option_is_of_auto_loader(self) -> Self:
        if self.source_option and self.format != "cloudfiles":
            raise ValueError(
                f"got source_option {next(iter(self.source_option))} and format {self.format}; expected "
                "format cloudfiles: only Databricks' Auto Loader takes options"
            )
        return self

    @model_validator(mode="after")
    def _second_needs_images(self) -> Self:
        if self.second is not None and self.format == "embeddings":
            raise ValueError("second looks at images, and format embeddings has none: leave one out")
        return self


class SampleOptions(OptionGroup):
    """The sample that `peek` scores."""

    group = "Sample"

    n: Annotated[int, Field(ge=1)] = 200
    """Images that `peek` scores."""
    seed: int = 0
    """Number that chooses the images of `peek`: the same number chooses the same images."""


class PeekOptions(SampleOptions, PolicyOptions, ScoreOptions, InputOptions):
    """The options of `peek`, and some that only `run` has: a peek ignores them."""

    input: str

    @field_validator("input", "model_source")
    @classmethod
    def _no_credentials(cls, uri: str | None) -> str | None:
        return _without_credentials(uri)


class JobKeywords(ScoreKeywords, total=False):
    """`JobOptions` without `input`, `output` and `model` as keywords of `run`, for type checkers."""

    format: Format
    glob: str | None
    content_column: str | None
    id_column: str | None
    carry: str
    files_per_batch: int | Literal["auto"]
    source_option: Mapping[str, str] | None
    threshold: float
    policy: str | Path | None
    max_error_rate: float
    checkpoints: str | None
    rescore: Literal["changed", "all"] | None
    prune: bool
    prune_limit: float
    keep_content: bool
    keep_embedding: bool
    content_from: str | None
    allow_random_weights: bool


GROUPS: tuple[type[OptionGroup], ...] = (
    InputOptions,
    ModelOptions,
    PolicyOptions,
    TableOptions,
    SpeedOptions,
    LimitOptions,
    WeightsOptions,
    SampleOptions,
)
"""In the order in which `--help` and docs/options.md show them."""


def job_options(given: Mapping[str, Any], config: Path | None = None) -> JobOptions:
    """Merge the options of a command with those of a config file; the command wins.

    Args:
        given: Option names and values; None for an option that the command does not have.
        config: A YAML file with the same names.

    Raises:
        ConfigError: An option or the file is wrong; the message names it as the user wrote it.
    """
    from_file = {} if config is None else _read(config)
    given = {name: value for name, value in given.items() if value is not None}
    for one, other in (("threshold", "policy"), ("policy", "threshold")):
        if one in given:
            from_file.pop(other, None)  # both say which images are safe
    try:
        return JobOptions.model_validate({**from_file, **given})
    except ValidationError as error:

        def as_written(name: str) -> str:
            is_option = config is None or name.partition(".")[0] in given
            return _as_option(name) if is_option else f"{config}: {name}"

        raise ConfigError(_sentence(error, JobOptions, as_written)) from None


def peek_options(given: Mapping[str, Any]) -> PeekOptions:
    """Validate the options of `peek`; None stands for an option that was not given.

    Raises:
        ConfigError: An option is wrong.
    """
    given = {name: value for name, value in given.items() if value is not None}
    try:
        return PeekOptions.model_validate(given)
    except ValidationError as error:
        raise ConfigError(_sentence(error, PeekOptions, _as_option)) from None


def _as_option(name: str) -> str:
    return "INPUT" if name == "input" else f"--{name.replace('_', '-')}"


def _read(config: Path) -> dict[str, Any]:
    try:
        text = config.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the config file {config}: {error}") from error
    return parse_section(_AnyKeys, text, origin=str(config)).model_dump()


class _AnyKeys(BaseModel):
    """A config file before its keys are checked, together with the options of the command."""

    model_config = ConfigDict(extra="allow")


def _sentence(error: ValidationError, section: type[BaseModel], as_written: Callable[[str], str]) -> str:
    """Say what is wrong, with each option's name as the user wrote it; some problems concern several."""
    problems = describe(error, section)
    return "; ".join(f"{as_written(name)}: {problem}" if name else problem for name, problem in problems)
