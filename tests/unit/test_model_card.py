"""The schema of cards: errors name their field; the fingerprint covers each field that decides a score."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel

from nsfw_spark.cards import built_in_models, load_card
from nsfw_spark.errors import ConfigError
from nsfw_spark.model_card import ModelCard
from tests.fakes import card, card_content, perceptron

CHECKSUMS = {"encoder": "a" * 64, "head": "b" * 64}


def write(folder: Path, content: object) -> Path:
    path = folder / "card.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def message(folder: Path, content: object) -> str:
    """Return what loading the content as a card complains about."""
    with pytest.raises(ConfigError) as caught:
        load_card(write(folder, content))
    text = str(caught.value)
    assert "card.yaml" in text, "the file to mend is not named"
    assert "\n" not in text, "a message is one line"
    return text


@pytest.mark.parametrize("name", ["laion-vit-b-32", "laion-vit-l-14"])
def test_openai_weights_get_their_own_activation(name: str) -> None:
    """OpenAI's weights were trained with QuickGELU; the plain architecture computes another function."""
    assert load_card(name).encoder.architecture.endswith("-quickgelu")


def test_an_unknown_key_gets_the_nearest_name(tmp_path: Path) -> None:
    assert "license: unknown key, did you mean licence?" in message(tmp_path, card_content(license="MIT"))


@pytest.mark.parametrize(
    ("section", "wrong", "near"),
    [
        ("encoder", "precisions", "precision"),
        ("preprocessing", "channelz", "channels"),
        ("head", "classez", "classes"),
    ],
)
def test_an_unknown_key_of_a_section_gets_the_nearest_name_of_that_section(
    tmp_path: Path, section: str, wrong: str, near: str
) -> None:
    content = card_content(**{section: {wrong: 1}})
    assert f"{section}.{wrong}: unknown key, did you mean {near}?" in message(tmp_path, content)


def test_an_unknown_key_of_another_head_gets_the_nearest_name(tmp_path: Path) -> None:
    content = card_content(other_heads={"beauty": {**perceptron(1, [1]), "layer": [1]}})
    assert "other_heads.beauty.layer: unknown key, did you mean layers?" in message(tmp_path, content)


@pytest.mark.parametrize(
    ("changes", "field", "got"),
    [
        ({"preprocessing": {"size": "big"}}, "preprocessing.size", "'big'"),
        ({"preprocessing": {"size": 0}}, "preprocessing.size", "0"),
        ({"preprocessing": {"mean": [0.5, 0.5]}}, "preprocessing.mean.2", "not given"),
        ({"encoder": {"precision": "float8"}}, "encoder.precision", "'float8'"),
        ({"encoder": {"weights": {"path": "w", "sha256": "abc"}}}, "encoder.weights.sha256", "'abc'"),
        ({"name": "two words"}, "name", "'two words'"),
        ({"head": {"head_encoding": "exactly"}}, "head.head_encoding", "'exactly'"),
        ({"head": {"weights": {"path": "w", "git_sha1": "abc"}}}, "head.weights.git_sha1", "'abc'"),
        ({"other_heads": {"Two Words": perceptron(1, [1])}}, "other_heads.Two Words", "'Two Words'"),
    ],
)
def test_a_wrong_value_is_named_with_its_field(
    tmp_path: Path, changes: dict[str, Any], field: str, got: str
) -> None:
    text = message(tmp_path, card_content(**changes))
    assert f"{field}: " in text
    assert got in text


@pytest.mark.parametrize("field", ["name", "licence", "encoder", "head", "preprocessing"])
def test_a_missing_field_is_named(tmp_path: Path, field: str) -> None:
    content = {key: value for key, value in card_content().items() if key != field}
    assert f"{field}: is needed and was not given" in message(tmp_path, content)


