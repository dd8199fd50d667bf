"""The schema of a model card: everything that decides a model's scores, and facts for people.

In: the fields of a card. Out: a `ModelCard`, checked, frozen, and small enough to travel with a UDF. This
module reads no files (`cards` does) and knows no weights. docs/own-model.md lists all fields.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from nsfw_spark.yaml_sections import Section

Repository = Annotated[str, Field(pattern=r"^\w[\w.-]*/\w[\w.-]*$")]  # owner/name
Revision = Annotated[str, Field(pattern=r"^\w[\w.-]*(/\w[\w.-]*)*$")]  # a commit, a tag or a branch
# Top-level packages only: Python would run the outer package to find an inner one.
Package = Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$")]
# The library's own networks only: open_clip would download `hf-hub:…`.
Architecture = Annotated[str, Field(pattern=r"^\w[\w.-]*$")]


def is_inside(path: str | Path) -> bool:
    """Whether a path is relative and stays in its folder: no `..`, no `~`."""
    parts = PurePosixPath(path).parts
    return bool(parts) and parts[0][0] not in "/~" and ".." not in parts and "\0" not in str(path)


def _checked(file: str) -> str:
    if not is_inside(file):
        raise ValueError(f"got {file!r}; expected a relative path without `..`")
    return file


class WeightsSource(Section):
    """The origin of one weights file: exactly one of the first five fields."""

    huggingface: Repository | None = None
    """Repository on the Hugging Face hub, `owner/name`; needs `file`."""
    github: Repository | None = None
    """Repository on GitHub, `owner/name`; needs `file` and `revision`."""
    package: Package | None = None
    """Installed Python package that contains `file`."""
    path: Path | None = None
    """Your own file, relative to the card, in the card's folder or below."""
    random: int | None = None
    """Seed of random weights, for tests and benchmarks. Their scores mean nothing."""
    file: Annotated[str, AfterValidator(_checked)] | None = None
    """Path inside the repository or the package."""
    revision: Revision | None = None
    """Commit of the repository."""
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    """Expected checksum of the file. Null means that any file is accepted and its checksum recorded."""
    git_sha1: Annotated[str, Field(pattern="^[0-9a-f]{40}$")] | None = None
    """Expected id of the file in git, where its sha256 is unknown."""

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
        """`owner/name` of the repository to download from; None for a file that needs no download."""
        return self.huggingface or self.github


class Preprocessing(Section):
    """How an image becomes the encoder's input. It must match the training of the model."""

    size: Annotated[int, Field(ge=1, le=4096)]
    """S: width and height of the encoder's input, pixels."""
    resize_to: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Pixels of the shorter side (`crop`) or both (`squash`) before the centre crop; default `size`."""
    fit: Literal["crop", "squash", "pad"] = "crop"
    """`crop` keeps the aspect ratio and loses the margins. `squash` keeps the whole image and distorts it.
    `pad` keeps both and adds black at the bottom or on the right."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    resizer: Literal["simd", "pillow", "sampled"] = "simd"
    """`simd` is fast and within 2 of 255. `pillow` is slower and exact, for models with sensitive scores.
    `sampled` interpolates between four pixels and skips all others, as OpenCV does. It goes with `pad`."""
    jpeg_draft: Annotated[float, Field(ge=1)] | None = None
    """Decode a large JPEG at 1/2, 1/4 or 1/8 size while at least this many times `resized` is left.

    2 makes large photographs cheaper and changes their embeddings a little, most on fine textures: see
    docs/design.md. Null decodes at full size.
    """
    jpeg_reencode: bool = False
    """Compress and decode the resized image as JPEG once more, as the authors of open_nsfw do."""
    channels: Literal["rgb", "bgr"] = "rgb"
    scale: Literal[1, 255] = 255
    """Divisor of the pixels, before mean and std apply."""
    mean: tuple[float, float, float]
    """Subtracted from the scaled pixels, per channel, in the order of `channels`."""
    std: tuple[float, float, float]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.resized < self.size:
            raise ValueError(f"resize_to is {self.resize_to}; expected at least size, {self.size}")
        if (self.fit == "pad") != (self.resizer == "sampled"):
            raise ValueError(f"got fit {self.fit} and resizer {self.resizer}; pad and sampled go together")
        if self.resizer == "sampled" and (self.interpolation != "bilinear" or self.resized != self.size):
            raise ValueError("resizer sampled needs `interpolation: bilinear`, and no resize_to")
        return self

    @property
    def resized(self) -> int:
        """Pixels of the shorter side (`crop`) or both sides (`squash`) before the centre crop."""
        return self.resize_to or self.size


