"""YAML that users write: recipes, search spaces, values on the command line."""

from __future__ import annotations

import os
import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from weightsmith.core.errors import HyperparameterError

__all__ = ["YamlLoader", "read_yaml"]

LARGEST, DEEPEST = 10_000, 20
"""Values and levels of a YAML text; a recipe has tens of values on some six levels."""

LONGEST = 2**20
"""Bytes of a YAML file."""


class YamlLoader(yaml.SafeLoader):
    """YAML as version 1.2 has it: ``2:4`` and ``on`` are words, ``1e-3`` is a number, a key occurs once.

    Examples
    --------
    >>> yaml.load("[2:4, on, 1e-3, 16, true]", YamlLoader)
    ['2:4', 'on', 0.001, 16, True]
    """

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self._depth = self._size = 0
        self._sizes: dict[int, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Refuse what a few lines spell and no memory holds: deep nesting, and aliases of aliases."""
        alias = self.check_event(yaml.AliasEvent)
        mark = self.peek_event().start_mark
        begun, self._depth = self._size, self._depth + 1
        if self._depth > DEEPEST:
            raise yaml.composer.ComposerError(None, None, f"more than {DEEPEST} levels", mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        self._size += self._sizes.get(id(node), LARGEST) if alias else 1  # one that holds itself has no size yet
        self._sizes.setdefault(id(node), self._size - begun)
        if self._size > LARGEST:
            raise yaml.composer.ComposerError(None, None, f"more than {LARGEST} values, aliases counted", mark)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Say where a value is that its type does not allow, such as ``!!int x``."""
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError, TypeError) as error:
            raise yaml.constructor.ConstructorError(None, None, str(error), node.start_mark) from error

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Refuse a key that occurs twice, where PyYAML keeps the last value."""
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for place, (key, _) in enumerate(node.value):
            if isinstance(key, yaml.ScalarNode) and key.value in keys[:place]:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} occurs twice", key.start_mark)
        return super().construct_mapping(node, deep)


YamlLoader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"null|Null|NULL|~|", ["n", "N", "~", ""]),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf)|\.(nan|NaN)", "-+.0123456789"),
    ("merge", r"<<", "<"),
):
    YamlLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first))


def read_yaml(path: str | Path, name: str) -> Any:
    """Read a YAML file that a user wrote, with :class:`YamlLoader`.

    Parameters
    ----------
    path : path-like
        The file.
    name : str
        What errors call it.

    Raises
    ------
    HyperparameterError
        If it cannot be read, is no YAML, or is longer than :data:`LONGEST`.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(LONGEST + 1)
        if len(content) > LONGEST:
            size = os.path.getsize(path)
            length = f"{size:,} bytes" if size > LONGEST else "no end"
            raise HyperparameterError(f"{name} is too long", found=length, expected=f"at most {LONGEST:,} bytes")
        return yaml.load(content.decode(), YamlLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise HyperparameterError(f"cannot read {name}", found=error) from error
    except yaml.YAMLError as error:
        raise HyperparameterError(f"{name} is not YAML", found=" ".join(str(error).split())) from error
