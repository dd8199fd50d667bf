"""Model cards: one validated YAML file describes one model, whole.

In: the name of a built-in card, or the path of a card file. Out: a `ModelCard`, checked, frozen and small
enough to travel with a UDF. Its parts: `weights_source`, `preprocessing`, `encoder`, `head`, `facts`.
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

Repository = Annotated[str, Field(pattern=r"^\w[\w.-]*/\w[\w.-]*$")]
"""`owner/name`."""

Revision = Annotated[str, Field(pattern=r"^\w[\w.-]*(/\w[\w.-]*)*$")]
"""A commit, a tag or a branch."""

Package = Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$")]
"""An installed package, not one inside another: to find that, Python would run the outer one."""

Architecture = Annotated[str, Field(pattern=r"^\w[\w.-]*$")]
"""A network that a library knows itself: not `hf-hub:…` or `local-dir:…`, which open_clip would load."""


def is_inside(path: str | Path) -> bool:
    """Whether a path is relative and leads to no parent."""
    parts = PurePosixPath(path)
    return bool(parts.parts) and not parts.is_absolute() and ".." not in parts.parts and "\0" not in str(path)


def _checked(file: str) -> str:
    if not is_inside(file):
        raise ValueError(f"got {file!r}; expected a relative path, without `..`")
    return file


InnerFile = Annotated[str, AfterValidator(_checked)]
"""A file's path inside a repository or package."""


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


_Triple = tuple[float, float, float]


class Preprocessing(Section):
    """How an image becomes the encoder's input, as the model's authors do it."""

    size: Annotated[int, Field(ge=1, le=4096)]
    """S: width and height of what the encoder gets, pixels."""
    resize_to: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Pixels of the shorter side (`crop`) or both sides (`squash`) before the centre crop; default `size`."""
    fit: Literal["crop", "squash", "pad"] = "crop"
    """`crop`: keep the aspect ratio, lose the margins. `squash`: keep all, lose the aspect ratio.

    `pad`: keep both, with black below or to the right.
    """
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    resizer: Literal["simd", "pillow", "sampled"] = "simd"
    """`pillow`: slower, for models whose score moves with the last bit of a pixel.

    `sampled`: between the four nearest pixels, all others are skipped, as OpenCV does it. For `pad`.
    """
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

    @model_validator(mode="after")
    def _pad_is_sampled(self) -> Self:
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
    """What computes it. `sampled_pixels` costs nothing and knows nothing: for tests and benchmarks."""
    architecture: Architecture
    """The library's own name of the network."""
    weights: WeightsSource
    tensor_names: Literal["transformers_vit"] | None = None
    """timm: weights that transformers' ViTForImageClassification wrote; null: the library's own names."""
    activation: Literal["gelu", "quick_gelu"] | None = None
    """open_clip: with which its weights were trained, OpenAI's with quick_gelu. Needed for a file of your
    own; of repositories that open_clip knows, it says so itself."""
    embedding_dim: Annotated[int, Field(ge=1)] | None = None
    """D: length of the embedding; null where the model gives none."""
    embedding_output: str | None = None
    """onnx: the tensor of the graph, shape (N, D), that holds the embedding before it is normalised."""
    precision: Literal["float32", "float16", "bfloat16"] = "float32"
    """Arithmetic on a GPU. A CPU computes in float32."""


_SCORE: Final = r"^(sigmoid|clamp|linear|(probability|cumulative|highest):.+)$"
_KINDS_OF_SCORE: Final = {"classes": ("probability", "cumulative"), "boxes": ("highest",)}


class HeadCard(Section):
    """The small classifier behind the encoder."""

    library: Literal["laion", "mlp", "classes", "boxes"]
    """`laion`: one of LAION's Keras archives. `mlp`: linear layers in a torch or safetensors file. Both score
    the embedding. `classes`: the encoder ends in class probabilities itself. `boxes`: it is a detector."""
    weights: WeightsSource | None = None
    head_encoding: Literal["plain", "exact"] = "plain"
    """laion: `exact` looks some numbers up in a vocabulary, as the TensorFlow model does: docs/heads.md."""
    layers: tuple[Annotated[int, Field(ge=1)] | Literal["relu"], ...] = ()
    """mlp: widths of the linear layers, in order, `relu` behind those that have one: `[256, relu, 16, 1]`."""
    classes: tuple[str, ...] = ()
    """Names of the encoder's classes, in order."""
    score: Annotated[str, Field(pattern=_SCORE)] = "sigmoid"
    """`sigmoid`: of the head's output. `clamp`: the output, cut off at 0 and 1. `linear`: the output itself.
    `probability:NAME`: that class's. `cumulative:NAME`: where classes are levels, the probability of that
    level or a higher one. `highest:NAME,…`: the score of the best box of these classes; 0 without any."""

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
            raise ValueError(f"layers are for library mlp; got library {self.library}")
        if self.head_encoding == "exact" and self.library != "laion":
            raise ValueError(f"head_encoding exact is for library laion; got library {self.library}")
        if self.library in _KINDS_OF_SCORE and not self._names_its_classes():
            kinds = " or ".join(f"{kind}:NAME" for kind in _KINDS_OF_SCORE[self.library])
            raise ValueError(
                f"score is {self.score!r}; expected {kinds}, NAME one of {list(self.choices or self.classes)}"
            )
        return self

    def _has_layers(self) -> bool:
        """Whether `layers` begins with a width, has none but single `relu`s, and ends with one output."""
        pairs = pairwise(("relu", *self.layers))
        return self.layers[-1:] == (1,) and ("relu", "relu") not in pairs

    @property
    def scores_embeddings(self) -> bool:
        """Whether the embedding is all that this head needs."""
        return self.library in {"laion", "mlp"}

    def _names_its_classes(self) -> bool:
        is_of_kind = self.kind in _KINDS_OF_SCORE[self.library]
        return is_of_kind and bool(self.scored) and set(self.scored) <= set(self.choices)

    @property
    def kind(self) -> str:
        """What of the classes the score is: the word before the colon."""
        return self.score.partition(":")[0]

    @property
    def scored(self) -> tuple[str, ...]:
        """The classes that the score is of; none for `sigmoid`."""
        names = self.score.partition(":")[2]
        several = names.split(",") if self.kind == "highest" else [names]
        return tuple(name.strip() for name in several if name)

    @property
    def choices(self) -> tuple[str, ...]:
        """The classes that the score can be of: not the lowest level, which says what is safe."""
        return self.classes[1:] if self.kind == "cumulative" else self.classes


