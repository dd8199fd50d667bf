"""Cards: they load by name or path, show their own text, and let a job choose heads and classes."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from nsfw_spark import ConfigError
from nsfw_spark.cards import built_in_models, card_text, choose_card, load_card, with_heads
from nsfw_spark.model_card import ModelCard
from nsfw_spark.weights import fingerprint, locate_weights
from nsfw_spark.yaml_sections import parse_section
from tests.fakes import card, card_content, perceptron


@pytest.mark.parametrize("name", built_in_models())
def test_a_built_in_card_loads_under_its_name(name: str) -> None:
    built_in = load_card(name)
    assert built_in.name == name
    assert not built_in.random_parts
    assert set(built_in.weights_sources) >= {"encoder"}


def test_the_built_in_cards_are_known() -> None:
    clip = {"aesthetic-vit-l-14", "laion-vit-b-32", "laion-vit-h-14", "laion-vit-l-14"}
    classifiers = {"adamcodd-vit-b-384", "falconsai-vit-b-224", "freepik-eva02-b-448", "marqo-vit-tiny-384"}
    assert clip | classifiers | {"nudenet-320n", "open-nsfw"} == set(built_in_models())


def test_an_unknown_model_gets_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"'laion-vit-l14'.*did you mean laion-vit-l-14\?.*open-nsfw"):
        load_card("laion-vit-l14")


def test_an_unknown_model_with_no_near_name_gets_the_list() -> None:
    with pytest.raises(ConfigError) as caught:
        load_card("zzz")
    assert "did you mean" not in str(caught.value)
    assert all(name in str(caught.value) for name in built_in_models())


def test_weights_paths_are_relative_to_the_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cards").mkdir()
    weights = {"weights": {"path": "towers/tower.safetensors"}}
    beauty = {**perceptron(1, [1]), "weights": {"path": "beauty.pth"}}
    content = card_content(
        encoder=weights, head={"weights": {"path": "head.zip"}}, other_heads={"beauty": beauty}
    )
    path = tmp_path / "cards" / "card.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    loaded = load_card(path.relative_to(tmp_path))
    assert loaded.encoder.weights.path == tmp_path / "cards" / "towers" / "tower.safetensors"
    assert loaded.head.weights is not None
    assert loaded.head.weights.path == tmp_path / "cards" / "head.zip"
    assert loaded.weights_sources["beauty_head"].path == tmp_path / "cards" / "beauty.pth"


@pytest.mark.parametrize("name", built_in_models())
def test_the_text_of_a_card_is_its_file_with_the_comments(name: str) -> None:
    text = card_text(name)
    assert text.startswith("# A model card. docs/own-model.md")
    assert parse_section(ModelCard, text, origin=name) == load_card(name)


def test_the_text_of_a_users_card_is_its_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"# mine\n{yaml.safe_dump(card_content(name='mine'))}", encoding="utf-8")
    assert card_text(path) == path.read_text(encoding="utf-8")
    path.write_text("name: mine\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="encoder: is needed"):
        card_text(path)


def test_a_tilde_in_the_path_of_a_card_is_the_home_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(card_content(name="mine")), encoding="utf-8")
    assert load_card("~/mine.yaml").name == "mine"


def test_a_tilde_in_the_path_of_weights_leaves_the_cards_folder(tmp_path: Path) -> None:
    content = card_content(encoder={"weights": {"path": "~/w.safetensors"}})
    (tmp_path / "card.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"path is ~/w\.safetensors; expected .* must not read other files"):
        load_card(tmp_path / "card.yaml")


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
