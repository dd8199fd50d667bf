"""Checks a loaded model with a built-in test image: its shapes, its numbers, and equality across machines.

In: a card, and the encoder and heads that were loaded for it. Out: a `SelfCheck`, a few numbers that a table
stores; every machine that later loads the card compares its own numbers with them. This module does not know
where they are stored.

The fingerprint proves equal weights, preprocessing and precision. It does not prove that another library
version, processor or precision computes equal scores; this check does.
"""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass
from functools import lru_cache
from io import BytesIO
from typing import Final, Self

import numpy as np
from PIL import Image

from nsfw_spark.decode import decode
from nsfw_spark.encoders import Encoded, Encoder
from nsfw_spark.errors import ConfigError, DeviceError, NsfwSparkError, WeightsError
from nsfw_spark.heads import Head, Predictions
from nsfw_spark.model_card import ModelCard

_WIDTH: Final = 640
_HEIGHT: Final = 480
_NUM_FEATURES: Final = 8
_DIGITS: Final = 7  # a float32 has no more

TOLERANCE: Final = {"float32": 1e-4, "float16": 0.01, "bfloat16": 0.05}
"""Largest allowed difference between two machines, by the coarser of their precisions.

float32: processors and libraries add in different orders, which changes the last digits. The others: seven
times the effect of rounding to 11 and to 8 bits on seeded ViT-B/32 and ViT-L/14, 0.001 and 0.007.
"""


@dataclass(frozen=True)
class SelfCheck:
    """A loaded model's result for the built-in test image."""

    precision: str
    """Precision of the network: `float32`, `float16` or `bfloat16`."""
    nsfw_score: float
    features: tuple[float, ...]
    """Eight sums that together cover the embedding, or the boxes, or the class probabilities. A score can be
    0 for any image; these sums cannot."""

    def as_json(self) -> str:
        """Return the self-check as text, for `from_json`."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the self-check that `as_json` wrote.

        Raises:
            ConfigError: The text has another form.
        """
        try:
            content = json.loads(text)
            features = tuple(float(each) for each in content["features"])
            return cls(str(content["precision"]), float(content["nsfw_score"]), features)
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigError(
                f"expected a self-check, as this package writes it; got {text[:80]!r}"
            ) from error

    def difference(self, other: Self) -> float:
        """Return the largest difference of a number, relative if it is above 1; infinite for NaN."""
        ours, theirs = (np.array([each.nsfw_score, *each.features]) for each in (self, other))
        if ours.shape != theirs.shape:
            return np.inf
        differences = np.abs(ours - theirs) / np.maximum(1, np.abs(theirs))
        return float(np.where(np.isnan(differences), np.inf, differences).max())


def joined(first: SelfCheck, second: SelfCheck) -> SelfCheck:
    """Return the self-check of two models that score together, with the coarser precision."""
    precision = max(first.precision, second.precision, key=_tolerance)
    features = (*first.features, second.nsfw_score, *second.features)
    return SelfCheck(precision, first.nsfw_score, features)


def check_same(found: SelfCheck | None, expected: SelfCheck, model: str) -> None:
    """Check that the model loaded here (`found`) computes the scores that the table has (`expected`).

    Raises:
        DeviceError: They differ by more than their precisions allow.
    """
    if found is None:
        raise DeviceError(f"the {model} that was loaded here was not checked; load it with load_model")
    allowed = _tolerance(max(found.precision, expected.precision, key=_tolerance))
    difference = found.difference(expected)
    if difference > allowed:
        raise DeviceError(
            f"{model} computes other scores on {platform.node()} than image_scores has: {found.nsfw_score:g} "
            f"for the built-in test image ({found.precision}), there {expected.nsfw_score:g} "
            f"({expected.precision}); score and embedding differ by up to {difference:.2g}, expected at most "
            f"{allowed:g}. Weights and card are the same: install the same versions of torch, onnxruntime, "
            "numpy, Pillow and cykooz-resizer on all machines (the table runs has those of earlier runs), or "
            "score all again: --rescore all"
        )


