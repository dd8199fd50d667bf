"""Model cards: one validated YAML file describes one model, whole.

In: the name of a built-in card, or the path of a card file. Out: a `ModelCard`, checked, frozen and small
enough to travel with a UDF. A card is data: reading one runs no code and loads no weights.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from nsfw_spark.errors import ConfigError

_BUILT_IN: Final = resources.files("nsfw_spark") / "models"
_Triple = tuple[float, float, float]
_S = TypeVar("_S", bound=BaseModel)


class _Section(BaseModel):
    """A part of a card: unknown keys are errors, values cannot change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class WeightsSource(_Section):
    """Where one weights file comes from: exactly one of the first four fields."""

    huggingface: str | None = None
    """Repository on the Hugging Face hub: `owner/name`."""
    package: str | None = None
    """Installed Python package that carries the file."""
    path: Path | None = None
    """A file of your own, relative to the card file."""
    random: int | None = None
    """Seed of random weights. For tests and benchmarks: scores from them mean nothing."""
    file: str | None = None
    """Path inside the repository or the package."""
    revision: str | None = None
    """Commit of the repository."""
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    """The file's checksum; null where it is not known: then it is only recorded."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        named = {"huggingface", "package", "path", "random"} & {
            name for name, value in self if value is not None
        }
        if len(named) != 1:
            got = " and ".join(sorted(named)) or "none"
            raise ValueError(f"expected one of huggingface, package, path, random; got {got}")
        if named & {"huggingface", "package"} and self.file is None:
            raise ValueError(f"{named.pop()} needs `file`, the path of the weights inside it")
        return self


class Preprocessing(_Section):
    """How an image becomes the encoder's input, as the model's authors do it."""

    size: Annotated[int, Field(ge=1, le=4096)]
    """S: width and height of what the encoder gets, pixels."""
    resize_to: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Pixels of the shorter side (`crop`) or both sides (`squash`) before the centre crop; default `size`."""
    fit: Literal["crop", "squash"] = "crop"
    """`crop`: keep the aspect ratio, lose the margins. `squash`: keep all, lose the aspect ratio."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    resizer: Literal["simd", "pillow"] = "simd"
    """`pillow`: slower, for models whose score moves with the last bit of a pixel."""
    jpeg_draft: Annotated[float, Field(ge=1)] | None = None
    """Decode a large JPEG at 1/2, 1/4 or 1/8 of its size if at least this many times `resized` is left.

    2 makes large photographs cheaper, and moves their embeddings a little, hard textures more: see
    docs/design.md. Null decodes all.
    """
    jpeg_reencode: bool = False
    """Pass the resized image through JPEG once more, as open_nsfw's authors do."""
    channels: Literal["rgb", "bgr"] = "rgb"
    scale: Literal[1, 255] = 255
    """Pixels are divided by this before mean and std apply."""
    mean: _Triple
    std: _Triple

    @model_validator(mode="after")
    def _crop_fits(self) -> Self:
        if self.resized < self.size:
            raise ValueError(f"resize_to is {self.resize_to}; expected at least size, {self.size}")
        return self

    @property
    def resized(self) -> int:
        """Pixels of the shorter side (`crop`) or both sides (`squash`) before the centre crop."""
        return self.resize_to or self.size


class EncoderCard(_Section):
    """The network that turns pixels into embeddings or class probabilities."""

    library: Literal["open_clip", "onnx", "sampled_pixels"]
    """What computes it. `sampled_pixels` costs nothing and knows nothing: for tests and benchmarks."""
    architecture: str
    """The library's own name of the network."""
    weights: WeightsSource
    embedding_dim: Annotated[int, Field(ge=1)] | None = None
    """D: length of the embedding; null where the model gives none."""
    embedding_output: str | None = None
    """onnx: the tensor of the graph, shape (N, D), that holds the embedding before it is normalised."""
    precision: Literal["float32", "float16", "bfloat16"] = "float32"
    """Arithmetic on a GPU. A CPU computes in float32."""


