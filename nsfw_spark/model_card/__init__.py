"""Model cards: one validated YAML file describes one model, whole.

In: the name of a built-in card, or the path of a card file. Out: a `ModelCard`, checked, frozen and small
enough to travel with a UDF. Its parts: `weights_source`, `preprocessing`, `encoder`, `head`, `facts`.
"""

from __future__ import annotations

from nsfw_spark.model_card.card import ModelCard, head_part
from nsfw_spark.model_card.choice import choose_card, with_heads, with_score_class
from nsfw_spark.model_card.encoder import EncoderCard
from nsfw_spark.model_card.head import HeadCard
from nsfw_spark.model_card.preprocessing import Preprocessing
from nsfw_spark.model_card.reading import built_in_models, load_card
from nsfw_spark.model_card.shown import card_text
from nsfw_spark.model_card.weights_source import WeightsSource

__all__ = [
    "EncoderCard",
    "HeadCard",
    "ModelCard",
    "Preprocessing",
    "WeightsSource",
    "built_in_models",
    "card_text",
    "choose_card",
    "head_part",
    "load_card",
    "with_heads",
    "with_score_class",
]
