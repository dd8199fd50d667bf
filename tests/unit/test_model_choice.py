"""What of a model is computed: heads and classes that were named, and what follows from the choice."""

from __future__ import annotations

import pytest

from nsfw_spark import ConfigError
from nsfw_spark.cards import choose_card, load_card, with_heads
from nsfw_spark.model_card import ModelCard
from nsfw_spark.weights import fingerprint, locate_weights
from tests.fakes import card, perceptron


def three() -> ModelCard:
    return card(other_heads={"beauty": perceptron(1, [1]), "size": perceptron(2, [1], score="linear")})


def test_without_names_all_heads_of_the_card_are_computed() -> None:
    assert list(with_heads(three(), None).heads) == ["nsfw", "beauty", "size"]


@pytest.mark.parametrize(
    ("names", "left"),
    [
        (["nsfw"], []),
        (["nsfw", "size"], ["size"]),
        (["size", "nsfw", "beauty"], ["size", "beauty"]),
        (["nsfw", "size", "nsfw", "size"], ["size"]),
    ],
)
def test_the_named_heads_are_left_in_their_order(names: list[str], left: list[str]) -> None:
    chosen = with_heads(three(), names)
    assert list(chosen.other_heads) == left
    assert chosen.head == three().head
    assert set(chosen.weights_sources) == {"encoder", "head", *(f"{name}_head" for name in left)}


def test_a_head_that_is_left_out_is_not_in_the_fingerprint() -> None:
    def print_of(model: ModelCard) -> str:
        return fingerprint(model, locate_weights(model))

    assert print_of(with_heads(three(), ["nsfw"])) == print_of(card())
    assert len({print_of(with_heads(three(), ["nsfw", *more])) for more in ([], ["size"], ["beauty"])}) == 3


@pytest.mark.parametrize("names", [[], ["beauty"], [""]])
def test_without_the_head_that_decides_is_a_config_error(names: list[str]) -> None:
    with pytest.raises(ConfigError, match="expected nsfw among them: it decides what is safe"):
        with_heads(three(), names)


def test_a_head_that_the_card_lacks_is_a_config_error_that_says_which_it_has() -> None:
    with pytest.raises(ConfigError, match=r"fake has no head taste; expected some of nsfw, beauty, size"):
        with_heads(three(), ["nsfw", "taste"])


def test_the_built_in_models_with_that_head_and_encoder_are_named() -> None:
    with pytest.raises(ConfigError, match=r"On the same encoder: --model aesthetic-vit-l-14$"):
        with_heads(load_card("laion-vit-l-14"), ["nsfw", "aesthetic"])
    with pytest.raises(ConfigError, match=r"List it in a card of your own"):
        with_heads(load_card("laion-vit-b-32"), ["nsfw", "aesthetic"])


def test_the_aesthetic_card_is_laions_model_and_one_head_more() -> None:
    aesthetic, laion = load_card("aesthetic-vit-l-14"), load_card("laion-vit-l-14")
    assert list(aesthetic.heads) == ["nsfw", "aesthetic"]
    for part in ("encoder", "head", "preprocessing"):
        assert getattr(aesthetic, part) == getattr(laion, part)


def test_another_class_can_be_the_score() -> None:
    freepik = load_card("freepik-eva02-b-448")
    high = choose_card("freepik-eva02-b-448", score_class="high")
    assert (freepik.head.score, high.head.score) == ("cumulative:medium", "cumulative:high")
    assert high.fingerprint({}) != freepik.fingerprint({})
    assert (
        choose_card("freepik-eva02-b-448", score_class="medium")
        == choose_card("freepik-eva02-b-448")
        == freepik
    )
    assert choose_card("open-nsfw", score_class="sfw").head.score == "probability:sfw"
    assert choose_card("nudenet-320n", score_class="FACE_MALE").head.score == "highest:FACE_MALE"


@pytest.mark.parametrize(
    ("model", "name", "expected"),
    [
        ("freepik-eva02-b-448", "highest", "expected one of low, medium, high"),
        ("freepik-eva02-b-448", "neutral", "expected one of low, medium, high"),
        ("open-nsfw", "NSFW", "expected one of sfw, nsfw"),
        ("laion-vit-l-14", "nsfw", "it has no classes"),
    ],
)
def test_a_class_that_cannot_be_the_score_is_a_config_error(model: str, name: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=f"'{name}' of the model {model}: {expected}"):
        choose_card(model, score_class=name)


def test_what_has_to_be_known_of_a_model_is_said_when_it_is_chosen(caplog: pytest.LogCaptureFixture) -> None:
    load_card("nudenet-320n")
    choose_card("open-nsfw")
    assert not caplog.records, "nobody chose it"
    choose_card("nudenet-320n")
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "AGPL-3.0" in caplog.text
    assert "\n" not in caplog.records[0].getMessage()
