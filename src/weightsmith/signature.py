"""Read a method's typed signature and docstring as a set of fields: the command line and the recipe are made of them.

A method says everything once, in its own signature. Some parameters have a fixed meaning by name:

===============  ====================================================================================
``model``        the network to change, in place
``calibration``  batches of inputs
``training``     samples to train on
``in_domain``    held-out samples like those a network was tuned on
``shifted``      held-out samples that drifted from them
``checkpoints``  paths of saved weights to read
``out``          path to write
``generator``    source of randomness; from outside it is a seed
``teacher``,     another network; from outside it is named as the model is
``other``,
``tuned``
===============  ====================================================================================

The rest are hyper-parameters, and each that can be written as text (numbers, words, choices, lists of these) becomes
a :class:`Field`.
"""

from __future__ import annotations

import difflib
import inspect
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from weightsmith.core.errors import HyperparameterError, WeightsmithError

__all__ = ["MODEL_FIELDS", "REQUIRED", "SAMPLES", "Field", "Signature", "YamlLoader", "read"]


class Required:
    """The type of :data:`REQUIRED`."""

    def __repr__(self) -> str:
        return "required"


REQUIRED = Required()
"""Default of a field that has none."""

SAMPLES = ("training", "in_domain", "shifted")
ROLES = ("model", "calibration", *SAMPLES, "checkpoints", "out", "generator")
MODEL_FIELDS = ("teacher", "other", "tuned")
"""Fields written as a folder, a hub id or ``embedded:NAME``, and opened when the method is called."""
ATOMS = (int, float, bool, str, Path, type(None))


class YamlLoader(yaml.SafeLoader):
    """YAML as version 1.2 has it: ``2:4`` and ``on`` are words, ``1e-3`` is a number.

    Examples
    --------
    >>> yaml.load("[2:4, on, 1e-3, 16, true]", YamlLoader)
    ['2:4', 'on', 0.001, 16, True]
    """


YamlLoader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"null|Null|NULL|~|", "nN~\0"),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf)|\.(nan|NaN)", "-+.0123456789"),
    ("merge", r"<<", "<"),
):
    YamlLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first))


