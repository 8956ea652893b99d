"""The check that every weightsmith call goes through in the tests: beartype for types, jaxtyping for shapes."""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Callable
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype

_TYPES = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is allowed as a float
_SHAPES = jaxtyping.jaxtyped("context")


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Annotations with their names looked up; a class that is defined later, or not imported, stands for anything."""
    later: dict[str, Any] = {}
    while True:
        try:
            return typing.get_type_hints(function, localns=later, include_extras=True)
        except NameError as error:
            later[error.name] = Any
        except TypeError:
            return {}  # a generic class is missing: fields of a parent class that another library defines


def jaxtyped(checked: Any = None, *, typechecker: Any = None) -> Any:
    """Check a function's types, and its shapes in a context of their own.

    Stands in for jaxtyping's decorator of the same name, which binds the signature and checks the arguments twice in
    every call: half the time of all tests.
    """
    if checked is None:
        return jaxtyped
    if isinstance(checked, type):
        if dataclasses.is_dataclass(checked):
            checked.__init__ = jaxtyped(checked.__init__)
        return checked
    if "<locals>" in checked.__qualname__:
        return checked  # its checks would be compiled anew in every call of the function around it
    checked.__annotations__ = _hints(checked)
    function = _TYPES(checked)

    @functools.wraps(checked)
    def in_context(*args: Any, **kwargs: Any) -> Any:
        with _SHAPES:
            return function(*args, **kwargs)

    return in_context


def check_calls_of(modules: list[str]) -> None:
    """Check every call of a function of these modules, once they are imported."""
    jaxtyping.jaxtyped = jaxtyped  # the import hook writes this name before each function
    jaxtyping.install_import_hook(modules, typechecker=None)