def self_check(card: ModelCard, encoder: Encoder, head: Head) -> SelfCheck:
    """Score the built-in test image with a loaded model, and check the result.

    Raises:
        ConfigError: The network's input or output differs from the card.
        WeightsError: The model gives no finite numbers, or a score beyond 0 to 1.
    """
    pixels = np.stack([decode(built_in_image(), card.preprocessing).pixels])  # (1, S, S, 3)
    try:
        encoded = encoder.encode(pixels)
    except NsfwSparkError:
        raise
    except (AssertionError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"model card {card.name}: {card.encoder.architecture} does not take the built-in test image at "
            f"preprocessing.size {card.preprocessing.size}: {' '.join(str(error).split())[:300]}"
        ) from error
    _check_shapes(card, encoded)
    predictions = head.score(encoded)
    _check_numbers(card, encoder, encoded, predictions)
    return SelfCheck(encoder.precision, _rounded(predictions.nsfw_scores[0]), _features(encoded))


@lru_cache(maxsize=1)
def built_in_image() -> bytes:
    """Return the test image, a PNG of 640 x 480: slow changes of colour, edges, and fine texture.

    It is computed with integers only, so every machine makes the same pixels. Its texture is such that other
    filters, sizes and networks give other results.
    """
    y, x = np.mgrid[:_HEIGHT, :_WIDTH]
    is_inside = (x - 400) ** 2 + (y - 200) ** 2 < 150**2
    is_textured = x * y % 97 < 40  # noqa: PLR2004 - any would do
    red = np.where(is_inside, 230, x * 255 // (_WIDTH - 1))
    green = np.where(is_textured, 255 - y * 255 // (_HEIGHT - 1), 60)
    blue = np.where((x // 5 + y // 3) % 2, 200, (x * 3 + y * 7) % 256)
    content = BytesIO()
    Image.fromarray(np.stack([red, green, blue], axis=-1).astype(np.uint8)).save(content, "PNG")
    return content.getvalue()


def _tolerance(precision: str) -> float:
    return TOLERANCE.get(precision, 0.0)


def _features(encoded: Encoded) -> tuple[float, ...]:
    arrays = (encoded.embeddings, encoded.boxes, encoded.probabilities)
    values = next(array for array in arrays if array is not None).astype(np.float64).ravel()
    values /= np.linalg.norm(values) or 1  # boxes have no unit length
    return tuple(_rounded(values[i::_NUM_FEATURES].sum()) for i in range(_NUM_FEATURES))


def _rounded(number: np.floating) -> float:
    return float(f"{number:.{_DIGITS}g}")


def _check_shapes(card: ModelCard, encoded: Encoded) -> None:
    dimension, num_classes = card.encoder.embedding_dim, len(card.head.classes)
    found = None if encoded.embeddings is None else encoded.embeddings.shape[1]
    if found != dimension:
        raise ConfigError(
            f"model card {card.name}: encoder.embedding_dim is {dimension}, and {card.encoder.architecture} "
            f"gives {'no embedding' if found is None else f'embeddings of {found} numbers'}"
        )
    classes = encoded.probabilities if encoded.boxes is None else encoded.boxes[:, 4:]
    found = None if classes is None else classes.shape[1]
    if card.head.classes and found != num_classes:
        raise ConfigError(
            f"model card {card.name}: head.classes names {num_classes} classes, and "
            f"{card.encoder.architecture} distinguishes {found}"
        )


def _check_numbers(card: ModelCard, encoder: Encoder, encoded: Encoded, predictions: Predictions) -> None:
    encodings = (encoded.embeddings, encoded.probabilities, encoded.boxes)
    arrays = (*encodings, predictions.nsfw_scores, predictions.other_scores)
    if not all(np.isfinite(array).all() for array in arrays if array is not None):
        raise WeightsError(
            f"{card.name} gives NaN or infinity for the built-in test image, in {encoder.precision} on "
            f"{encoder.device}; expected finite numbers. The weights are damaged (fetch them again), or too "
            f"large for {encoder.precision} (set another `precision` in the card)"
        )
    rows = encoded.probabilities  # (1, C)
    if rows is not None and not ((rows >= 0).all() and abs(rows.sum() - 1) < TOLERANCE["float32"] * 10):
        raise ConfigError(
            f"model card {card.name}: {card.encoder.architecture} gives {rows[0].tolist()} "
            "for the built-in test image; expected the probabilities of classes, which add up to 1. Let the "
            "network end in a softmax"
        )
    if not 0 <= predictions.nsfw_scores[0] <= 1:
        raise WeightsError(
            f"{card.name} scores the built-in test image {predictions.nsfw_scores[0]}; expected 0 to 1"
        )
