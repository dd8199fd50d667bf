"""Reads YAML into validated sections; what is wrong is said by field, on one line.

In: text, and the pydantic model of what it should hold. Out: that model, or a `ConfigError` for people. What
the fields mean it does not know: model cards and config files are both read here.
"""

from __future__ import annotations

import difflib
import re
import reprlib
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from nsfw_spark.errors import ConfigError

_S = TypeVar("_S", bound=BaseModel)


class Section(BaseModel):
    """A part of a card: unknown keys are errors, values cannot change."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def parse_section(section: type[_S], text: str, *, origin: str) -> _S:
    """Read YAML into a validated section; a mistake becomes one line that names the field.

    Raises:
        ConfigError: Not YAML, not a mapping, or a field is unknown, missing or wrong.
    """
    try:
        content = read_yaml(text)
    except YamlError as error:
        raise ConfigError(f"{origin} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{origin} holds {type(content).__name__}; expected `key: value` lines")
    try:
        return section.model_validate(content)
    except ValidationError as error:
        said = "; ".join(
            f"{field}: {problem}" if field else problem for field, problem in describe(error, section)
        )
        raise ConfigError(f"{origin}: {said}") from error


def describe(error: ValidationError, section: type[BaseModel]) -> list[tuple[str, str]]:
    """Say what is wrong: (field, problem) for each, with the nearest name of an unknown field."""
    problems = []
    for problem in error.errors(include_url=False):
        message = _one_line(problem["msg"]).removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            *parents, key = problem["loc"]
            near = difflib.get_close_matches(str(key), _keys_at(section, parents), n=1)
            message = "unknown key" + (f", did you mean {near[0]}?" if near else "")
        elif problem["type"] == "missing":
            message = "is needed and was not given"
        elif problem["type"] != "value_error":
            message = f"{message[0].lower()}{message[1:]}, got {reprlib.repr(problem['input'])}"
        problems.append((".".join(str(part) for part in problem["loc"] if part != "[key]"), message))
    return problems


def _keys_at(section: type[BaseModel], parents: list[int | str]) -> list[str]:
    """Return the keys that a section may have, or one inside it."""
    for parent in parents:
        if str(parent) not in section.model_fields:  # a name that the card's author chose, as of a head
            continue
        annotation = section.model_fields[str(parent)].annotation
        inner = [type_ for type_ in (annotation, *get_args(annotation)) if isinstance(type_, type)]
        section = next((type_ for type_ in inner if issubclass(type_, BaseModel)), section)
    return list(section.model_fields)


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


class YamlError(ValueError):
    """The text is not YAML, or says what is not taken here."""


def read_yaml(text: str) -> Any:  # noqa: ANN401 - whatever was written
    """Return what a text says.

    Raises:
        YamlError: It is not YAML, uses aliases, or is nested too deeply.
    """
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - a safe loader
    except RecursionError:
        raise YamlError("it is nested too deeply") from None
    except (yaml.YAMLError, ValueError, ArithmeticError, LookupError, AttributeError, TypeError) as error:
        # PyYAML's constructors raise anything on numbers and dates that are none.
        raise YamlError(" ".join(str(error).split())) from error


class _Loader(yaml.SafeLoader):
    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:  # noqa: ANN401 - PyYAML's
        if self.check_event(yaml.AliasEvent):
            event: Any = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.YAMLError(f"alias *{event.anchor}; expected the value itself, {event.start_mark}")
        return super().compose_node(parent, index)
