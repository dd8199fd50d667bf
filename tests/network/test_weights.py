"""With the internet: the published weights are where the cards say, and give the scores that they should."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nsfw_spark import load_scorer
from nsfw_spark.cards import load_card
from nsfw_spark.embeddings import load_embeddings_scorer
from nsfw_spark.encoders import unit_length
from nsfw_spark.weights import fetch_weights
from tests.conftest import PHOTOS

CLASSIFIERS = ["adamcodd-vit-b-384", "falconsai-vit-b-224", "freepik-eva02-b-448", "marqo-vit-tiny-384"]
CLIP = ["laion-vit-b-32", "laion-vit-l-14", "laion-vit-h-14", "aesthetic-vit-l-14"]


@pytest.mark.parametrize("name", [*CLASSIFIERS, *CLIP])
def test_fetched_weights_score_photographs_as_safe(name: str, tmp_path: Path) -> None:
    fetch_weights(load_card(name), tmp_path)
    scorer = load_scorer(name, device="cpu", model_dir=tmp_path)
    photos = ["coffee.jpg", "stairs.jpg", "raccoon.jpg"]
    scores = scorer.score([(PHOTOS / "photos" / photo).read_bytes() for photo in photos])
    assert [score.status for score in scores] == ["ok"] * len(photos)
    assert all(score.nsfw_score is not None and score.nsfw_score < 0.5 for score in scores)


def test_the_aesthetic_head_gives_the_scores_of_its_authors_code() -> None:
    """Compared with the module of simple_inference.py (torch 2.15, CPU), on seeded vectors."""
    vectors = unit_length(np.random.default_rng(0).standard_normal((4, 768), dtype=np.float32))
    scored = load_embeddings_scorer(load_card("aesthetic-vit-l-14")).score(vectors)
    assert scored.other_scores is not None
    np.testing.assert_allclose(scored.other_scores[:, 0], [5.524549, 5.520811, 6.315557, 4.993267], atol=1e-5)


def test_the_h14_head_can_be_had_and_fits_its_card() -> None:
    """The card pins its id in git."""
    vectors = unit_length(np.random.default_rng(0).standard_normal((64, 1024), dtype=np.float32))
    scores = load_embeddings_scorer(load_card("laion-vit-h-14")).score(vectors).nsfw_scores
    assert np.isfinite(scores).all()
    assert np.ptp(scores) > 0


@pytest.mark.parametrize("name", ["adamcodd-vit-b-384", "falconsai-vit-b-224"])
def test_published_vits_score_as_their_own_pipeline_does(name: str, tmp_path: Path) -> None:
    """The repository's own config.json and preprocessor_config.json, with the published weights."""
    from transformers import AutoImageProcessor, pipeline

    repository = load_card(name).encoder.weights.huggingface
    processor = AutoImageProcessor.from_pretrained(repository, backend="pil")
    classify = pipeline("image-classification", model=repository, image_processor=processor, device="cpu")
    fetch_weights(load_card(name), tmp_path)
    scorer = load_scorer(name, device="cpu", model_dir=tmp_path)
    for photo in ("coffee.jpg", "astronaut.jpg", "raccoon-panorama.jpg"):
        path = PHOTOS / "photos" / photo
        expected = {each["label"]: each["score"] for each in classify(str(path))}
        assert scorer.score([path.read_bytes()])[0].class_scores == pytest.approx(expected, rel=0, abs=1e-5)


def test_freepiks_published_weights_score_as_its_authors_package_does(tmp_path: Path) -> None:
    import torch
    from nsfw_image_detector import NSFWDetector
    from PIL import Image

    detector = NSFWDetector(device="cpu", dtype=torch.float32)
    fetch_weights(load_card("freepik-eva02-b-448"), tmp_path)
    scorer = load_scorer("freepik-eva02-b-448", device="cpu", model_dir=tmp_path)
    for photo in ("coffee.jpg", "astronaut.jpg"):
        path = PHOTOS / "photos" / photo
        [found] = detector.predict_proba(Image.open(path).convert("RGB"))
        expected = {level.value: score for level, score in found.items()}
        assert scorer.score([path.read_bytes()])[0].class_scores == pytest.approx(expected, rel=0, abs=1e-5)


def test_marqos_published_weights_score_as_timm_does(tmp_path: Path) -> None:
    import timm
    from PIL import Image

    network = timm.create_model("hf_hub:Marqo/nsfw-image-detection-384", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network), is_training=False)
    fetch_weights(load_card("marqo-vit-tiny-384"), tmp_path)
    scorer = load_scorer("marqo-vit-tiny-384", device="cpu", model_dir=tmp_path)
    for photo in ("coffee.jpg", "astronaut.jpg", "raccoon-panorama.jpg"):
        path = PHOTOS / "photos" / photo
        logits = network(transform(Image.open(path).convert("RGB")).unsqueeze(0))
        labels = network.pretrained_cfg["label_names"]
        expected = dict(zip(labels, logits.softmax(dim=-1)[0].tolist(), strict=True))
        assert scorer.score([path.read_bytes()])[0].class_scores == pytest.approx(expected, rel=0, abs=1e-5)
