"""What the options ask to score with."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from nsfw_spark.cards import choose_card
from nsfw_spark.embeddings import head_fingerprint
from nsfw_spark.errors import ConfigError
from nsfw_spark.model import ModelSpec
from nsfw_spark.model_card import ModelCard
from nsfw_spark.options import JobOptions
from nsfw_spark.spark.delivery import deliver
from nsfw_spark.spark.scorer_spec import ScorerSpec, second_model
from nsfw_spark.spark.scoring.images import ImageScoring
from nsfw_spark.spark.scoring.vectors import VectorScoring
from nsfw_spark.spark.udf import driver_fingerprint
from nsfw_spark.weights import with_lock


def choose_scoring(options: JobOptions) -> ImageScoring | VectorScoring:
    """Return what the options ask to score with; what is wrong with the model is said before Spark starts.

    Raises:
        ConfigError: The model card is wrong, is random, has no such head or class, or none for embeddings.
        WeightsError: Weights absent, or not the ones that the card or the lock file pins.
    """
    card = choose_card(options.model, heads=options.head_names, score_class=options.score_class)
    model_dir = options.model_dir and options.model_dir.absolute()  # the workers' directory is another
    card = with_lock(card, model_dir, options.weights_lock)
    has_vectors = options.format == "embeddings"
    computed = set(card.weights_sources) - ({"encoder"} if has_vectors else set())
    _check_weights(card, computed, options)
    delivered = partial(deliver, model_source=options.model_source, ship=options.ship_weights)
    if has_vectors:
        if options.strict:
            raise ConfigError("--strict looks at images, and --format embeddings has none: leave one out")
        delivery = delivered([ModelSpec(card, model_dir)], parts=computed)
        fingerprint = head_fingerprint(card, model_dir)
        return VectorScoring(
            card, fingerprint, model_dir, keep_embedding=options.keep_embedding, delivery=delivery
        )
    model = ModelSpec(card, model_dir, options.device, options.batch_size)
    spec = ScorerSpec(
        model,
        options.max_pixels,
        options.host,
        options.host_timeout_seconds,
        max_bytes=options.max_bytes,
        decode_timeout_seconds=options.decode_timeout_seconds,
        strict=options.strict,
        **second_model(model, options.second, options.band, options.weights_lock),
    )
    if spec.second is not None:
        _check_weights(spec.second.card, set(spec.second.card.weights_sources), options)
    spec = replace(spec, delivery=delivered(spec.models))
    return ImageScoring(card, driver_fingerprint(spec), spec, keep_content=options.keep_content)


def _check_weights(card: ModelCard, computed: set[str], options: JobOptions) -> None:
    """Refuse a model whose scores mean nothing.

    Raises:
        ConfigError: A part that is computed has random weights, and nobody said that they were wanted.
    """
    if card.random_parts & computed and not options.allow_random_weights:
        raise ConfigError(
            f"the model {card.name} has random weights, so its scores mean nothing. Choose another model, "
            "or pass --allow-random-weights for a test"
        )
