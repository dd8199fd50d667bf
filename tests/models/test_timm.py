"""Classifiers on timm: the score is that of their authors' own pipeline, of the same image and weights.

The weights are seeded, the architectures the real ones. Some weights are made larger than they begin with,
so that images differ in score by far more than the tolerance.
"""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform, resolve_model_data_config
from transformers import (
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    pipeline,
)
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from nsfw_spark.cards import load_card
from nsfw_spark.decode import decode
from nsfw_spark.encoders.timm import TimmEncoder
from nsfw_spark.model import ModelSpec, load_model
from nsfw_spark.model_card import ModelCard
from nsfw_spark.scorer import ImageScore, Scorer
from tests.conftest import PHOTOS, encoded

FLOAT32, BFLOAT16 = 1e-5, 2e-2
"""The most by which the score of a class may differ."""
SPREAD = 0.01
"""The least by which the scores of the images differ, so that one would not pass for another."""
SEED = 7
CARDS = ["freepik-eva02-b-448", "marqo-vit-tiny-384", "falconsai-vit-b-224", "adamcodd-vit-b-384"]


def photo(name: str) -> bytes:
    return (PHOTOS / "photos" / name).read_bytes()


def cut(name: str, box: tuple[int, int, int, int]) -> bytes:
    """Return a part of a photograph, as a PNG of odd size."""
    return encoded(Image.open(BytesIO(photo(name))).convert("RGB").crop(box), "PNG")


CONTENTS = [cut("astronaut.jpg", (101, 3, 402, 500)), photo("deep-field.jpg"), photo("raccoon-panorama.jpg")]
TWO = CONTENTS[:2]  # where an image takes seconds


def pictures(contents: list[bytes]) -> list[Image.Image]:
    return [Image.open(BytesIO(content)).convert("RGB") for content in contents]


def sharpened(classifier: torch.nn.Module, factor: float) -> None:
    with torch.no_grad():
        classifier.weight.mul_(factor)


def card_with(name: str, weights: Path) -> ModelCard:
    """Return a built-in card with these weights in place of its own, which are not here."""
    content = load_card(name).model_dump()
    content["encoder"]["weights"] = {"path": weights}
    return ModelCard.model_validate(content)


def our_scores(model_card: ModelCard, contents: list[bytes]) -> list[ImageScore]:
    scorer = Scorer(model_card, load_model(ModelSpec(model_card, device="cpu")))
    scores = scorer.score(contents)
    assert [score.status for score in scores] == ["ok"] * len(contents)
    return scores


def assert_same(ours: list[ImageScore], expected: list[dict[str, float]], tolerance: float) -> None:
    """Compare the scores of all classes."""
    for our, theirs in zip(ours, expected, strict=True):
        assert our.class_scores is not None
        assert our.class_scores == pytest.approx(theirs, rel=0, abs=tolerance)


def assert_spread(expected: list[dict[str, float]], name: str) -> None:
    scores = sorted(each[name] for each in expected)
    assert min(np.diff(scores)) > SPREAD, scores


