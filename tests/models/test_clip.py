"""CLIP's image towers: the embedding is open_clip's own, of the same image and the same weights.

In float32, and in float16, which is their cards' precision on a GPU.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
import open_clip
import pytest
import torch
from open_clip.transform import image_transform
from PIL import Image

from nsfw_spark.cards import load_card
from nsfw_spark.decode import decode
from nsfw_spark.encoders import Encoder, load_encoder
from nsfw_spark.encoders.open_clip import OpenClipEncoder
from nsfw_spark.model_card import ModelCard, Preprocessing
from tests.conftest import encoded, textures
from tests.seeded import RANDOM, by_us, clip_card, cut, open_clips_own, photo

Embeddings = npt.NDArray[np.float32]
COSINE = 0.99999
"""The least that counts as the same: our resize costs up to 4e-6, another activation 1.9e-5 and more."""
FLOAT16 = 0.9999
"""The same where both sides compute in float16: 11 bits, in each of 24 layers."""


def by_open_clip(model: torch.nn.Module, contents: list[bytes], how: Preprocessing) -> Embeddings:
    transform = image_transform(how.size, is_train=False, mean=how.mean, std=how.std, interpolation="bicubic")
    batch = torch.stack([transform(Image.open(BytesIO(content))) for content in contents])
    with torch.inference_mode():
        return np.asarray(model.encode_image(batch, normalize=True))


def assert_parity(
    model: torch.nn.Module, encoder: Encoder, contents: list[bytes], how: Preprocessing
) -> None:
    expected, ours = by_open_clip(model, contents, how), by_us(encoder, contents, how)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-5)
    np.testing.assert_array_less(COSINE, (expected * ours).sum(axis=1))
    others = (expected @ expected.T)[~np.eye(len(contents), dtype=bool)]
    assert others.max() < COSINE, "two of the images are alike to this model: they could be swapped"


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


def test_h14_embeddings_are_open_clips(tmp_path: Path) -> None:
    """Of 2 of its 32 layers, as wide as they are: all of them take 7 GB. What they gave: docs/heads.md."""
    config = open_clip.get_model_config("ViT-H-14")
    config["vision_cfg"]["layers"], config["text_cfg"]["layers"] = 2, 1
    (tmp_path / "ViT-H-14-shallow.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path)
    content = clip_card("laion-vit-h-14").model_dump()
    content["encoder"]["architecture"] = "ViT-H-14-shallow"
    shallow = ModelCard.model_validate(content)
    contents = [photo("raccoon.jpg"), photo("stairs-portrait.jpg")]
    model, encoder = open_clips_own("ViT-H-14-shallow"), load_encoder(shallow, RANDOM, "cpu")
    assert_parity(model, encoder, contents, shallow.preprocessing)
    assert_float16_parity(model, encoder, shallow)


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


def in_float16(encoder: Encoder) -> OpenClipEncoder:
    """Return a copy that computes as it would on a GPU."""
    assert isinstance(encoder, OpenClipEncoder)
    ours = copy.copy(encoder)
    ours._network, ours._dtype = copy.deepcopy(encoder._network).half(), torch.float16
    return ours


TWO = ("grace-hopper.jpg", "raccoon.jpg")


def assert_float16_parity(
    model: torch.nn.Module, encoder: Encoder, card: ModelCard, photos: Sequence[str] = TWO
) -> None:
    """Compare with open_clip's `precision="pure_fp16"`, of the same pixels, and with float32."""
    assert card.encoder.precision == "float16"
    how = card.preprocessing
    batch = np.stack([decode(photo(name), how).pixels for name in photos])
    values = torch.from_numpy(batch).permute(0, 3, 1, 2) / 255 - torch.tensor(how.mean).view(1, 3, 1, 1)
    values /= torch.tensor(how.std).view(1, 3, 1, 1)
    with torch.inference_mode():
        features = copy.deepcopy(model.visual).half()(values.half()).float()
        theirs = torch.nn.functional.normalize(features, dim=-1).numpy()
    ours, exact = in_float16(encoder).encode(batch).embeddings, encoder.encode(batch).embeddings
    assert ours is not None
    assert exact is not None
    assert ours.dtype == np.float32
    assert (ours != exact).any(), "it has computed in float32"
    np.testing.assert_array_less(FLOAT16, (ours * theirs).sum(axis=1))
    np.testing.assert_array_less(FLOAT16, (ours * exact).sum(axis=1))
    assert (ours[0] @ ours[-1]).item() < FLOAT16 or len(photos) == 1, (
        "the images are alike to this model: they could be swapped"
    )


def test_b32_embeddings_in_float16_are_open_clips(b32: tuple[torch.nn.Module, Encoder]) -> None:
    assert_float16_parity(*b32, load_card("laion-vit-b-32"))


def test_l14_embeddings_in_float16_are_open_clips(l14: tuple[torch.nn.Module, Encoder]) -> None:
    """Of one image: a CPU is slow in float16."""
    assert_float16_parity(*l14, load_card("laion-vit-l-14"), TWO[:1])


def test_the_aesthetic_card_has_the_encoder_that_is_compared_here() -> None:
    assert load_card("aesthetic-vit-l-14").encoder == load_card("laion-vit-l-14").encoder
