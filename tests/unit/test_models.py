"""The facts in the built-in cards are true and complete."""

from __future__ import annotations

from itertools import pairwise
from math import prod

import onnx
import open_clip
import pytest
import timm
import torch

from nsfw_spark.cards import built_in_models, load_card
from nsfw_spark.laion import read_head
from nsfw_spark.model_card import HeadCard, ModelCard
from nsfw_spark.weights import locate_weights


def in_encoder(card: ModelCard) -> int:
    """Count the numbers of the real network, which takes no memory here."""
    with torch.device("meta"):
        match card.encoder.library:
            case "open_clip":
                network = open_clip.create_model(
                    card.encoder.architecture, load_weights=False, device="meta"
                ).visual
            case "timm":
                network = timm.create_model(card.encoder.architecture, num_classes=len(card.head.classes))
            case _:
                graph = onnx.load(str(locate_weights(card)["encoder"].path)).graph
                weights = [each for each in graph.initializer if each.data_type == onnx.TensorProto.FLOAT]
                return sum(prod(each.dims) for each in weights if each.dims)
    return sum(each.numel() for each in network.parameters())


def in_head(card: ModelCard, part: str, head: HeadCard) -> int:
    if head.library == "laion":
        layers = read_head(locate_weights(card, parts=[part])[part].path).layers
        return sum(kernel.size + bias.size for kernel, bias in layers)
    widths = [card.encoder.embedding_dim, *(width for width in head.layers if width != "relu")]
    return sum((inputs + 1) * outputs for inputs, outputs in pairwise(widths))


@pytest.mark.parametrize("name", built_in_models())
def test_a_card_says_how_many_numbers_were_trained(name: str) -> None:
    card = load_card(name)
    heads = zip(("head", *(f"{other}_head" for other in card.other_heads)), card.heads.values(), strict=True)
    of_heads = sum(in_head(card, part, head) for part, head in heads if head.scores_embeddings)
    assert card.size.parameters == in_encoder(card) + of_heads


@pytest.mark.parametrize("name", built_in_models())
def test_a_card_says_what_its_model_is_bad_at(name: str) -> None:
    assert load_card(name).bad_at


@pytest.mark.parametrize("name", built_in_models())
def test_wide_images_are_cropped_squashed_or_shrunk_and_the_card_says_so(name: str) -> None:
    card = load_card(name)
    word = {"crop": "margins", "squash": "squashed", "pad": "small figures"}[card.preprocessing.fit]
    assert any(word in weakness for weakness in card.bad_at)