@pytest.fixture(scope="module")
def freepik(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory as Freepik publish theirs."""
    directory = tmp_path_factory.mktemp("freepik")
    torch.manual_seed(SEED)
    architecture = load_card("freepik-eva02-b-448").encoder.architecture
    model = TimmWrapperForImageClassification(TimmWrapperConfig(architecture=architecture, num_labels=4))
    sharpened(model.timm_model.head, 3)
    model.save_pretrained(directory)
    return directory


def by_freepik(directory: Path, dtype: torch.dtype) -> list[dict[str, float]]:
    from nsfw_image_detector import NSFWDetector

    detector = NSFWDetector(str(directory), device="cpu", dtype=dtype)
    return [
        {level.value: score for level, score in each.items()}
        for each in detector.predict_proba(pictures(TWO))
    ]


def test_freepiks_scores_are_those_of_its_authors_package(freepik: Path) -> None:
    ours = our_scores(card_with("freepik-eva02-b-448", freepik / "model.safetensors"), TWO)
    expected = by_freepik(freepik, torch.float32)
    assert_spread(expected, "medium")
    assert_same(ours, expected, FLOAT32)
    assert [score.nsfw_score for score in ours] == [score.class_scores["medium"] for score in ours]
    assert_same(ours, by_freepik(freepik, torch.bfloat16), BFLOAT16)  # as it is when nothing is asked for


def test_freepiks_scores_in_bfloat16_are_those_of_its_authors_package(freepik: Path) -> None:
    """As on a GPU, whose precision for this card is theirs."""
    card = card_with("freepik-eva02-b-448", freepik / "model.safetensors")
    model = load_model(ModelSpec(card, device="cpu"))
    encoder = model._encoder
    assert isinstance(encoder, TimmEncoder)
    assert card.encoder.precision == "bfloat16"
    encoder._network.bfloat16()
    encoder._dtype = torch.bfloat16
    assert_same(Scorer(card, model).score(TWO), by_freepik(freepik, torch.bfloat16), BFLOAT16)


@pytest.fixture(scope="module")
def marqo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ModelCard]:
    """timm's network, and a card with its weights."""
    path = tmp_path_factory.mktemp("marqo") / "model.safetensors"
    torch.manual_seed(SEED)
    network = timm.create_model("vit_tiny_patch16_384.augreg_in21k_ft_in1k", num_classes=2).eval()
    sharpened(network.head, 4)
    save_file(network.state_dict(), path)
    return network, card_with("marqo-vit-tiny-384", path)


def test_marqos_scores_are_timms(marqo: tuple[Any, ModelCard]) -> None:
    network, model_card = marqo
    transform = create_transform(**resolve_model_data_config(network), is_training=False)
    batch = torch.stack([transform(picture) for picture in pictures(CONTENTS)])
    with torch.inference_mode():
        probabilities = network(batch).softmax(dim=-1).tolist()
        pooled = network.forward_head(network.forward_features(batch), pre_logits=True)
    expected = [dict(zip(("NSFW", "SFW"), each, strict=True)) for each in probabilities]
    assert_spread(expected, "NSFW")
    ours = our_scores(model_card, CONTENTS)
    assert_same(ours, expected, FLOAT32)
    assert [score.nsfw_score for score in ours] == [score.class_scores["NSFW"] for score in ours]
    embeddings = torch.nn.functional.normalize(pooled, dim=-1).numpy()
    np.testing.assert_allclose([score.embedding for score in ours], embeddings, rtol=0, atol=FLOAT32)


@pytest.mark.parametrize(
    "change",
    [{"interpolation": "bilinear"}, {"fit": "squash"}, {"channels": "bgr"}],
    ids=str,
)
def test_other_preprocessing_would_be_noticed(marqo: tuple[Any, ModelCard], change: dict[str, str]) -> None:
    """What parity guards against moves a score by more than its tolerance."""
    content = marqo[1].model_dump()
    content["preprocessing"].update(change)
    [expected] = our_scores(marqo[1], TWO[:1])
    [other] = our_scores(ModelCard.model_validate(content), TWO[:1])
    assert other.nsfw_score != pytest.approx(expected.nsfw_score, rel=0, abs=3 * FLOAT32)


PROCESSORS: dict[str, dict[str, Any]] = {
    "falconsai-vit-b-224": {"size": {"height": 224, "width": 224}, "resample": 2},
    "adamcodd-vit-b-384": {"size": {"height": 384, "width": 384}},
}
"""Falconsai's preprocessor_config.json where it says something; AdamCodd's as far as it is known."""


def saved_vit(directory: Path, model_card: ModelCard) -> ViTForImageClassification:
    """Return a ViT-B/16 of transformers, and save it as its authors did theirs."""
    torch.manual_seed(SEED)
    labels = dict(enumerate(model_card.head.classes))
    config = ViTConfig(image_size=model_card.preprocessing.size, id2label=labels, initializer_range=0.06)
    model = ViTForImageClassification(config).eval()
    model.save_pretrained(directory)
    return model


@pytest.mark.parametrize("name", PROCESSORS)
def test_a_vits_scores_are_those_of_transformers_pipeline(name: str, tmp_path: Path) -> None:
    model = saved_vit(tmp_path, load_card(name))
    contents = TWO if name.endswith("384") else CONTENTS
    processor = ViTImageProcessorPil(**PROCESSORS[name])
    classify: Callable[..., Any] = pipeline(
        "image-classification", model=model, image_processor=processor, device="cpu"
    )
    expected = [
        {each["label"]: each["score"] for each in classify(picture)} for picture in pictures(contents)
    ]
    assert_spread(expected, "nsfw")
    ours = our_scores(card_with(name, tmp_path / "model.safetensors"), contents)
    assert_same(ours, expected, FLOAT32)
    assert [score.nsfw_score for score in ours] == [score.class_scores["nsfw"] for score in ours]


def prepared(name: str, picture: Image.Image) -> np.ndarray[Any, Any]:
    """Return what a model's authors hand to its network: float32, shape (3, S, S)."""
    if name in PROCESSORS:
        processed = ViTImageProcessorPil(**PROCESSORS[name])(picture, return_tensors="np")
        return np.asarray(processed["pixel_values"][0])
    with torch.device("meta"):
        network = timm.create_model(load_card(name).encoder.architecture)
    transform = create_transform(**resolve_model_data_config(network), is_training=False)
    return np.asarray(transform(picture))


@pytest.mark.parametrize("name", CARDS)
def test_pixels_are_its_authors_to_the_last_bit(name: str) -> None:
    """Another resizer moves a score by less than the tolerance, and a pixel by one step of 255."""
    how = load_card(name).preprocessing
    simd = how.model_copy(update={"resizer": "simd"})
    mean, std = np.reshape([how.mean, how.std], (2, 3, 1, 1))
    differs = False
    for content, picture in zip(CONTENTS, pictures(CONTENTS), strict=True):
        steps = (prepared(name, picture) * std + mean) * 255
        np.testing.assert_allclose(steps, steps.round(), rtol=0, atol=1e-3)
        expected = steps.round().transpose(1, 2, 0)
        np.testing.assert_array_equal(decode(content, how).pixels, expected)
        differs |= (decode(content, simd).pixels != expected).any()
    assert differs  # so that this would notice


@pytest.mark.parametrize("name", CARDS)
def test_a_card_says_how_many_parameters_its_network_has(name: str) -> None:
    model_card = load_card(name)
    with torch.device("meta"):
        network = timm.create_model(model_card.encoder.architecture, num_classes=len(model_card.head.classes))
    assert sum(each.numel() for each in network.parameters()) == model_card.size.parameters
    assert network.head_hidden_size == model_card.encoder.embedding_dim