@pytest.mark.parametrize(
    ("weights", "got"),
    [
        ({"random": 1, "path": "w.safetensors"}, "got path and random"),
        ({"huggingface": "a/b", "package": "c", "file": "f"}, "got huggingface and package"),
        ({}, "got none"),
        ({"file": "f"}, "got none"),
        ({"huggingface": "a/b"}, "huggingface needs `file`"),
        ({"github": "a/b", "file": "f"}, "github needs `revision`"),
    ],
)
def test_weights_come_from_exactly_one_source(tmp_path: Path, weights: dict[str, Any], got: str) -> None:
    text = message(tmp_path, card_content(encoder={"weights": weights}))
    assert "encoder.weights: " in text
    assert got in text


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"encoder": {"embedding_dim": None}}, "a laion head needs encoder.embedding_dim"),
        ({"head": {"weights": None}}, "library laion needs `weights`"),
        ({"head": {"library": "classes", "classes": ["a"], "score": "probability:b"}}, "'probability:b'"),
        ({"head": {"score": "linear"}}, "library laion needs `weights` and `score: sigmoid`"),
        ({"head": perceptron(1, [1], "linear")}, "head.score is linear; expected sigmoid, clamp or"),
        ({"head": perceptron(1, [])}, "got layers [] and score sigmoid"),
        ({"head": perceptron(1, [8, 2])}, "library mlp needs `weights`, `layers` such as [256, relu, 16, 1]"),
        ({"head": perceptron(1, [8, 1, "relu"])}, "got layers [8, 1, 'relu']"),
        ({"head": perceptron(1, ["relu", 1])}, "got layers ['relu', 1]"),
        ({"head": perceptron(1, [8, "relu", "relu", 1])}, "got layers [8, 'relu', 'relu', 1]"),
        ({"head": perceptron(1, [1], "probability:a")}, "and score probability:a"),
        ({"head": {**perceptron(1, [1]), "weights": None}}, "library mlp needs `weights`"),
        ({"head": {"layers": [1]}}, "layers need library mlp; got library laion"),
        (
            {"head": {**perceptron(1, [1]), "head_encoding": "exact"}},
            "head_encoding exact needs library laion",
        ),
        ({"other_heads": {"nsfw": perceptron(1, [1])}}, "with names other than nsfw, which is `head`"),
        (
            {"other_heads": {"b": {"library": "classes", "classes": ["a"], "score": "probability:a"}}},
            "other_heads.b has library classes; expected heads of library laion or mlp",
        ),
        (
            {"head": {"library": "classes", "classes": ["a", "b"], "score": "cumulative:a"}},
            "expected probability:NAME or cumulative:NAME, NAME one of ['b']",
        ),
        ({"head": {"library": "classes", "classes": ["a"], "score": "highest:a"}}, "'highest:a'"),
        ({"head": {"library": "classes", "classes": ["a"], "score": "sigmoid"}}, "'sigmoid'"),
        ({"head": {"library": "boxes", "classes": ["a"], "score": "highest:a,b"}}, "'highest:a,b'"),
        ({"head": {"library": "boxes", "classes": ["a"], "score": "highest:,"}}, "'highest:,'"),
        ({"encoder": {"library": "timm"}}, "a timm encoder ends in classes; head.library is laion"),
        ({"preprocessing": {"resize_to": 200}}, "resize_to is 200; expected at least size, 224"),
        ({"preprocessing": {"fit": "pad"}}, "got fit pad and resizer simd"),
        ({"preprocessing": {"resizer": "sampled"}}, "got fit crop and resizer sampled"),
        ({"preprocessing": {"fit": "pad", "resizer": "sampled"}}, "needs `interpolation: bilinear`"),
    ],
)
def test_fields_that_do_not_fit_each_other_are_an_error(
    tmp_path: Path, changes: dict[str, Any], expected: str
) -> None:
    assert expected in message(tmp_path, card_content(**changes))


def test_what_is_no_card_is_an_error(tmp_path: Path) -> None:
    assert "holds list" in message(tmp_path, ["a", "b"])
    assert "holds NoneType" in message(tmp_path, None)
    (tmp_path / "broken.yaml").write_text("a: [1,", encoding="utf-8")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    for name, reason in [("broken", "is not YAML"), ("binary", "cannot read"), ("absent", "cannot read")]:
        with pytest.raises(ConfigError, match=reason):
            load_card(tmp_path / f"{name}.yaml")


def test_a_card_cannot_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        card().name = "other"


DECISIVE = [
    {"encoder": {"architecture": "other"}},
    {"encoder": {"precision": "bfloat16"}},
    {"encoder": {"embedding_dim": 512}},
    {"head": {"library": "classes", "classes": ["a", "b"], "score": "probability:a"}},
    {"head": {"library": "classes", "classes": ["a", "b"], "score": "probability:b"}},
    {"head": {"head_encoding": "exact"}},
    {"head": perceptron(1, [1])},
    {"head": perceptron(1, [1], "clamp")},
    {"head": perceptron(1, [8, 1])},
    {"head": perceptron(1, [8, "relu", 1])},
    {"other_heads": {"beauty": perceptron(1, [1])}},
    {"other_heads": {"taste": perceptron(1, [1])}},
    {"other_heads": {"beauty": perceptron(1, [1], "linear")}},
    {"head": {"library": "classes", "classes": ["a", "b"], "score": "cumulative:b"}},
    {"head": {"library": "boxes", "classes": ["a", "b"], "score": "highest:b"}},
    {"preprocessing": {"size": 336}},
    {"preprocessing": {"resize_to": 256}},
    {"preprocessing": {"fit": "squash"}},
    {"preprocessing": {"interpolation": "bilinear"}},
    {"preprocessing": {"resizer": "pillow"}},
    {"preprocessing": {"fit": "pad", "resizer": "sampled", "interpolation": "bilinear"}},
    {"preprocessing": {"jpeg_draft": 2}},
    {"preprocessing": {"jpeg_reencode": True}},
    {"preprocessing": {"channels": "bgr"}},
    {"preprocessing": {"scale": 1}},
    {"preprocessing": {"mean": [0.4, 0.5, 0.5]}},
    {"preprocessing": {"std": [0.25, 0.25, 0.2]}},
]


