"""YAML: anything except plain data of limited size is an error of one line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsfw_spark.yaml_sections import YamlError, read_yaml

LAUGHS = "a0: &a0 lol\n" + "".join(f"a{i}: &a{i} [{f'*a{i - 1}, ' * 9}]\n" for i in range(1, 30))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (LAUGHS, r"alias \*a0; expected the value itself"),
        ("a: &a [*a]", r"alias \*a"),
        ("base: &base {b: 1}\nc: {<<: *base}", r"alias \*base"),
        ("!!python/object/apply:os.abort []", "python/object/apply:os.abort"),
        ("!!python/name:os.abort", "python/name:os.abort"),
        ("a: !!python/object/new:subprocess.Popen [[false]]", "subprocess.Popen"),
        ("[" * 5_000, "nested too deeply"),
        ("a: 2026-13-45", "month"),
        ("a: " + "9" * 5_000, "4300 digits"),
        ("a: !!int x", "x"),
        ("a: !!bool 7", "7"),
        ("a: !!timestamp x", "."),
        ("? [a]\n: b", "unhashable"),
        ("a: b: c", "mapping values are not allowed"),
        ("\0", "not allowed"),
    ],
)
def test_what_is_no_plain_data_is_refused(text: str, said: str) -> None:
    with pytest.raises(YamlError, match=said) as caught:
        read_yaml(text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1_000


def test_plain_data_is_what_it_says() -> None:
    assert read_yaml("a: [1, 2.5, x]\nb: {c: null, d: true}\n") == {
        "a": [1, 2.5, "x"],
        "b": {"c": None, "d": True},
    }
    assert read_yaml("a: &unused 1") == {"a": 1}


@given(st.text())
def test_any_text_is_a_value_or_an_error(text: str) -> None:
    try:
        value = read_yaml(text)
    except YamlError:
        return
    assert value is None or type(value).__module__ in {"builtins", "datetime"}
