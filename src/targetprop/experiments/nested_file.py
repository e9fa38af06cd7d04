"""Nested YAML as texts by dotted name, the form in which options come from the command line too."""

import json
from collections.abc import Hashable, Iterator, Mapping
from math import isinf, isnan
from typing import Any

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

SPECIAL = {"inf": ".inf", "+inf": ".inf", "-inf": "-.inf", "nan": ".nan"}


def read_values(text: str) -> dict[str, str]:
    """Read nested YAML."""
    try:
        content = yaml.load(text, _Loader)
    except (
        yaml.YAMLError,
        ValueError,
    ) as error:  # PyYAML leaves impossible dates to Python's errors
        raise ValueError(f"is not valid YAML: {error}; correct it") from error
    except RecursionError as error:
        raise ValueError("is not valid YAML: it is nested too deeply; correct it") from error
    if not isinstance(content, dict):
        raise ValueError("must hold lines of the form 'name: value', as --print_config writes them")
    try:
        return dict(_flatten(content, ""))
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"holds a value that is neither number, text nor a list of them ({error}); correct it"
        ) from error


class _Loader(yaml.SafeLoader):
    """YAML without aliases, which can stand for more than memory holds, and without names given twice."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise ComposerError(None, None, "aliases are not supported; write the value itself", mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        names: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise ConstructorError(None, None, "a name is no text", key.start_mark)
            if key.value in names:
                raise ConstructorError(None, None, f"{key.value} is given twice", key.start_mark)
            names.add(key.value)
        return super().construct_mapping(node, deep)


def _flatten(content: Mapping[Any, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for key, value in content.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", _text(value)


def _text(value: Any) -> str:
    if isinstance(value, str):
        value.encode()  # refuses half a character, which no file could hold
        return value
    if isinstance(value, float) and (isinf(value) or isnan(value)):
        return SPECIAL[str(value)]
    return json.dumps(value, default=str)
