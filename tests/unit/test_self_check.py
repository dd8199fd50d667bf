"""The self-check: a model that computes something else is found out when it is loaded."""

from __future__ import annotations

import math
import zlib
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from nsfw_spark.encoders import Encoded, load_encoder
from nsfw_spark.errors import ConfigError, DeviceError, WeightsError
from nsfw_spark.heads import Predictions, load_heads
from nsfw_spark.model import ModelSpec, load_model
from nsfw_spark.model_card import ModelCard
from nsfw_spark.self_check import TOLERANCE, SelfCheck, built_in_image, check_same, self_check
from nsfw_spark.weights import locate_weights
from tests.fakes import FakeEncoder, FakeHead, brightness_card, card

CLASSES = {"library": "classes", "classes": ["a", "b"], "score": "probability:b", "weights": None}
NETWORK = {"library": "timm", "architecture": "test_vit", "embedding_dim": 64}
SQUARE = {"size": 160}  # that this network takes


def checked(model_card: ModelCard) -> SelfCheck:
    found = load_model(ModelSpec(model_card, device="cpu")).self_check
    assert found is not None
    return found


def classifier(**encoder: Any) -> ModelCard:  # noqa: ANN401
    """Return the card of timm's own network for tests, with random weights unless others are named."""
    weights = {"weights": {"random": 1}}
    return card(encoder={**NETWORK, **weights, **encoder}, head=CLASSES, preprocessing=SQUARE)


def test_the_test_image_has_the_same_pixels_everywhere() -> None:
    """Otherwise tables would compare images and not models."""
    picture = Image.open(BytesIO(built_in_image()))
    assert (picture.size, picture.mode) == ((640, 480), "RGB")
    assert zlib.crc32(picture.tobytes()) == 857_986_482


def test_a_model_makes_the_same_of_it_each_time_and_another_does_not() -> None:
    first, again, other = checked(card()), checked(card()), checked(card(encoder={"weights": {"random": 2}}))
    assert first == again
    assert first.difference(other) > 100 * TOLERANCE["float32"]
    check_same(again, first, "fake")
    with pytest.raises(DeviceError, match="fake computes other scores on "):
        check_same(other, first, "fake")


@pytest.mark.parametrize(
    "change",
    [{"interpolation": "bilinear"}, {"fit": "squash"}, {"channels": "bgr"}, {"resize_to": 163}],
    ids=str,
)
def test_pixels_that_are_scaled_otherwise_are_noticed(change: dict[str, Any]) -> None:
    """As by a library that has changed its filters: the fingerprint knows of the card alone."""
    usual = classifier()
    content = usual.model_dump()
    content["preprocessing"].update(change)
    with pytest.raises(DeviceError, match="differ by up to"):
        check_same(checked(ModelCard.model_validate(content)), checked(usual), "fake")


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_a_coarser_precision_is_the_same_model(precision: str) -> None:
    """A table that a CPU began may be continued on a GPU; but what is coarse must say so."""
    model_card = classifier()
    files = locate_weights(model_card)
    encoder, head = load_encoder(model_card, files["encoder"], "cpu"), load_heads(model_card, files)
    exact = self_check(model_card, encoder, head)
    encoder._network.to(getattr(torch, precision))  # type: ignore[attr-defined]  # as on a GPU
    encoder._dtype = getattr(torch, precision)  # type: ignore[attr-defined]
    encoder.precision = precision  # type: ignore[assignment]
    coarse = self_check(model_card, encoder, head)
    assert exact.difference(coarse) > TOLERANCE["float32"]
    check_same(coarse, exact, "fake")
    check_same(exact, coarse, "fake")
    with pytest.raises(DeviceError, match=r"expected at most 0\.0001"):
        check_same(replace(coarse, precision="float32"), exact, "fake")


USUAL = SelfCheck("float32", 0.25, (0.5, -2.0))


@pytest.mark.parametrize(
    "found",
    [
        replace(USUAL, nsfw_score=0.2502),
        replace(USUAL, features=(0.5, -2.0003)),
        replace(USUAL, features=(0.5,)),
        replace(USUAL, nsfw_score=math.nan),
        replace(USUAL, features=(math.nan, -2.0)),
        replace(USUAL, precision="int8", nsfw_score=0.26),
    ],
    ids=str,
)
def test_another_number_is_another_model(found: SelfCheck) -> None:
    with pytest.raises(DeviceError, match="--rescore all"):
        check_same(found, USUAL, "fake")