class HeadCard(_Section):
    """The small classifier behind the encoder."""

    library: Literal["laion", "classes"]
    """`laion`: a head on the embedding. `classes`: the encoder ends in class probabilities itself."""
    weights: WeightsSource | None = None
    classes: tuple[str, ...] = ()
    """Names of the encoder's classes, in order."""
    score: Annotated[str, Field(pattern=r"^(sigmoid|probability:.+)$")] = "sigmoid"
    """`sigmoid`: of the head's output. `probability:NAME`: that class's."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        kind, _, name = self.score.partition(":")
        if self.library == "laion" and (self.weights is None or kind != "sigmoid"):
            raise ValueError("library laion needs `weights` and `score: sigmoid`")
        if self.library == "classes" and name not in self.classes:
            raise ValueError(
                f"score is {self.score!r}; expected probability:NAME, NAME one of {list(self.classes)}"
            )
        return self


class SecondsPerImage(_Section):
    """Rough cost of one image, to size micro-batches by; not a promise."""

    cpu: Annotated[float, Field(gt=0)]
    """Seconds of one core."""
    cuda: Annotated[float, Field(gt=0)]
    """Seconds of one GPU."""


class ModelCard(_Section):
    """One model: encoder, head, preprocessing, where they come from and under which licence."""

    name: Annotated[str, Field(pattern=r"^[\w.-]+$")]
    summary: str
    source: str
    """Where the model's authors publish it."""
    licence: str
    """Of the weights."""
    encoder: EncoderCard
    head: HeadCard
    preprocessing: Preprocessing
    seconds_per_image: SecondsPerImage

    @model_validator(mode="after")
    def _head_fits_encoder(self) -> Self:
        if self.head.library == "laion" and self.encoder.embedding_dim is None:
            raise ValueError("a laion head needs encoder.embedding_dim")
        return self

    @property
    def weights_sources(self) -> dict[str, WeightsSource]:
        """The weights that the model needs, by part: `encoder`, and `head` where it has its own."""
        head = {"head": self.head.weights} if self.head.weights else {}
        return {"encoder": self.encoder.weights, **head}

    @property
    def has_random_weights(self) -> bool:
        """Whether any part has random weights, so that its scores mean nothing."""
        return any(source.random is not None for source in self.weights_sources.values())

    def fingerprint(self, checksums: Mapping[str, str]) -> str:
        """Hash all that decides a score: weights, preprocessing, precision.

        Two rows with the same fingerprint have comparable scores. Names and descriptions do not count.

        Args:
            checksums: Sha256 (or `random:SEED`) of each part of `weights_sources`.

        Returns:
            16 hexadecimal digits.
        """
        decisive = {
            "encoder": self.encoder.model_dump(mode="json", exclude={"weights"}),
            "head": self.head.model_dump(mode="json", exclude={"weights"}),
            "preprocessing": self.preprocessing.model_dump(mode="json"),
            "weights": dict(checksums),
        }
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]


def built_in_models() -> list[str]:
    """Return the names of the built-in cards, sorted."""
    return sorted(
        card.name.removesuffix(".yaml") for card in _BUILT_IN.iterdir() if card.name.endswith(".yaml")
    )


def load_card(model: str | Path) -> ModelCard:
    """Read a model card.

    Args:
        model: Name of a built-in card, or path of a card file (`.yaml`, `.yml`).

    Raises:
        ConfigError: No such card, or a field of it is wrong.
    """
    name = str(model)
    if name.endswith((".yaml", ".yml")):
        return _read_card(Path(name))
    if name not in built_in_models():
        near = difflib.get_close_matches(name, built_in_models(), n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(
            f"unknown model {name!r}: {hint}expected one of {', '.join(built_in_models())}, "
            "or the path of a card file that ends in .yaml"
        )
    with resources.as_file(_BUILT_IN / f"{name}.yaml") as path:
        return _read_card(path)


def _read_card(path: Path) -> ModelCard:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the model card {path}: {error}") from error
    card = parse_section(ModelCard, text, origin=str(path))
    return _with_absolute_paths(card, path.parent)


def _with_absolute_paths(card: ModelCard, folder: Path) -> ModelCard:
    """Resolve `path` weights against the card's folder: workers have another current directory."""
    content = card.model_dump()
    for section in (content["encoder"], content["head"]):
        weights = section["weights"]
        if weights and weights["path"]:
            weights["path"] = (folder / weights["path"]).resolve()
    return ModelCard.model_validate(content)


def parse_section(section: type[_S], text: str, *, origin: str) -> _S:
    """Read YAML into a validated section; a mistake becomes one line that names the field.

    Raises:
        ConfigError: Not YAML, not a mapping, or a field is unknown, missing or wrong.
    """
    try:
        content: Any = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{origin} is not YAML: {_one_line(str(error))}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{origin} holds {type(content).__name__}; expected `key: value` lines")
    try:
        return section.model_validate(content)
    except ValidationError as error:
        said = "; ".join(
            f"{field}: {problem}" if field else problem for field, problem in describe(error, section)
        )
        raise ConfigError(f"{origin}: {said}") from error


def describe(error: ValidationError, section: type[BaseModel]) -> list[tuple[str, str]]:
    """Say what is wrong: (field, problem) for each, with the nearest name of an unknown field."""
    problems = []
    for problem in error.errors(include_url=False):
        message = _one_line(problem["msg"]).removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            *parents, key = problem["loc"]
            near = difflib.get_close_matches(str(key), _keys_at(section, parents), n=1)
            message = "unknown key" + (f", did you mean {near[0]}?" if near else "")
        elif problem["type"] == "missing":
            message = "is needed and was not given"
        elif problem["type"] != "value_error":
            message = f"{message[0].lower()}{message[1:]}, got {problem['input']!r}"
        problems.append((".".join(str(part) for part in problem["loc"]), message))
    return problems


def _keys_at(section: type[BaseModel], parents: list[int | str]) -> list[str]:
    """Return the keys that a section may have, or one inside it."""
    for parent in parents:
        annotation = section.model_fields[str(parent)].annotation
        inner = [type_ for type_ in (annotation, *get_args(annotation)) if isinstance(type_, type)]
        section = next((type_ for type_ in inner if issubclass(type_, BaseModel)), section)
    return list(section.model_fields)


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()
