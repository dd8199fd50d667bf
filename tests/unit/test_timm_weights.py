"""Weights of timm's networks: those of the architecture load, by whichever names; others are named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from transformers import (
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from nsfw_spark.encoders import Encoded, load_encoder
from nsfw_spark.encoders.timm import TimmEncoder, timm_names
from nsfw_spark.errors import ConfigError, WeightsError
from nsfw_spark.model_card import ModelCard
from nsfw_spark.weights import WeightsFile
from tests.fakes import card

SIZE = 160
Tensors = dict[str, torch.Tensor]


def small_card(*, head: dict[str, Any] | None = None, **encoder: Any) -> ModelCard:  # noqa: ANN401
    """Return the card of timm's own network for tests: of 64 numbers."""
    classes = {"library": "classes", "classes": ["a", "b"], "score": "probability:b", "weights": None}
    network = {"library": "timm", "architecture": "test_vit", "embedding_dim": 64, "weights": {"random": 1}}
    return card(encoder=network | encoder, head=classes | (head or {}), preprocessing={"size": SIZE})


def encode(model_card: ModelCard, weights: WeightsFile) -> Encoded:
    pixels = np.random.default_rng(0).integers(0, 256, (2, SIZE, SIZE, 3), np.uint8)
    return load_encoder(model_card, weights, "cpu").encode(pixels)


def encode_with(tensors: Tensors, directory: Path, model_card: ModelCard | None = None) -> Encoded:
    path = directory / "model.safetensors"
    save_file(tensors, path)
    return encode(model_card or small_card(), WeightsFile(path, ""))


@pytest.fixture
def tensors() -> Tensors:
    torch.manual_seed(1)
    return dict(timm.create_model("test_vit", num_classes=2).state_dict())


def test_a_seed_gives_the_network_that_timm_makes_of_it(tensors: Tensors, tmp_path: Path) -> None:
    seeded, loaded = encode(small_card(), WeightsFile(None, "random:1")), encode_with(tensors, tmp_path)
    np.testing.assert_allclose(seeded.probabilities, loaded.probabilities, rtol=0, atol=1e-6)
    np.testing.assert_allclose(seeded.embeddings, loaded.embeddings, rtol=0, atol=1e-6)
    other = encode(small_card(weights={"random": 2}), WeightsFile(None, "random:2"))
    assert not np.allclose(other.embeddings, seeded.embeddings, atol=1e-2)


def test_it_gives_unit_embeddings_and_probabilities(tensors: Tensors, tmp_path: Path) -> None:
    found = encode_with(tensors, tmp_path)
    assert found.embeddings is not None
    assert found.probabilities is not None
    assert found.embeddings.dtype == found.probabilities.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found.embeddings, axis=1), [1, 1], atol=1e-5)
    np.testing.assert_allclose(found.probabilities.sum(axis=1), [1, 1], atol=1e-6)
    assert not np.allclose(found.embeddings[0], found.embeddings[1], atol=1e-3)


def test_without_a_dimension_there_is_no_embedding(tensors: Tensors, tmp_path: Path) -> None:
    found = encode_with(tensors, tmp_path, small_card(embedding_dim=None))
    assert found.embeddings is None
    assert found.probabilities is not None


def test_the_names_that_transformers_wrapper_gives_are_known(tensors: Tensors, tmp_path: Path) -> None:
    wrapped = {f"timm_model.{name}": tensor for name, tensor in tensors.items()}
    expected = encode_with(tensors, tmp_path).probabilities
    np.testing.assert_array_equal(encode_with(wrapped, tmp_path).probabilities, expected)
    model = TimmWrapperForImageClassification(TimmWrapperConfig(architecture="test_vit", num_labels=2))
    model.save_pretrained(tmp_path / "wrapper")
    encode(small_card(), WeightsFile(tmp_path / "wrapper" / "model.safetensors", ""))


