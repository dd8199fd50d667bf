"""Encoders: they read or refuse weights; their outputs have the right shape, length and activation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from nsfw_spark.cards import built_in_models, load_card
from nsfw_spark.decode import decode
from nsfw_spark.encoders import Encoder, load_encoder, normalise, unit_length
from nsfw_spark.encoders.open_clip import OpenClipEncoder, check_activation
from nsfw_spark.errors import ConfigError, DeviceError, WeightsError
from nsfw_spark.model import ModelSpec, load_model
from nsfw_spark.model_card import EncoderCard, ModelCard, Preprocessing
from nsfw_spark.weights import WeightsFile, locate_weights
from tests.conftest import encoded, jpeg, png
from tests.fakes import card
from tests.seeded import RANDOM, SEED, by_us, clip_card, open_clips_own, photo

Embeddings = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def b32() -> tuple[torch.nn.Module, Encoder]:
    model_card = clip_card("laion-vit-b-32")
    return open_clips_own("ViT-B-32-quickgelu"), load_encoder(model_card, RANDOM, "cpu")


def test_another_seed_is_another_encoder(b32: tuple[torch.nn.Module, Encoder]) -> None:
    other_card = clip_card("laion-vit-b-32").model_copy(deep=True)
    content = other_card.model_dump()
    content["encoder"]["weights"]["random"] = SEED + 1
    other = load_encoder(ModelCard.model_validate(content), WeightsFile(None, "random"), "cpu")
    how = other_card.preprocessing
    assert (by_us(b32[1], [png()], how) @ by_us(other, [png()], how).T).item() < 0.9


@pytest.fixture(scope="module")
def tensors(b32: tuple[torch.nn.Module, Encoder]) -> dict[str, torch.Tensor]:
    """What a CLIP checkpoint holds: the image tower under `visual.`, and something of the text tower."""
    state = b32[0].state_dict()
    wanted = {name: tensor for name, tensor in state.items() if name.startswith("visual.")}
    return {
        **wanted,
        "positional_embedding": state["positional_embedding"],
        "logit_scale": state["logit_scale"],
    }


@pytest.fixture
def checkpoint(tmp_path: Path) -> Iterator[Path]:
    """Where a checkpoint may be written; it is deleted again, for pytest keeps its directories."""
    path = tmp_path / "timm" / "vit_base_patch32_clip_224.openai" / "open_clip_model.safetensors"
    path.parent.mkdir(parents=True)
    yield path
    path.unlink(missing_ok=True)


def load_from(path: Path, name: str = "laion-vit-b-32") -> OpenClipEncoder:
    encoder = load_encoder(load_card(name), WeightsFile(path, ""), "cpu")
    assert isinstance(encoder, OpenClipEncoder)
    return encoder


def test_weights_in_the_model_dir_give_the_embeddings_of_the_model_they_came_from(
    b32: tuple[torch.nn.Module, Encoder], tensors: dict[str, torch.Tensor], checkpoint: Path, tmp_path: Path
) -> None:
    save_file(tensors, checkpoint)
    model_card = load_card("laion-vit-b-32")
    found = locate_weights(model_card, tmp_path)["encoder"]
    assert found.path == checkpoint
    loaded = load_encoder(model_card, found, "cpu")
    contents = [photo("raccoon.jpg"), photo("stairs-portrait.jpg")]
    expected, ours = (by_us(encoder, contents, model_card.preprocessing) for encoder in (b32[1], loaded))
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-6)


def test_only_the_image_tower_is_held(tensors: dict[str, torch.Tensor], checkpoint: Path) -> None:
    save_file(tensors, checkpoint)
    held = load_from(checkpoint)._network.state_dict()
    assert {f"visual.{name}" for name in held} == {name for name in tensors if name.startswith("visual.")}
    assert all(tensor.device.type == "cpu" for tensor in held.values()), "a tensor was never loaded"


def test_half_precision_weights_compute_in_float32_on_a_cpu(
    tensors: dict[str, torch.Tensor], checkpoint: Path
) -> None:
    save_file({name: tensor.half() for name, tensor in tensors.items()}, checkpoint)
    assert {tensor.dtype for tensor in load_from(checkpoint)._network.state_dict().values()} == {
        torch.float32
    }


@pytest.mark.parametrize("change", ["missing", "extra", "shape"])
def test_weights_of_another_network_are_a_weights_error(
    tensors: dict[str, torch.Tensor], checkpoint: Path, change: str
) -> None:
    changed = dict(tensors)
    if change == "missing":
        del changed["visual.ln_post.weight"]
    else:
        name = "visual.extra.weight" if change == "extra" else "visual.ln_post.weight"
        changed[name] = torch.ones(3)
    save_file(changed, checkpoint)
    with pytest.raises(
        WeightsError, match=r"does not hold the weights of ViT-B-32-quickgelu.*(ln_post|extra)"
    ):
        load_from(checkpoint)


@pytest.mark.parametrize(
    "weights", [RANDOM, WeightsFile(Path("never-read.safetensors"), "")], ids=["random", "file"]
)
def test_an_unknown_architecture_is_a_config_error(weights: WeightsFile) -> None:
    unknown = card(encoder={"library": "open_clip", "architecture": "ViT-Q-99"})
    with pytest.raises(ConfigError, match=r"encoder\.architecture is 'ViT-Q-99'"):
        load_encoder(unknown, weights, "cpu")


def test_an_absent_gpu_is_a_device_error() -> None:
    with pytest.raises(DeviceError, match=r"device is cuda:99, and torch sees.*--device cpu"):
        load_encoder(clip_card("laion-vit-b-32"), RANDOM, "cuda:99")


def sampled(seed: int, contents: list[bytes], dim: int = 768) -> Embeddings:
    model_card = card(encoder={"weights": {"random": seed}, "embedding_dim": dim})
    encoder = load_encoder(model_card, WeightsFile(None, f"random:{seed}"), "cpu")
    return by_us(encoder, contents, model_card.preprocessing)


def test_sampled_pixels_depend_on_image_and_seed_and_nothing_else() -> None:
    contents = [png(), jpeg(300, 200, seed=1)]
    first, again, other = sampled(1, contents), sampled(1, contents), sampled(2, contents)
    assert first.shape == (2, 768)
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)
    assert not np.allclose(first[0], first[1])
    np.testing.assert_allclose(np.linalg.norm(first, axis=1), 1, atol=1e-5)


def test_sampled_pixels_of_a_black_image_are_an_embedding() -> None:
    black = encoded(Image.new("RGB", (8, 8)), "PNG")
    assert np.isfinite(sampled(1, [black], dim=5)).all()


@pytest.mark.parametrize(
    "wrong", [{"weights": {"path": "w.bin"}}, {"weights": {"huggingface": "a/b", "file": "c"}}]
)
def test_sampled_pixels_take_no_file(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"sampled_pixels needs encoder\.weights\.random"):
        load_encoder(card(encoder=wrong), WeightsFile(Path("w.bin"), ""), "cpu")


@pytest.fixture(scope="module")
def open_nsfw() -> tuple[ModelCard, WeightsFile]:
    model_card = load_card("open-nsfw")
    return model_card, locate_weights(model_card)["encoder"]


def test_open_nsfw_gives_unit_embeddings_and_probabilities(open_nsfw: tuple[ModelCard, WeightsFile]) -> None:
    model_card = open_nsfw[0]
    squares = [decode(photo(name), model_card.preprocessing).pixels for name in ("cat.jpg", "gravel.png")]
    found = load_encoder(*open_nsfw, "cpu").encode(np.stack(squares))
    assert found.embeddings is not None
    assert found.probabilities is not None
    assert found.embeddings.shape == (2, model_card.encoder.embedding_dim) == (2, 1024)
    np.testing.assert_allclose(np.linalg.norm(found.embeddings, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(found.probabilities.sum(axis=1), 1, atol=1e-5)
    assert (found.embeddings[0] @ found.embeddings[1]).item() < 0.99


def test_an_embedding_that_the_graph_lacks_is_a_config_error(
    open_nsfw: tuple[ModelCard, WeightsFile],
) -> None:
    content = open_nsfw[0].model_dump()
    content["encoder"]["embedding_output"] = "no_such:0"
    with pytest.raises(ConfigError, match=r"encoder\.embedding_output is 'no_such:0'"):
        load_encoder(ModelCard.model_validate(content), open_nsfw[1], "cpu")


def test_normalising_follows_the_card() -> None:
    how = {"size": 1, "mean": [10, 20, 30], "std": [1, 2, 4], "scale": 1}
    pixel = np.uint8([[[[11, 24, 42]]]])
    rgb = normalise(pixel, Preprocessing.model_validate(how))
    bgr = normalise(pixel, Preprocessing.model_validate({**how, "channels": "bgr"}))
    assert rgb.tolist() == [[[[1, 2, 3]]]]
    assert bgr.tolist() == [[[[32, 2, -4.75]]]]
    assert rgb.dtype == bgr.dtype == np.float32


def test_a_row_of_zeros_has_no_direction() -> None:
    rows = unit_length(np.float32([[3, 4], [0, 0]]))
    np.testing.assert_allclose(rows, [[0.6, 0.8], [np.nan, np.nan]])


OPENAI = {"huggingface": "timm/vit_base_patch32_clip_224.openai", "file": "open_clip_model.safetensors"}
LAION = {"huggingface": "laion/CLIP-ViT-B-32-laion2B-s34B-b79K", "file": "open_clip_model.safetensors"}
OWN = {"path": "tower.safetensors"}
QUICK, PLAIN = "ViT-B-32-quickgelu", "ViT-B-32"


def encoder_card(architecture: str, weights: dict[str, str], activation: str | None = None) -> EncoderCard:
    content: dict[str, Any] = {
        "library": "open_clip",
        "architecture": architecture,
        "weights": weights,
        "activation": activation,
    }
    return EncoderCard.model_validate(content)


@pytest.mark.parametrize(
    "right",
    [
        encoder_card(QUICK, OPENAI),
        encoder_card(QUICK, OPENAI, "quick_gelu"),
        encoder_card(PLAIN, LAION),
        encoder_card(QUICK, OWN, "quick_gelu"),
        encoder_card(PLAIN, OWN, "gelu"),
    ],
)
def test_the_activation_that_the_weights_were_trained_with_is_accepted(right: EncoderCard) -> None:
    check_activation(right)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            encoder_card(PLAIN, OPENAI),
            f"computes gelu, and open_clip says .* quick_gelu.*architecture {QUICK}$",
        ),
        (
            encoder_card(QUICK, LAION),
            f"computes quick_gelu, and open_clip says .* gelu.*architecture {PLAIN}$",
        ),
        (encoder_card(PLAIN, OWN, "quick_gelu"), r"and encoder\.activation says"),
        (encoder_card(QUICK, OWN, "gelu"), r"and encoder\.activation says"),
        (encoder_card(QUICK, OPENAI, "gelu"), r"and encoder\.activation says"),
        (encoder_card(PLAIN, OPENAI, "gelu"), "and open_clip says"),
        (encoder_card(QUICK, OWN), r"encoder\.activation is missing.*expected the one.*quick_gelu.*or gelu"),
        (encoder_card(PLAIN, OWN), r"encoder\.activation is missing"),
        (
            encoder_card(PLAIN, {**LAION, "huggingface": "somebody/fine-tuned"}),
            r"encoder\.activation is missing",
        ),
    ],
    ids=lambda value: (
        f"{value.architecture} {value.weights.repository}" if isinstance(value, EncoderCard) else ""
    ),
)
def test_another_one_and_an_unknown_one_are_config_errors(wrong: EncoderCard, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_activation(wrong)


@pytest.mark.parametrize(
    "name", [name for name in built_in_models() if load_card(name).encoder.library == "open_clip"]
)
def test_the_built_in_cards_are_right_and_would_be_wrong_with_the_other(name: str) -> None:
    right = load_card(name).encoder
    check_activation(right)
    has_suffix = right.architecture.endswith("-quickgelu")
    other = right.architecture.removesuffix("-quickgelu") + ("" if has_suffix else "-quickgelu")
    with pytest.raises(ConfigError, match=f"Expected the architecture {right.architecture}$"):
        check_activation(right.model_copy(update={"architecture": other}))


def test_a_model_with_another_activation_is_not_loaded(tmp_path: Path) -> None:
    """And it is said before the weights are read: a file of two gigabytes."""
    (tmp_path / "tower.safetensors").touch()
    weights = {"path": tmp_path / "tower.safetensors", "random": None}
    own = card(
        encoder={"library": "open_clip", "architecture": QUICK, "weights": weights, "activation": "gelu"}
    )
    with pytest.raises(ConfigError, match=r"encoder\.activation says"):
        load_model(ModelSpec(own, device="cpu"))