@dataclass(frozen=True)
class Field:
    """One hyper-parameter of a method.

    Attributes
    ----------
    name : str
        As in the signature.
    annotation : type
        Its type.
    default : object
        Its default, or :data:`REQUIRED`.
    help : str
        Its description in the docstring.
    """

    name: str
    annotation: Any
    default: Any
    help: str

    @property
    def choices(self) -> tuple[str, ...]:
        """What a ``Literal``, or a union of them, allows; empty for other types."""
        parts = _parts(self.annotation)
        words = all(get_origin(part) is Literal for part in parts)
        return tuple(choice for part in parts for choice in get_args(part)) if words else ()

    @property
    def many(self) -> bool:
        """Whether it takes a list."""
        return any(_is_sequence(part) for part in _parts(self.annotation))

    @property
    def one_or_many(self) -> bool:
        """Whether it takes a list or a single text."""
        return self.many and str in _parts(self.annotation)

    @property
    def expects(self) -> str:
        """The type in words.

        Examples
        --------
        >>> Field("pattern", float | Literal["2:4", "4:8"], REQUIRED, "").expects
        "number, '2:4' or '4:8'"
        """
        words = [word for part in _parts(self.annotation) for word in _words(part)]
        return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)

    def validate(self, value: Any) -> Any:
        """Return ``value`` as the field's type.

        Raises
        ------
        HyperparameterError
            If it is not.

        Examples
        --------
        >>> Field("sparsity", float, 0.5, "").validate("0.6")
        0.6
        """
        try:
            return TypeAdapter(self.annotation, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(value)
        except ValidationError as error:
            raise HyperparameterError(self.name, found=repr(value), expected=self.expects) from error

    def parse(self, text: str) -> Any:
        """Return the value that ``text`` spells, as the field's type.

        Examples
        --------
        >>> Field("sparsity", float | Literal["2:4"], 0.5, "").parse("2:4")
        '2:4'
        """
        try:
            return self.validate(yaml.load(text, YamlLoader))
        except (HyperparameterError, yaml.YAMLError):
            return self.validate(text)


@dataclass(frozen=True)
class Signature:
    """A method as its caller sees it.

    Attributes
    ----------
    function : callable
        The method.
    summary : str
        First line of its docstring.
    description : str
        The docstring up to its first section, without markup, each paragraph on one line.
    roles : mapping of str to bool
        The parameters with a fixed meaning, in order, and whether each is required.
    fields : mapping of str to Field
        The hyper-parameters.
    measures : bool
        Whether it only looks at ``model``, which may be the path of a checkpoint.
    """

    function: Callable[..., Any]
    summary: str
    description: str
    roles: Mapping[str, bool]
    fields: Mapping[str, Field]
    measures: bool = False

    def check(self, values: Mapping[str, Any], where: str) -> dict[str, Any]:
        """Return ``values`` validated against the fields.

        Parameters
        ----------
        values : mapping of str to object
            Names and values, as a user wrote them.
        where : str
            What the error message starts with.

        Raises
        ------
        HyperparameterError
            If a name is unknown (the nearest is named), a value has the wrong type, or a required one is missing.
        """
        for name in values:
            if name not in self.fields:
                near = difflib.get_close_matches(name, self.fields, n=1)
                raise HyperparameterError(
                    f"{where}: unknown field {name!r}",
                    do=f"Did you mean {near[0]!r}?" if near else f"It takes {', '.join(self.fields) or 'none'}.",
                )
        for field in self.fields.values():
            if field.default is REQUIRED and field.name not in values:
                raise HyperparameterError(f"{where}: {field.name!r} is missing", expected=field.expects)
        try:
            return {name: self.fields[name].validate(value) for name, value in values.items()}
        except HyperparameterError as error:
            raise HyperparameterError(f"{where}: {error}") from error.__cause__


def read(function: Callable[..., Any]) -> Signature:
    """Read a method's signature and numpydoc docstring.

    Raises
    ------
    WeightsmithError
        If a required parameter can be neither written as text nor has a fixed meaning.

    Examples
    --------
    >>> def halve(model: object, *, rate: float = 0.5):
    ...     '''Halve the weights.
    ...
    ...     Parameters
    ...     ----------
    ...     model : object
    ...         The network.
    ...     rate : float, default: 0.5
    ...         How much is left, between 0 and 1.
    ...     '''
    >>> signature = read(halve)
    >>> signature.summary, signature.roles, signature.fields["rate"].help
    ('Halve the weights.', {'model': True}, 'How much is left, between 0 and 1.')
    """
    doc = inspect.getdoc(function) or ""
    hints, helps = typing.get_type_hints(function), _parameter_helps(doc)
    roles, fields = {}, {}
    for name, parameter in inspect.signature(function).parameters.items():
        annotation = hints.get(name, Any)
        default = REQUIRED if parameter.default is inspect.Parameter.empty else parameter.default
        if name in ROLES:
            roles[name] = default is REQUIRED
        elif name in MODEL_FIELDS:
            fields[name] = Field(name, str, default, helps.get(name, ""))
        elif _is_text(annotation):
            fields[name] = Field(name, annotation, default, helps.get(name, ""))
        elif default is REQUIRED:
            raise WeightsmithError(
                f"parameter {name!r} of {function.__qualname__} cannot be written as text",
                found=annotation,
                do="Give it a default, or call the function from Python.",
            )
    text = re.split(r"\n\w[\w ]*\n-{3,}\n", "\n" + doc, maxsplit=1)[0].strip()
    paragraphs = [_plain(paragraph) for paragraph in text.split("\n\n")]
    measures = str in get_args(hints.get("model"))
    return Signature(function, paragraphs[0], "\n\n".join(paragraphs), roles, fields, measures)


def _parameter_helps(doc: str) -> dict[str, str]:
    """The text under each name of a numpydoc Parameters section, on one line."""
    section = re.search(r"^Parameters\n-+\n(.*?)(?=^\w[\w ]*\n-{3,}\n|\Z)", doc, re.MULTILINE | re.DOTALL)
    if not section:
        return {}
    helps = {}
    for names, text in re.findall(r"^(\S[^\n]*)((?:\n+[ ]+[^\n]*)*)", section[1], re.MULTILINE):
        for name in names.split(" : ")[0].split(","):
            helps[name.strip(" *")] = _plain(text)
    return helps


def _plain(text: str) -> str:
    """Docstring markup as words: no roles, no double backquotes, one line.

    >>> _plain("See :func:`~torch.nn.Linear`  and ``x``.")
    'See torch.nn.Linear and x.'
    """
    text = re.sub(r":[\w:]+:`~?([^`<]*?)(?:\s*<[^`]*>)?`", r"\1", " ".join(text.split()))
    return text.replace("``", "").replace("`", "")


def _parts(annotation: Any) -> tuple[Any, ...]:
    """The alternatives of a union, or the type itself; None is left out."""
    union = get_origin(annotation) in (typing.Union, types.UnionType)
    return tuple(part for part in get_args(annotation) if part is not type(None)) if union else (annotation,)


def _is_sequence(annotation: Any) -> bool:
    return get_origin(annotation) in (list, tuple, Sequence)


def _is_text(annotation: Any) -> bool:
    """Whether values of this type can be written as text."""
    if annotation in ATOMS or get_origin(annotation) is Literal:
        return True
    inner = _parts(annotation) if len(_parts(annotation)) > 1 or type(None) in get_args(annotation) else ()
    if _is_sequence(annotation):
        inner = tuple(part for part in get_args(annotation) if part is not ...)
    return bool(inner) and all(_is_text(part) for part in inner)


def _words(annotation: Any) -> list[str]:
    if get_origin(annotation) is Literal:
        return [repr(choice) for choice in get_args(annotation)]
    if _is_sequence(annotation):
        return [f"list of {_words(get_args(annotation)[0])[0]}s"]
    names = {float: "number", int: "whole number", bool: "true/false", str: "text", Path: "path"}
    return [names.get(annotation, str(annotation))]