def test_half_precision_weights_compute_in_float32_on_a_cpu(tensors: Tensors, tmp_path: Path) -> None:
    save_file({name: tensor.bfloat16() for name, tensor in tensors.items()}, tmp_path / "half.safetensors")
    encoder = load_encoder(small_card(), WeightsFile(tmp_path / "half.safetensors", ""), "cpu")
    assert isinstance(encoder, TimmEncoder)
    assert {tensor.dtype for tensor in encoder._network.state_dict().values()} == {torch.float32}


def without(tensors: Tensors, name: str) -> Tensors:
    return {each: tensor for each, tensor in tensors.items() if each != name}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda tensors: without(tensors, "blocks.1.attn.qkv.weight"), "Missing.*blocks.1.attn.qkv.weight"),
        (lambda tensors: tensors | {"extra.weight": torch.ones(3)}, "Unexpected.*extra.weight"),
        (lambda tensors: tensors | {"head.weight": torch.ones(3, 64)}, "size mismatch for head.weight"),
    ],
)
def test_weights_of_another_network_are_a_weights_error(
    tensors: Tensors, tmp_path: Path, change: Callable[[Tensors], Tensors], named: str
) -> None:
    with pytest.raises(WeightsError, match=f"does not hold the weights of test_vit.*{named}"):
        encode_with(change(tensors), tmp_path)


@pytest.fixture
def vit() -> Tensors:
    """What transformers writes for a small ViT with the shapes of timm's."""
    config = ViTConfig(
        image_size=SIZE, hidden_size=64, num_hidden_layers=6, num_attention_heads=2, intermediate_size=192
    )
    return {name: tensor.contiguous() for name, tensor in saved(ViTForImageClassification(config)).items()}


def saved(model: ViTForImageClassification) -> Tensors:
    import tempfile

    from safetensors.torch import load_file

    with tempfile.TemporaryDirectory() as directory:
        model.save_pretrained(directory)
        return load_file(Path(directory) / "model.safetensors")


def test_each_tensor_of_transformers_has_its_place_in_timms_network(vit: Tensors) -> None:
    network = timm.create_model("test_vit", num_classes=2)
    renamed = timm_names(vit)
    expected = {name: tensor.shape for name, tensor in network.state_dict().items()}
    assert {name: tensor.shape for name, tensor in renamed.items()} == expected
    layer = "vit.encoder.layer.3.attention.attention"
    parts = [vit[f"{layer}.{part}.weight"] for part in ("query", "key", "value")]
    torch.testing.assert_close(renamed["blocks.3.attn.qkv.weight"], torch.cat(parts))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (
            lambda vit: without(vit, "vit.encoder.layer.2.attention.attention.key.bias"),
            r"Missing.*blocks\.2\.attn\.qkv\.bias.*Unexpected.*layer\.2\.attention\.attention\.query\.bias",
        ),
        (lambda vit: without(vit, "vit.layernorm.weight"), r"Missing.*norm\.weight"),
        (
            lambda vit: vit | {"vit.pooler.dense.bias": torch.ones(64)},
            r"Unexpected.*vit\.pooler\.dense\.bias",
        ),
    ],
)
def test_what_transformers_names_otherwise_is_a_weights_error(
    vit: Tensors, tmp_path: Path, change: Callable[[Tensors], Tensors], named: str
) -> None:
    model_card = small_card(tensor_names="transformers_vit")
    encode_with(vit, tmp_path, model_card)
    with pytest.raises(WeightsError, match=named):
        encode_with(change(vit), tmp_path, model_card)


def test_names_that_the_card_does_not_say_are_a_weights_error(vit: Tensors, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"Missing.*cls_token"):
        encode_with(vit, tmp_path)


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        ({"architecture": "vit_q_99"}, r"encoder\.architecture is 'vit_q_99', which timm cannot build"),
        ({"embedding_dim": 65}, r"encoder\.embedding_dim is 65, and the pooled features .* are 64 numbers"),
    ],
)
def test_a_card_that_timm_cannot_follow_is_a_config_error(encoder: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        encode(small_card(**encoder), WeightsFile(None, "random:1"))


def test_a_file_that_holds_nothing_is_a_weights_error(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="holds no tensor"):
        encode_with({}, tmp_path)