def test_rounding_is_no_other_model() -> None:
    """Of numbers above 1, relative to them."""
    check_same(replace(USUAL, nsfw_score=0.25009, features=(0.49991, -2.00019)), USUAL, "fake")


def test_a_model_that_nobody_checked_is_refused() -> None:
    with pytest.raises(DeviceError, match="was not checked"):
        check_same(None, USUAL, "fake")


def test_it_is_stored_as_text() -> None:
    found = checked(card())
    assert SelfCheck.from_json(found.as_json()) == found
    assert len(found.as_json()) < 400, "it is a table's property: some metastores cut those at 4,000"


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"precision": "float32"}', '{"features": 3}', "null"])
def test_what_somebody_else_wrote_is_a_config_error(text: str) -> None:
    with pytest.raises(ConfigError, match="expected a self-check"):
        SelfCheck.from_json(text)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder": {"embedding_dim": 5}}, r"encoder\.embedding_dim is 5, and .* gives no embedding"),
        ({"head": {"classes": ["a", "b", "bright"]}}, r"names 3 classes, and .* distinguishes 2"),
        ({"preprocessing": {"size": 9}}, r"preprocessing\.size is 9, and the graph takes .* 8 x 8 pixels"),
    ],
    ids=str,
)
def test_a_graph_that_is_not_what_the_card_says_is_a_config_error(
    tmp_path: Path, changes: dict[str, dict[str, Any]], message: str
) -> None:
    content = brightness_card(tmp_path / "bright.onnx").model_dump()
    for section, values in changes.items():
        content[section].update(values)
    with pytest.raises(ConfigError, match=message):
        checked(ModelCard.model_validate(content))


class WrongEncoder(FakeEncoder):
    """Gives the outputs that the test chose."""

    def __init__(self, encoded: Encoded) -> None:
        super().__init__()
        self.encoded = encoded

    def encode(self, pixels: np.typing.NDArray[np.uint8]) -> Encoded:  # noqa: ARG002
        return self.encoded


class WrongHead(FakeHead):
    """Gives the score that the test chose."""

    def __init__(self, score: float) -> None:
        super().__init__()
        self.given = score

    def score(self, encoded: Encoded) -> Predictions:  # noqa: ARG002
        return Predictions(np.float32([self.given]))


LOGITS = np.float32([[3.0, -1.0]])


@pytest.mark.parametrize(
    ("encoded", "score", "error", "message"),
    [
        (Encoded(None, LOGITS), 0.5, ConfigError, r"gives \[3\.0, -1\.0\].*Let the network end in a softmax"),
        (Encoded(None, LOGITS * np.nan), 0.5, WeightsError, "gives NaN or infinity .* in float32 on cpu"),
        (Encoded(None, np.float32([[0.5, 0.5]])), np.nan, WeightsError, "gives NaN or infinity"),
        (Encoded(None, np.float32([[0.5, 0.5]])), 1.5, WeightsError, r"test image 1\.5; expected 0 to 1"),
    ],
    ids=["logits", "NaN", "head's NaN", "above 1"],
)
def test_what_is_no_score_is_found_when_the_model_is_loaded(
    encoded: Encoded, score: float, error: type[Exception], message: str
) -> None:
    model_card = card(encoder={"embedding_dim": None}, head=CLASSES)
    with pytest.raises(error, match=message):
        self_check(model_card, WrongEncoder(encoded), WrongHead(score))


def test_one_damaged_weight_is_found_when_the_model_is_loaded(tmp_path: Path) -> None:
    torch.manual_seed(1)
    tensors = dict(timm.create_model("test_vit", num_classes=2).state_dict())
    tensors["blocks.0.attn.proj.bias"][3] = torch.inf
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match="The weights are damaged"):
        checked(classifier(weights={"path": tmp_path / "model.safetensors", "random": None}))


def test_a_size_that_the_network_does_not_take_is_a_config_error() -> None:
    content = classifier().model_dump()
    content["preprocessing"]["size"] = 150
    with pytest.raises(
        ConfigError, match=r"does not take the built-in test image at preprocessing\.size 150"
    ):
        checked(ModelCard.model_validate(content))
