"""Read a method's typed signature and docstring: the command line, recipes and the docs are made of them.

A method says everything once, in its own signature, and what a parameter is follows from its type, never its name:

=============================  =====================================================================================
``nn.Module``                  a network to open. The first one is the model that the method changes in place
``nn.Module | str``            a network that is only measured, or the name of a checkpoint to read it from. A method
                               may measure several, or a ``Sequence`` of them
``Batches``                    inputs to run the model on
``Samples``                    a data set to train on or to measure
``Path``, ``Sequence[Path]``   required and before the ``*``: files or folders; the last one is written, others are read
``torch.Generator``            source of randomness; from outside it is a seed
``PreTrainedTokenizerBase``    the model's own tokenizer, or None where it has none
``**options``                  ``Unpack[...]`` of a ``TypedDict``: options described there, such as those of training
=============================  =====================================================================================

Everything else is a hyper-parameter, and each that can be written as text (numbers, words, choices, lists of these)
becomes a :class:`Field`. A method with two data sets and two networks needs nothing but its signature. One name tells
something: an optional ``Path`` is a file that is read, or one that is written if it is called ``save_...``.
"""

from __future__ import annotations

import difflib
import inspect
import re
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, Unpack, get_args, get_origin

import torch
import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field as PydanticField, TypeAdapter
from torch import nn

from weightsmith.catalog import plain
from weightsmith.core.data import Batches, Samples
from weightsmith.core.errors import HyperparameterError, WeightsmithError
from weightsmith.core.io import YamlLoader
from weightsmith.core.training import check_options

__all__ = ["REQUIRED", "Field", "Kind", "Role", "Signature", "Source", "Whole", "read"]


class Required:
    """The type of :data:`REQUIRED`."""

    def __repr__(self) -> str:
        return "required"


REQUIRED = Required()
"""Default of a field that has none."""

Kind = Literal["network", "measured", "batches", "samples", "path", "paths", "generator", "tokenizer"]
"""What a parameter is, as its type says."""

TRAINING = "Training"
"""The group of the options of training."""

ATOMS = (int, float, bool, str, Path, type(None))


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
    group : str
        The options it comes with: ``"Training"`` for those of ``FitOptions``, empty for the method's own.
    """

    name: str
    annotation: Any
    default: Any
    help: str
    group: str = ""

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
        """Return ``value`` as the field's type; true and false are no numbers.

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
            if not _mentions_bool(self.annotation):
                for each in _listed(value):
                    _no_switch(each)
            checked = TypeAdapter(self.annotation).validate_python(value)
            if any(isinstance(each, float) and each != each for each in _listed(checked)):
                raise ValueError("not a number")
        except ValueError as error:
            raise HyperparameterError(self.name, found=repr(value), expected=self.expects) from error
        return checked

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


def _no_switch(value: Any) -> Any:
    """Refuse true and false, which Python counts as 1 and 0."""
    if isinstance(value, bool):
        raise ValueError("input should be a whole number")
    return value


Whole: TypeAlias = Annotated[int, BeforeValidator(_no_switch)]
"""A whole number in what a user wrote."""