class Size(Section):
    """How large a model is; null where it is not known."""

    parameters: Annotated[int, Field(gt=0)] | None = None
    """Numbers that were trained, of encoder and head."""
    download_mb: Annotated[float, Field(gt=0)] | None = None
    """Weights to download, in millions of bytes; null also where they come with a Python package."""
    memory_mb: Annotated[float, Field(gt=0)] | None = None
    """Most memory that a process with it held, scoring 16 images at once on a CPU, in millions of bytes."""


class Accuracy(Section):
    """One figure that a model's authors measured."""

    measured: str
    """What, and on which images."""
    value: str
    """As they write it."""
    source: str
    """Where they publish it."""


class SecondsPerImage(Section):
    """Rough cost of one image, to size micro-batches by; not a promise."""

    cpu: Annotated[float, Field(gt=0)]
    """Seconds of one core."""
    cuda: Annotated[float, Field(gt=0)]
    """Seconds of one GPU."""


_CHECKED_OF_ENCODER: Final = {"weights", "tensor_names", "activation"}
"""Change no score by themselves: weights have a checksum, and of the others what does not fit is an error."""


class ModelCard(Section):
    """One model: encoder, head, preprocessing, where they come from and under which licence."""

    name: Annotated[str, Field(pattern=r"^[\w.-]+$")]
    summary: str
    source: str
    """Where the model's authors publish it."""
    licence: str
    """Of the weights."""
    warning: str | None = None
    """What has to be known before this model is chosen: said when it is, and in `models list`."""
    size: Size = Size()
    accuracy: tuple[Accuracy, ...] = ()
    """What its authors measured, on their own data: no two models' figures can be compared."""
    bad_at: tuple[str, ...] = ()
    """What it does not see, or is mistaken about."""
    encoder: EncoderCard
    head: HeadCard
    """Gives nsfw_score, and class_scores where it has classes."""
    other_heads: dict[Annotated[str, Field(pattern="^[a-z][a-z0-9_]*$")], HeadCard] = Field(default={})
    """Further heads on the same embedding: head `aesthetic` gives the column aesthetic_score."""
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
        """All heads: `nsfw`, then the others."""
        return {"nsfw": self.head, **self.other_heads}

    @property
    def weights_sources(self) -> dict[str, WeightsSource]:
        """The weights that the model needs, by part: `encoder`, `head`, and such as `aesthetic_head`."""
        heads = {head_part(name): head.weights for name, head in self.heads.items()}
        return {"encoder": self.encoder.weights, **{part: at for part, at in heads.items() if at is not None}}

    def with_weights_sources(self, sources: Mapping[str, WeightsSource]) -> Self:
        """Return the same model, some of whose `weights_sources` are others."""

        def moved(section: EncoderCard | HeadCard, part: str) -> Any:  # noqa: ANN401 - of the section's type
            return section.model_copy(update={"weights": sources[part]}) if part in sources else section

        others = {name: moved(head, head_part(name)) for name, head in self.other_heads.items()}
        changed = {"encoder": moved(self.encoder, "encoder"), "head": moved(self.head, "head")}
        return self.model_copy(update={**changed, "other_heads": others})

    @property
    def has_random_weights(self) -> bool:
        """Whether any part has random weights, so that its scores mean nothing."""
        return bool(self.random_parts)

    @property
    def random_parts(self) -> set[str]:
        """Those of the `weights_sources` that are random."""
        return {part for part, source in self.weights_sources.items() if source.random is not None}

    def decisive_of_heads(self) -> dict[str, Any]:
        """Return what decides the heads' scores, except weights: a part of fingerprints."""
        return {name: head.model_dump(mode="json", exclude={"weights"}) for name, head in self.heads.items()}

    def fingerprint(self, checksums: Mapping[str, str]) -> str:
        """Hash all that decides a score: weights, preprocessing, precision.

        Two rows with the same fingerprint have comparable scores. Names and descriptions do not count.

        Args:
            checksums: Sha256 (or `random:SEED`) of each part of `weights_sources`.

        Returns:
            16 hexadecimal digits.
        """
        decisive = {
            "encoder": self.encoder.model_dump(mode="json", exclude=_CHECKED_OF_ENCODER),
            "heads": self.decisive_of_heads(),
            "preprocessing": self.preprocessing.model_dump(mode="json"),
            "weights": dict(checksums),
        }
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]


def head_part(name: str) -> str:
    """Return which of the `weights_sources` are those of a head."""
    return "head" if name == "nsfw" else f"{name}_head"
