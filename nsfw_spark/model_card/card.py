"""A whole model card: what computes a score, and what is known of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Final, Self

from pydantic import Field, model_validator

from nsfw_spark.model_card.encoder import EncoderCard
from nsfw_spark.model_card.facts import Accuracy, SecondsPerImage, Size
from nsfw_spark.model_card.head import HeadCard
from nsfw_spark.model_card.preprocessing import Preprocessing
from nsfw_spark.model_card.weights_source import WeightsSource
from nsfw_spark.sections import Section

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