class EncoderCard(Section):
    """The network that turns pixels into embeddings or class probabilities."""

    library: Literal["open_clip", "timm", "onnx", "sampled_pixels"]
    """Library that runs the network. `sampled_pixels` is a stand-in for tests and benchmarks."""
    architecture: Architecture
    """The library's name of the network."""
    weights: WeightsSource
    tensor_names: Literal["transformers_vit"] | None = None
    """timm: set it for weights from transformers' ViTForImageClassification. Null means timm's names."""
    activation: Literal["gelu", "quick_gelu"] | None = None
    """open_clip: the activation in training; OpenAI used quick_gelu. Your own weights file needs it.
    open_clip knows it for its published weights."""
    embedding_dim: Annotated[int, Field(ge=1)] | None = None
    """D: length of the embedding; null for a model without embeddings."""
    embedding_output: str | None = None
    """onnx: name of the graph's tensor, shape (N, D), with the embedding before normalisation."""
    precision: Literal["float32", "float16", "bfloat16"] = "float32"
    """Arithmetic on a GPU. A CPU computes in float32."""


_SCORE: Final = r"^(sigmoid|clamp|linear|(probability|cumulative|highest):.+)$"
_KINDS_OF_SCORE: Final = {"classes": ("probability", "cumulative"), "boxes": ("highest",)}


class HeadCard(Section):
    """The small classifier behind the encoder."""

    library: Literal["laion", "mlp", "classes", "boxes"]
    """`laion` and `mlp` score the embedding: LAION's Keras model, or linear layers in a safetensors or
    torch file. `classes` takes class probabilities from the encoder, `boxes` takes a detector's boxes."""
    weights: WeightsSource | None = None
    """The weights file of `laion` and `mlp`."""
    head_encoding: Literal["plain", "exact"] = "plain"
    """laion: `exact` looks numbers up in a vocabulary, as the TensorFlow model does: docs/heads.md."""
    layers: tuple[Annotated[int, Field(ge=1)] | Literal["relu"], ...] = ()
    """mlp: widths of the linear layers in order, with `relu` where one follows: `[256, relu, 16, 1]`."""
    classes: tuple[str, ...] = ()
    """Names of the encoder's classes, in order."""
    score: Annotated[str, Field(pattern=_SCORE)] = "sigmoid"
    """`sigmoid`, `clamp` (to 0..1) or `linear` of the head's output; `probability:NAME` of one class;
    `cumulative:NAME` of that level or higher; `highest:NAME,…` of the best box of these classes, or 0."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.library == "laion" and (self.weights is None or self.score != "sigmoid"):
            raise ValueError("library laion needs `weights` and `score: sigmoid`")
        if self.library == "mlp" and (self.weights is None or not self._has_layers() or self.scored):
            raise ValueError(
                "library mlp needs `weights`, `layers` such as [256, relu, 16, 1], and `score` sigmoid, "
                f"clamp or linear; got layers {list(self.layers)} and score {self.score}"
            )
        if self.layers and self.library != "mlp":
            raise ValueError(f"layers need library mlp; got library {self.library}")
        if self.head_encoding == "exact" and self.library != "laion":
            raise ValueError(f"head_encoding exact needs library laion; got library {self.library}")
        if self.library in _KINDS_OF_SCORE and not self._names_its_classes():
            kinds = " or ".join(f"{kind}:NAME" for kind in _KINDS_OF_SCORE[self.library])
            raise ValueError(
                f"score is {self.score!r}; expected {kinds}, NAME one of {list(self.choices or self.classes)}"
            )
        return self

    @property
    def kind(self) -> str:
        """The word before the colon of `score`."""
        return self.score.partition(":")[0]

    @property
    def scored(self) -> tuple[str, ...]:
        """The classes that `score` names; empty for `sigmoid`, `clamp` and `linear`."""
        names = self.score.partition(":")[2]
        several = names.split(",") if self.kind == "highest" else [names]
        return tuple(name.strip() for name in several if name)

    @property
    def choices(self) -> tuple[str, ...]:
        """The classes that `score` may name. The lowest level is not one: it means safe."""
        return self.classes[1:] if self.kind == "cumulative" else self.classes

    @property
    def scores_embeddings(self) -> bool:
        """Whether this head needs only the embedding."""
        return self.library in {"laion", "mlp"}

    def _has_layers(self) -> bool:
        """Whether `layers` begins with a width, ends with one output, and never repeats `relu`."""
        pairs = pairwise(("relu", *self.layers))
        return self.layers[-1:] == (1,) and ("relu", "relu") not in pairs

    def _names_its_classes(self) -> bool:
        is_of_kind = self.kind in _KINDS_OF_SCORE[self.library]
        return is_of_kind and bool(self.scored) and set(self.scored) <= set(self.choices)


class Size(Section):
    """The size of a model, in numbers and in millions of bytes; null where it is unknown."""

    parameters: Annotated[int, Field(gt=0)] | None = None
    """Trained numbers of encoder and head."""
    download_mb: Annotated[float, Field(gt=0)] | None = None
    memory_mb: Annotated[float, Field(gt=0)] | None = None
    """Peak memory of a process that scores batches of 16 on a CPU."""


class Accuracy(Section):
    """One figure that the model's authors measured, and the URL where they publish it."""

    measured: str
    value: str
    source: str


