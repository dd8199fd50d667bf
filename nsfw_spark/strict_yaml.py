"""YAML as data: plain values, of a size that its text has.

In: the text of a model card or a job's options. Out: dicts, lists, strings, numbers. On top of PyYAML's safe
loader, which makes no objects of Python's, *because* that follows aliases: ten lines become a billion values
for whoever walks through them.
"""

from __future__ import annotations

from typing import Any

import yaml


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
