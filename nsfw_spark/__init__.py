"""Keeps unsafe images out of data sets, at any size.

    files ─► source ─► images ─► scoring ──►│ decode ─► batch ─► encoder ─► head │─► image_scores ─► filter
                       image_id,            │ bytes     uint8    (N,D) f32  (N,) │   every image,       │
                       content              └───────────── the scorer ───────────┘   good or bad        │
                                                     safe_images, flagged_images, quarantined_images ◄──┘

Letters in shapes: N images in a batch, D numbers in an embedding, C classes of a model, S pixels on each side
of the encoder's input.

This top level is the scorer: it imports neither pyspark nor delta. The outer parts of the picture are in
`nsfw_spark.spark`.

Example:
    >>> import nsfw_spark
    >>> scorer = nsfw_spark.load_scorer("open-nsfw")
    >>> scorer.score([b"not an image"])[0].status
    'undecodable'
"""

from __future__ import annotations

from nsfw_spark.cascade import Cascade, load_scorer
from nsfw_spark.errors import (
    ConfigError,
    DeviceError,
    ImageError,
    InputError,
    NsfwSparkError,
    RunInterruptedError,
    StorageError,
    TableError,
    WeightsError,
)
from nsfw_spark.scorer import ImageScore, Scorer

__version__ = "0.1.0"

__all__ = [
    "Cascade",
    "ConfigError",
    "DeviceError",
    "ImageError",
    "ImageScore",
    "InputError",
    "NsfwSparkError",
    "RunInterruptedError",
    "Scorer",
    "StorageError",
    "TableError",
    "WeightsError",
    "__version__",
    "load_scorer",
]
