"""What turns an encoder's output into scores: a part of the model card, as data."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from nsfw_spark.model_card.weights_source import WeightsSource
from nsfw_spark.sections import Section

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