def test_each_decisive_field_changes_the_fingerprint() -> None:
    cards = [card(), *(card(**changes) for changes in DECISIVE)]
    assert len({each.fingerprint(CHECKSUMS) for each in cards}) == len(cards)


def test_every_preprocessing_field_counts_as_decisive() -> None:
    """Whoever adds a field adds it to the list above."""
    tried = {name for changes in DECISIVE for name in changes.get("preprocessing", {})}
    assert tried == set(type(card().preprocessing).model_fields)


def test_every_field_of_a_head_counts_as_decisive() -> None:
    """Weights have a checksum."""
    tried = {name for changes in DECISIVE for name in changes.get("head", {})}
    assert tried == set(type(card().head).model_fields)


@pytest.mark.parametrize("part", ["encoder", "head", "beauty_head"])
def test_other_weights_have_another_fingerprint(part: str) -> None:
    two = card(other_heads={"beauty": perceptron(1, [1])})
    checksums = {**CHECKSUMS, "beauty_head": "d" * 64}
    assert set(two.weights_sources) == set(checksums)
    assert two.fingerprint({**checksums, part: "c" * 64}) != two.fingerprint(checksums)


def test_a_card_with_several_heads_can_be_a_key() -> None:
    """Caches of loaded models are by card."""
    one, same, other = (card(other_heads={"beauty": perceptron(seed, [1])}) for seed in (1, 1, 2))
    assert len({one, same, other, card()}) == 3


@pytest.mark.parametrize("field", ["name", "summary", "source", "licence", "warning"])
def test_descriptions_do_not_change_the_fingerprint(field: str) -> None:
    assert card(**{field: "other"}).fingerprint(CHECKSUMS) == card().fingerprint(CHECKSUMS)


@pytest.mark.parametrize(
    "facts",
    [
        {"size": {"parameters": 1, "download_mb": 2, "memory_mb": 3}},
        {"accuracy": [{"measured": "recall", "value": "99 %", "source": "https://example.org"}]},
        {"bad_at": ["drawings"]},
        {"encoder": {"tensor_names": "transformers_vit"}},
        {"encoder": {"activation": "gelu"}},
    ],
)
def test_facts_do_not_change_the_fingerprint(facts: dict[str, Any]) -> None:
    assert card(**facts).fingerprint(CHECKSUMS) == card().fingerprint(CHECKSUMS)


def test_where_weights_come_from_does_not_change_the_fingerprint() -> None:
    moved: ModelCard = card(encoder={"weights": {"path": "elsewhere.safetensors"}})
    assert moved.fingerprint(CHECKSUMS) == card().fingerprint(CHECKSUMS)


def test_only_a_card_with_random_weights_says_so() -> None:
    assert card().random_parts == {"encoder"}
    assert not card(encoder={"weights": {"path": "w"}}).random_parts


def test_of_every_figure_of_accuracy_the_source_is_known() -> None:
    figures = [figure for name in built_in_models() for figure in load_card(name).accuracy]
    assert figures
    assert all(figure.source.startswith("https://") for figure in figures)


def test_an_unknown_key_in_a_list_gets_the_nearest_name(tmp_path: Path) -> None:
    figure = {"measured": "recall", "values": "99 %", "source": "https://example.org"}
    assert "accuracy.0.values: unknown key, did you mean value?" in message(
        tmp_path, card_content(accuracy=[figure])
    )


def sections(section: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """Return a section of a card and all sections inside it."""
    yield section
    for field in section.model_fields.values():
        types = [field.annotation, *get_args(field.annotation)]
        for inner in [each for each in types if isinstance(each, type) and issubclass(each, BaseModel)]:
            yield from sections(inner)


def test_the_page_on_own_models_explains_every_field() -> None:
    page = (Path(__file__).parents[2] / "docs" / "own-model.md").read_text(encoding="utf-8")
    table = page.partition("## All fields")[2]
    fields = {name for section in sections(ModelCard) for name in section.model_fields}
    assert len(fields) > 40
    assert [name for name in sorted(fields) if f"`{name}`" not in table] == []