class Source(BaseModel):
    """Data that a method reads.

    Attributes
    ----------
    file : str or None
        A file, a folder of images or a hub id (see :class:`~weightsmith.core.data.Reader`), or ``embedded:NAME`` (see
        :func:`weightsmith.embedded.text`). None takes embedded text.
    samples : int or None
        Number of samples; by default 16 to run a model on, 128 to train it on.
    length : int
        Tokens per sample.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str | None = None
    samples: Whole | None = PydanticField(default=None, ge=1)
    length: Whole = PydanticField(default=256, ge=1)


@dataclass(frozen=True)
class Role:
    """A parameter that stands for something outside: a network, data, a file, a seed.

    Attributes
    ----------
    name : str
        As in the signature.
    kind : Kind
        What it is.
    required : bool
        Whether it has no default.
    help : str
        Its description in the docstring.
    many : bool
        Whether it stands for several networks.
    keyword : bool
        Whether it can only be given by name, so that it is an option of a command.
    """

    name: str
    kind: Kind
    required: bool
    help: str
    many: bool = False
    keyword: bool = False


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
    roles : mapping of str to Role
        The parameters that stand for something outside, in order.
    fields : mapping of str to Field
        The hyper-parameters.
    """

    function: Callable[..., Any]
    summary: str
    description: str
    roles: Mapping[str, Role]
    fields: Mapping[str, Field]

    @property
    def model(self) -> Role | None:
        """The network that the method changes or measures; None for a method on files."""
        return next((role for role in self.roles.values() if role.kind in ("network", "measured")), None)

    @property
    def measures(self) -> bool:
        """Whether it only looks at the model, which may be the path of a checkpoint."""
        return self.model is not None and self.model.kind == "measured"

    @property
    def measured(self) -> list[Role]:
        """The networks that it only looks at, without those given by name; empty for a method that changes one."""
        found = [role for role in self.roles.values() if role.kind == "measured" and not role.keyword]
        return found if self.measures else []

    @property
    def on_levels(self) -> bool:
        """Whether the weights it leaves are on few levels, and can be saved packed."""
        return bool(getattr(self.function, "on_levels", False))

    @property
    def output(self) -> str | None:
        """What a method on files writes, such as ``"a model"``; None for one that writes nothing or is on a model."""
        written = self.model is None and bool(self.paths) and self.paths[-1].kind == "path"
        return getattr(self.function, "writes", "a model") if written else None

    @property
    def networks(self) -> list[Role]:
        """The other networks."""
        return [role for role in self.roles.values() if role.kind in ("network", "measured") and role is not self.model]

    @property
    def named(self) -> list[Role]:
        """The networks that are named beside the model: the others, and the rest of a first role with several."""
        return [*([self.model] if self.model is not None and self.model.many else []), *self.networks]

    @property
    def data(self) -> list[Role]:
        """The batches and data sets."""
        return [role for role in self.roles.values() if role.kind in ("batches", "samples")]

    @property
    def defaulted(self) -> Role | None:
        """The data set that embedded text can stand in for: the only one that a method on a model needs."""
        needed = [role for role in self.data if role.required]
        return needed[0] if self.model is not None and len(needed) == 1 else None

    @property
    def paths(self) -> list[Role]:
        """The files and folders, in order; a method that writes one has it last."""
        return [role for role in self.roles.values() if role.kind in ("path", "paths")]

    @property
    def generator(self) -> Role | None:
        """The source of randomness."""
        return next((role for role in self.roles.values() if role.kind == "generator"), None)

    @property
    def tokenizer(self) -> Role | None:
        """The model's tokenizer."""
        return next((role for role in self.roles.values() if role.kind == "tokenizer"), None)

    @property
    def usage(self) -> str:
        """The arguments of its command.

        Examples
        --------
        >>> def mix(checkpoints: Sequence[Path], out: Path) -> None: ...
        >>> read(mix).usage
        'CHECKPOINTS... OUT'
        """
        if self.model is not None:
            if not self.measures:
                return "MODEL OUT"
            return " ".join(role.name.upper() + ("..." if role.many else "") for role in self.measured)
        return " ".join(role.name.upper() + ("..." if role.kind == "paths" else "") for role in self.paths)

    def check(self, values: Mapping[str, Any], where: str, data: Collection[str] = ()) -> dict[str, Any]:
        """Return ``values`` validated against the fields and roles.

        Parameters
        ----------
        values : mapping of str to object
            Names and values, as a user wrote them: hyper-parameters, and what stands for other networks (a name as
            for a model), data (a file, or the fields of :class:`Source`) and files.
        where : str
            What the error message starts with.
        data : collection of str
            Data parameters that are given elsewhere.

        Raises
        ------
        HyperparameterError
            If a name is unknown (the nearest is named), a value has the wrong type, a required one is missing, or an
            option of training is out of range.
        """
        known = {**self.fields, **{role.name: _as_field(role) for role in self._from_outside()}}
        for name in values:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                raise HyperparameterError(
                    f"{where}: unknown field {name!r}",
                    do=f"Did you mean {near[0]!r}?" if near else f"It takes {', '.join(known) or 'none'}.",
                )
        for field in known.values():
            if field.default is REQUIRED and field.name not in (*values, *data, self.defaulted and self.defaulted.name):
                raise HyperparameterError(f"{where}: {field.name!r} is missing", expected=field.expects)
        try:
            checked = {name: known[name].validate(value) for name, value in values.items()}
            check_options({name: value for name, value in checked.items() if known[name].group == TRAINING})
            return checked
        except HyperparameterError as error:
            raise HyperparameterError(f"{where}: {error}") from error.__cause__

    def written(self, values: Mapping[str, Any]) -> dict[str, Path]:
        """Return the files among the values that the method writes beside its output: those of options ``save_...``."""
        return {name: value for name, value in values.items() if name.startswith("save_") and isinstance(value, Path)}

    def _from_outside(self) -> list[Role]:
        """The roles that a caller fills by name: not the model itself, the file to write, the seed."""
        return [*self.named, *self.data, *(self.paths[:-1] if self.model is None else ())]


