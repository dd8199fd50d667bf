"""Encoders: the embedding is open_clip's own, of the same image and the same weights."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import open_clip
import pytest
import torch
from open_clip.transform import image_transform
from PIL import Image
from safetensors.torch import save_file

from nsfw_spark.decode import decode
from nsfw_spark.encoders import Encoder, OpenClipEncoder, load_encoder, normalise, unit_length
from nsfw_spark.errors import ConfigError, DeviceError, WeightsError
from nsfw_spark.model_card import ModelCard, Preprocessing, load_card
from nsfw_spark.weights import WeightsFile, locate_weights
from tests.conftest import PHOTOS, encoded, jpeg, png, textures
from tests.fakes import card

Embeddings = npt.NDArray[np.float32]
SEED = 7
RANDOM = WeightsFile(None, f"random:{SEED}")
COSINE = 0.99999
"""The least that counts as the same: our resize costs up to 4e-6, another activation 1.9e-5 and more."""


def clip_card(name: str) -> ModelCard:
    """Return a built-in card with random weights in place of OpenAI's, which are not here."""
    content = load_card(name).model_dump()
    content["encoder"]["weights"] = {"random": SEED}
    return ModelCard.model_validate(content)


def open_clips_own(architecture: str) -> torch.nn.Module:
    torch.manual_seed(SEED)
    return open_clip.create_model(architecture, load_weights=False).eval()


def by_open_clip(model: torch.nn.Module, contents: list[bytes], how: Preprocessing) -> Embeddings:
    transform = image_transform(how.size, is_train=False, mean=how.mean, std=how.std, interpolation="bicubic")
    batch = torch.stack([transform(Image.open(BytesIO(content))) for content in contents])
    with torch.inference_mode():
        return np.asarray(model.encode_image(batch, normalize=True))


def by_us(encoder: Encoder, contents: list[bytes], how: Preprocessing) -> Embeddings:
    embeddings = encoder.encode(np.stack([decode(content, how).pixels for content in contents])).embeddings
    assert embeddings is not None
    return embeddings


def assert_parity(
    model: torch.nn.Module, encoder: Encoder, contents: list[bytes], how: Preprocessing
) -> None:
    expected, ours = by_open_clip(model, contents, how), by_us(encoder, contents, how)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-5)
    np.testing.assert_array_less(COSINE, (expected * ours).sum(axis=1))
    others = (expected @ expected.T)[~np.eye(len(contents), dtype=bool)]
    assert others.max() < COSINE, "two of the images are alike to this model: they could be swapped"


def photo(name: str) -> bytes:
    return (PHOTOS / "photos" / name).read_bytes()


def cut(name: str, box: tuple[int, int, int, int]) -> bytes:
    """Return a part of a photograph, as a PNG of odd size."""
    return encoded(Image.open(BytesIO(photo(name))).convert("RGB").crop(box), "PNG")


@pytest.fixture(scope="module")
def b32() -> tuple[torch.nn.Module, Encoder]:
    model_card = clip_card("laion-vit-b-32")
    return open_clips_own("ViT-B-32-quickgelu"), load_encoder(model_card, RANDOM, "cpu")


@pytest.fixture(scope="module")
def l14() -> tuple[torch.nn.Module, Encoder]:
    model_card = clip_card("laion-vit-l-14")
    return open_clips_own("ViT-L-14-quickgelu"), load_encoder(model_card, RANDOM, "cpu")


B32_IMAGES = {
    "portrait jpeg": [
        photo("grace-hopper.jpg"),
        photo("stairs-portrait.jpg"),
        photo("raccoon-portrait.webp"),
    ],
    "panorama": [photo("raccoon-panorama.jpg"), photo("deep-field-panorama.jpg"), photo("cat-eyes.webp")],
    "other formats": [photo("coffee-portrait.avif"), photo("clock-blurred.bmp"), photo("gravel.png")],
    "odd crops": [cut("raccoon.jpg", (3, 5, 304, 262)), cut("coffee.jpg", (100, 1, 323, 400))],
    "upscaled": [cut("astronaut.jpg", (200, 60, 240, 90)), cut("stairs.jpg", (60, 200, 91, 241))],
    "textures": [
        encoded(texture, "PNG") for name, texture in textures(501, 377).items() if name != "stripes down"
    ],
}


@pytest.mark.parametrize("contents", B32_IMAGES.values(), ids=B32_IMAGES)
def test_b32_embeddings_are_open_clips(b32: tuple[torch.nn.Module, Encoder], contents: list[bytes]) -> None:
    assert_parity(*b32, contents, load_card("laion-vit-b-32").preprocessing)


def test_l14_embeddings_are_open_clips(l14: tuple[torch.nn.Module, Encoder]) -> None:
    contents = [
        photo("grace-hopper.jpg"),
        cut("raccoon-panorama.jpg", (1, 2, 600, 211)),
        encoded(textures(377, 501)["coarse checkerboard"], "PNG"),
    ]
    assert_parity(*l14, contents, load_card("laion-vit-l-14").preprocessing)


def test_of_the_same_pixels_the_embedding_is_the_same(b32: tuple[torch.nn.Module, Encoder]) -> None:
    """Nothing is resized here, so that only the normalisation and the network are compared."""
    contents = [cut("raccoon.jpg", (100, 100, 324, 324)), encoded(textures(224, 224)["noise"], "PNG")]
    how = load_card("laion-vit-b-32").preprocessing
    expected, ours = by_open_clip(b32[0], contents, how), by_us(b32[1], contents, how)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5)


def test_another_activation_or_channel_order_would_be_noticed(b32: tuple[torch.nn.Module, Encoder]) -> None:
    """What parity guards against moves the embedding by more than its tolerance, even with random weights."""
    how = load_card("laion-vit-b-32").preprocessing
    expected = by_us(b32[1], [photo("raccoon.jpg")], how)
    plain = by_open_clip(open_clips_own("ViT-B-32"), [photo("raccoon.jpg")], how)
    swapped = b32[1].encode(decode(photo("raccoon.jpg"), how).pixels[None, :, :, ::-1].copy()).embeddings
    assert (expected @ plain.T).item() < COSINE
    assert (expected @ swapped.T).item() < COSINE


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
    held = load_from(checkpoint)._tower.state_dict()
    assert {f"visual.{name}" for name in held} == {name for name in tensors if name.startswith("visual.")}
    assert all(tensor.device.type == "cpu" for tensor in held.values()), "a tensor was never loaded"


def test_half_precision_weights_compute_in_float32_on_a_cpu(
    tensors: dict[str, torch.Tensor], checkpoint: Path
) -> None:
    save_file({name: tensor.half() for name, tensor in tensors.items()}, checkpoint)
    assert {tensor.dtype for tensor in load_from(checkpoint)._tower.state_dict().values()} == {torch.float32}


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
    with pytest.raises(DeviceError, match=r"cuda:99 was asked for.*--device cpu"):
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
