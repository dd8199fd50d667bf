"""Reads YAML text into a validated pydantic model, or raises one `ConfigError` that names each wrong field.

Model cards, lock files and config files all use it. It does not know the meaning of their fields.
"""

from __future__ import annotations

import difflib
import reprlib
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from nsfw_spark.errors import ConfigError

_S = TypeVar("_S", bound=BaseModel)


class Section(BaseModel):
    """Base of cards and lock files: unknown keys are errors, and values cannot change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def parse_section(section: type[_S], text: str, *, origin: str) -> _S:
    """Read YAML into a validated section; `origin` names the file in messages.

    Raises:
        ConfigError: The text is not a YAML mapping, or a field is unknown, missing or wrong.
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
        problems = [
            f"{field}: {problem}" if field else problem for field, problem in describe(error, section)
        ]
        raise ConfigError(f"{origin}: {'; '.join(problems)}") from error


def describe(error: ValidationError, section: type[BaseModel]) -> list[tuple[str, str]]:
    """Return (field, problem) pairs for people; an unknown field comes with the nearest known name."""
    problems = []
    for problem in error.errors(include_url=False):
        message = " ".join(problem["msg"].split()).removeprefix("Value error, ")
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
    """Return the valid keys at a place inside a section."""
    for parent in parents:
        if str(parent) not in section.model_fields:  # an index, or the name of a head
            continue
        annotation = section.model_fields[str(parent)].annotation
        inner = [type_ for type_ in (annotation, *get_args(annotation)) if isinstance(type_, type)]
        section = next((type_ for type_ in inner if issubclass(type_, BaseModel)), section)
    return list(section.model_fields)


class YamlError(ValueError):
    """The text is not YAML, or it uses a feature that is not allowed here."""


def read_yaml(text: str) -> Any:  # noqa: ANN401 - any YAML value
    """Return the value of a YAML text.

    Raises:
        YamlError: The text is not YAML, uses aliases, or is nested too deeply.
    """
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - a safe loader
    except RecursionError:
        raise YamlError("it is nested too deeply") from None
    except (yaml.YAMLError, ValueError, ArithmeticError, LookupError, AttributeError, TypeError) as error:
        # PyYAML's constructors raise any of these on malformed numbers and dates.
        raise YamlError(" ".join(str(error).split())) from error


class _Loader(yaml.SafeLoader):
    # An alias of an alias of … grows exponentially when it is read.
    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:  # noqa: ANN401 - PyYAML's
        if self.check_event(yaml.AliasEvent):
            event: Any = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.YAMLError(f"alias *{event.anchor}; expected the value itself, {event.start_mark}")
        return super().compose_node(parent, index)