def read(function: Callable[..., Any]) -> Signature:
    """Read a method's signature and numpydoc docstring.

    Raises
    ------
    WeightsmithError
        If a required parameter can neither be written as text nor has a type with a meaning of its own.

    Examples
    --------
    >>> def halve(model: nn.Module, *, rate: float = 0.5):
    ...     '''Halve the weights.
    ...
    ...     Parameters
    ...     ----------
    ...     model : nn.Module
    ...         The network.
    ...     rate : float, default: 0.5
    ...         How much is left, between 0 and 1.
    ...     '''
    >>> signature = read(halve)
    >>> signature.summary, signature.model.name, signature.fields["rate"].help
    ('Halve the weights.', 'model', 'How much is left, between 0 and 1.')
    """
    doc = inspect.getdoc(function) or ""
    hints, helps = typing.get_type_hints(function), _parameter_helps(doc)
    roles: dict[str, Role] = {}
    fields: dict[str, Field] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        annotation = hints.get(name, Any)
        default = REQUIRED if parameter.default is inspect.Parameter.empty else parameter.default
        kind = _kind(annotation, default is REQUIRED and parameter.kind is not parameter.KEYWORD_ONLY)
        if parameter.kind is parameter.VAR_KEYWORD:
            fields |= _options(annotation, getattr(function, "fit_defaults", {}))
        elif kind is not None:
            many = kind == "measured" and _is_sequence(annotation)
            keyword = parameter.kind is parameter.KEYWORD_ONLY
            roles[name] = Role(name, kind, default is REQUIRED, helps.get(name, ""), many, keyword)
        elif _is_text(annotation):
            fields[name] = Field(name, annotation, default, helps.get(name, ""))
        elif default is REQUIRED:
            raise WeightsmithError(
                f"parameter {name!r} of {function.__qualname__} cannot be written as text",
                found=annotation,
                do="Give it a default, or call the function from Python.",
            )
    text = re.split(r"\n\w[\w ]*\n-{3,}\n", "\n" + doc, maxsplit=1)[0].strip()
    paragraphs = [plain(paragraph) for paragraph in text.split("\n\n")]
    return Signature(function, paragraphs[0], "\n\n".join(paragraphs), roles, fields)


def _as_field(role: Role) -> Field:
    types: dict[str, Any] = {"network": str, "measured": str, "path": Path, "paths": list[Path]}
    annotation = list[str] if role.many else types.get(role.kind, str | Source)
    return Field(role.name, annotation, REQUIRED if role.required else None, role.help)


def _kind(annotation: Any, positional: bool) -> Kind | None:
    """What a parameter of this type is; None for a hyper-parameter."""
    parts = _parts(annotation)
    if _is_sequence(annotation) and nn.Module in _parts(get_args(annotation)[0]):
        return "measured"
    if nn.Module in parts:
        return "measured" if str in parts else "network"
    if annotation in (Batches, Batches | None):
        return "batches"
    if Samples in parts:
        return "samples"
    if torch.Generator in parts:
        return "generator"
    if any(isinstance(part, type) and part.__name__ == "PreTrainedTokenizerBase" for part in parts):
        return "tokenizer"
    if positional and annotation is Path:
        return "path"
    return "paths" if positional and _is_sequence(annotation) and get_args(annotation) == (Path,) else None


def _options(annotation: Any, defaults: Mapping[str, Any]) -> dict[str, Field]:
    """The fields of ``**options: Unpack[...]``, with a method's own defaults."""
    if get_origin(annotation) is not Unpack:
        return {}
    (table,) = get_args(annotation)
    helps = _parameter_helps(inspect.getdoc(table) or "")
    hints = typing.get_type_hints(table)
    return {
        name: Field(name, hint, defaults.get(name, REQUIRED), helps.get(name, ""), TRAINING)
        for name, hint in hints.items()
    }


def _parameter_helps(doc: str) -> dict[str, str]:
    """The text under each name of a numpydoc Parameters section, on one line."""
    section = re.search(r"^Parameters\n-+\n(.*?)(?=^\w[\w ]*\n-{3,}\n|\Z)", doc, re.MULTILINE | re.DOTALL)
    if not section:
        return {}
    helps = {}
    for names, text in re.findall(r"^(\S[^\n]*)((?:\n+[ ]+[^\n]*)*)", section[1], re.MULTILINE):
        for name in names.split(" : ")[0].split(","):
            helps[name.strip(" *")] = plain(text)
    return helps


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (list, tuple)) else [value]


def _parts(annotation: Any) -> tuple[Any, ...]:
    """The alternatives of a union, or the type itself; None is left out."""
    union = get_origin(annotation) in (typing.Union, types.UnionType)
    return tuple(part for part in get_args(annotation) if part is not type(None)) if union else (annotation,)


def _mentions_bool(annotation: Any) -> bool:
    return annotation is bool or any(map(_mentions_bool, get_args(annotation)))


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
    if annotation is Source:
        return ["a mapping with file, samples, length"]
    names = {float: "number", int: "whole number", bool: "true/false", str: "text", Path: "path"}
    return [names.get(annotation, str(annotation))]