class SecondsPerImage(Section):
    """Rough cost of one image on one core and on one GPU. The job sizes micro-batches with it."""

    cpu: Annotated[float, Field(gt=0)]
    cuda: Annotated[float, Field(gt=0)]


class ModelCard(Section):
    """One model: encoder, heads, preprocessing, the origin of the weights, and their licence."""

    name: Annotated[str, Field(pattern=r"^[\w.-]+$")]
    """Name of the model, in options and in the column `model`."""
    summary: str
    """One line for `models list`."""
    source: str
    """URL where the authors publish the model."""
    licence: str
    warning: str | None = None
    """Shown by `models list` and at each use of the model."""
    size: Size = Size()
    accuracy: tuple[Accuracy, ...] = ()
    """The authors' figures on their own data. Figures of two models are not comparable."""
    bad_at: tuple[str, ...] = ()
    encoder: EncoderCard
    head: HeadCard
    """The head that gives nsfw_score, and class_scores if it has classes."""
    other_heads: dict[Annotated[str, Field(pattern="^[a-z][a-z0-9_]*$")], HeadCard] = Field(default={})
    """Further heads on the same embedding. Head `aesthetic` gives the column aesthetic_score."""
    preprocessing: Preprocessing
    seconds_per_image: SecondsPerImage

    @model_validator(mode="after")
    def _heads_fit_encoder(self) -> Self:
        for head in self.heads.values():
            if head.scores_embeddings and self.encoder.embedding_dim is None:
                raise ValueError(f"a {head.library} head needs encoder.embedding_dim")
        if self.encoder.library == "timm" and self.head.library != "classes":
            raise ValueError(f"a timm encoder ends in classes; head.library is {self.head.library}")
        if self.head.score == "linear":
            raise ValueError(
                "head.score is linear; expected sigmoid, clamp or probability:NAME: nsfw_score is in [0, 1]"
            )
        for name, head in self.other_heads.items():
            if name == "nsfw" or not head.scores_embeddings:
                raise ValueError(
                    f"other_heads.{name} has library {head.library}; expected heads of library laion or mlp, "
                    "on the embedding, with names other than nsfw, which is `head`"
                )
        return self

    def __hash__(self) -> int:  # pydantic's own fails on the dict
        return hash((self.name, self.encoder, *self.heads.items(), self.preprocessing))

    @property
    def heads(self) -> dict[str, HeadCard]:
        """All heads by name: `nsfw` first, then `other_heads`."""
        return {"nsfw": self.head, **self.other_heads}

    @property
    def weights_sources(self) -> dict[str, WeightsSource]:
        """The weights of the model by part: `encoder`, `head`, and for example `aesthetic_head`."""
        heads = {head_part(name): head.weights for name, head in self.heads.items()}
        return {"encoder": self.encoder.weights, **{part: at for part, at in heads.items() if at is not None}}

    def with_weights_sources(self, sources: Mapping[str, WeightsSource]) -> Self:
        """Return the same model with some of its `weights_sources` replaced."""

        def moved(section: EncoderCard | HeadCard, part: str) -> Any:  # noqa: ANN401 - of the section's type
            return section.model_copy(update={"weights": sources[part]}) if part in sources else section

        others = {name: moved(head, head_part(name)) for name, head in self.other_heads.items()}
        changed = {"encoder": moved(self.encoder, "encoder"), "head": moved(self.head, "head")}
        return self.model_copy(update={**changed, "other_heads": others})

    @property
    def random_parts(self) -> set[str]:
        """The parts with random weights. Their scores mean nothing."""
        return {part for part, source in self.weights_sources.items() if source.random is not None}

    def decisive_of_heads(self) -> dict[str, Any]:
        """Return the fields of the heads that decide scores, without the weights, for fingerprints."""
        return {name: head.model_dump(mode="json", exclude={"weights"}) for name, head in self.heads.items()}

    def fingerprint(self, checksums: Mapping[str, str]) -> str:
        """Hash everything that decides a score: weights, preprocessing, precision.

        Two rows with the same fingerprint have comparable scores. Names and descriptions do not count.

        Args:
            checksums: Sha256 (or `random:SEED`) of each part of `weights_sources`.

        Returns:
            16 hexadecimal digits.
        """
        # Weights have a checksum. Wrong tensor names or a wrong activation are errors, not other scores.
        undecisive = {"weights", "tensor_names", "activation"}
        decisive = {
            "encoder": self.encoder.model_dump(mode="json", exclude=undecisive),
            "heads": self.decisive_of_heads(),
            "preprocessing": self.preprocessing.model_dump(mode="json"),
            "weights": dict(checksums),
        }
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]


def head_part(name: str) -> str:
    """Return the key of a head in `weights_sources`: `head` for `nsfw`, else `NAME_head`."""
    return "head" if name == "nsfw" else f"{name}_head"
