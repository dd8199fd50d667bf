"""Networks of the real architectures with seeded weights: the published ones cannot be had everywhere."""

from __future__ import annotations

from io import BytesIO
from typing import Final

import numpy as np
import numpy.typing as npt
import open_clip
import torch
from PIL import Image

from nsfw_spark.cards import load_card
from nsfw_spark.decode import decode
from nsfw_spark.encoders import Encoder
from nsfw_spark.model_card import ModelCard, Preprocessing
from nsfw_spark.weights import WeightsFile
from tests.conftest import PHOTOS, encoded

SEED: Final = 7
RANDOM: Final = WeightsFile(None, f"random:{SEED}")


def clip_card(name: str) -> ModelCard:
    """Return a built-in card with random weights in place of OpenAI's, which are not here."""
    content = load_card(name).model_dump()
    content["encoder"]["weights"] = {"random": SEED}
    return ModelCard.model_validate(content)


def open_clips_own(architecture: str) -> torch.nn.Module:
    torch.manual_seed(SEED)
    return open_clip.create_model(architecture, load_weights=False).eval()


def by_us(encoder: Encoder, contents: list[bytes], how: Preprocessing) -> npt.NDArray[np.float32]:
    embeddings = encoder.encode(np.stack([decode(content, how).pixels for content in contents])).embeddings
    assert embeddings is not None
    return embeddings


def photo(name: str) -> bytes:
    return (PHOTOS / "photos" / name).read_bytes()


def cut(name: str, box: tuple[int, int, int, int]) -> bytes:
    """Return a part of a photograph, as a PNG of odd size."""
    return encoded(Image.open(BytesIO(photo(name))).convert("RGB").crop(box), "PNG")
