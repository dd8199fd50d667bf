"""On a CUDA device: a table that a CPU began can be continued, in each card's own precision."""

from __future__ import annotations

import pytest

from nsfw_spark.cards import load_card
from nsfw_spark.model import ModelSpec, load_model
from nsfw_spark.model_card import ModelCard
from nsfw_spark.self_check import check_same

SEEDED = [
    "adamcodd-vit-b-384",
    "falconsai-vit-b-224",
    "freepik-eva02-b-448",
    "laion-vit-b-32",
    "laion-vit-l-14",
    "marqo-vit-tiny-384",
]


@pytest.mark.parametrize("name", SEEDED)
def test_the_gpu_computes_what_the_cpu_did_and_the_other_way_round(name: str) -> None:
    content = load_card(name).model_dump()
    content["encoder"]["weights"] = {"random": 7}
    card = ModelCard.model_validate(content)
    on_cpu, on_gpu = (
        load_model(ModelSpec(card, device=device, batch_size=1)).self_check for device in ("cpu", "cuda")
    )
    assert on_cpu is not None
    assert on_gpu is not None
    assert (on_cpu.precision, on_gpu.precision) == ("float32", card.encoder.precision)
    check_same(on_gpu, on_cpu, name)
    check_same(on_cpu, on_gpu, name)
