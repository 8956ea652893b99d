"""The options of training, described once for every method that trains."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Literal, ParamSpec, TypedDict, TypeVar, Unpack, cast

import numpy as np
import torch
from torch import nn

from weightsmith.core.caller import random_state_kept
from weightsmith.core.choices import is_number, is_whole
from weightsmith.core.data import check_samples
from weightsmith.core.errors import HyperparameterError, NonFiniteError, UnsupportedModelError
from weightsmith.core.io import refuse_meta
from weightsmith.core.linalg import is_finite
from weightsmith.core.sharding import refuse_sharded
from weightsmith.core.training._restore import modes_restored, restored_on_error

__all__ = ["FIT_DEFAULTS", "FitOptions", "check_finite", "check_options", "training_method"]

P = ParamSpec("P")
R = TypeVar("R")


class FitOptions(TypedDict, total=False):
    """The options that :func:`weightsmith.core.training.fit` and every method that trains take.

    A method may have other defaults than these; they are in its ``fit_defaults``.

    Parameters
    ----------
    learning_rate : float, default: 1e-3
        Highest learning rate of the schedule.
    weight_decay : float, default: 0.0
        Decoupled weight decay of the optimizer.
    epochs : int, default: 1
        Passes over the training samples.
    batch_size : int, default: 32
        Samples per forward pass and process.
    accumulation_steps : int, default: 1
        Batches whose gradients are averaged for one optimizer step. The last step of an epoch may average fewer.
    precision : {"no", "bf16", "fp16"}, default: "no"
        Data type of autocast. The weights keep their own data type. ``"fp16"`` needs a GPU.
    clip_norm : float, optional
        Largest allowed norm of the whole gradient; larger gradients are scaled down to it.
    scheduler : {"constant", "linear", "cosine"}, default: "constant"
        How the learning rate falls after the warm-up.
    warmup : float, default: 0.0
        Share of all optimizer steps, in [0, 1), over which the learning rate rises linearly from zero.
    final_learning_rate_ratio : float, default: 0.0
        Learning rate after the last step as a share of ``learning_rate``, in [0, 1], for schedules that fall.
    gradient_checkpointing : bool, default: False
        Recompute activations in the backward pass to save memory. Needs a Hugging Face model that supports it.

    Examples
    --------
    >>> options: FitOptions = {"learning_rate": 2e-5, "precision": "bf16"}
    """

    learning_rate: float
    weight_decay: float
    epochs: int
    batch_size: int
    accumulation_steps: int
    precision: Literal["no", "bf16", "fp16"]
    clip_norm: float | None
    scheduler: Literal["constant", "linear", "cosine"]
    warmup: float
    final_learning_rate_ratio: float
    gradient_checkpointing: bool


FIT_DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {
        "learning_rate": 1e-3,
        "weight_decay": 0.0,
        "epochs": 1,
        "batch_size": 32,
        "accumulation_steps": 1,
        "precision": "no",
        "clip_norm": None,
        "scheduler": "constant",
        "warmup": 0.0,
        "final_learning_rate_ratio": 0.0,
        "gradient_checkpointing": False,
    }
)
"""The default of every option."""


def _is_count(value: Any) -> bool:
    return is_whole(value) and int(value) >= 1


_ALLOWED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "learning_rate": (lambda value: is_number(value) and value >= 0, "a number >= 0"),
    "weight_decay": (lambda value: is_number(value) and value >= 0, "a number >= 0"),
    "epochs": (_is_count, "a whole number >= 1"),
    "batch_size": (_is_count, "a whole number >= 1"),
    "accumulation_steps": (_is_count, "a whole number >= 1"),
    "precision": (lambda value: value in ("no", "bf16", "fp16"), "'no', 'bf16' or 'fp16'"),
    "clip_norm": (lambda value: value is None or (is_number(value) and value > 0), "a number > 0, or None"),
    "scheduler": (lambda value: value in ("constant", "linear", "cosine"), "'constant', 'linear' or 'cosine'"),
    "warmup": (lambda value: is_number(value) and 0 <= value < 1, "a share in [0, 1)"),
    "final_learning_rate_ratio": (lambda value: is_number(value) and 0 <= value <= 1, "a share in [0, 1]"),
    "gradient_checkpointing": (lambda value: isinstance(value, bool), "True or False"),
}


def training_method(
    *, takes_sharded: bool = False, **defaults: Unpack[FitOptions]
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Give a function that trains its first argument all training options, with defaults of its own.

    The function declares ``**options: Unpack[FitOptions]`` and receives every option, filled in and checked. If it
    raises anything, the model is restored by :func:`~weightsmith.core.training.restored_on_error`; if it does not, the
    training mode of every module is. Python's, NumPy's and PyTorch's global random numbers go on as if it had not run.
    Its attribute ``fit_defaults`` holds the default of every option.

    Parameters
    ----------
    takes_sharded : bool, default: False
        Whether the model's weights may be split between processes (FSDP2); otherwise such a model is refused.
    **defaults
        The function's own defaults, where they differ from those of :class:`FitOptions`.

    Returns
    -------
    callable
        The decorator. The decorated function raises :class:`~weightsmith.core.errors.HyperparameterError` if an option
        is unknown or out of range, :class:`~weightsmith.core.errors.NonFiniteError` if a parameter holds NaN or
        infinity, and :class:`~weightsmith.core.errors.UnsupportedModelError` if the model has no gradient
        checkpointing but the option asks for it, or is sharded. In these cases the model has not been changed.

    Examples
    --------
    >>> @training_method(epochs=3)
    ... def halve(model: nn.Module, *, rate: float = 0.5, **options: Unpack[FitOptions]) -> int:
    ...     return options["epochs"]
    >>> halve(nn.Linear(1, 1)), halve.fit_defaults["learning_rate"]
    (3, 0.001)
    >>> halve(nn.Linear(1, 1), epochs=0)
    Traceback (most recent call last):
    weightsmith.core.errors.HyperparameterError: epochs: found 0, expected a whole number >= 1
    """
    filled = MappingProxyType({**FIT_DEFAULTS, **defaults})

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        parameters = inspect.signature(function).parameters.values()
        first, *own = [parameter.name for parameter in parameters if parameter.kind != parameter.VAR_KEYWORD]
        data = {parameter.name for parameter in parameters if "Samples" in str(parameter.annotation)}

        @functools.wraps(function)
        def trained(*args: P.args, **kwargs: P.kwargs) -> R:
            given = {name: value for name, value in kwargs.items() if name not in (first, *own)}
            options = {**filled, **{name: _plain(value) for name, value in given.items()}}
            model = cast(nn.Module, args[0] if args else kwargs[first])
            if not takes_sharded:
                refuse_sharded(model, do="Train it by fit, or by your own loop, with the method's optimizer or loss.")
            _check(options, model, (*own, *filled))
            for name, value in (*zip((first, *own), args, strict=False), *kwargs.items()):
                if name in data and isinstance(value, Iterator):
                    check_samples(value)
            with (
                restored_on_error(model, takes_sharded=takes_sharded),
                modes_restored(model),
                random_state_kept(),
                torch.inference_mode(False),  # whatever the caller has switched off, training needs gradients
                torch.enable_grad(),
            ):
                for parameter in model.parameters():
                    parameter.grad = None
                return function(*args, **{**kwargs, **options})

        trained.fit_defaults = filled  # type: ignore[attr-defined]
        return trained

    return decorate


def _plain(value: Any) -> Any:
    """Numbers of NumPy as Python's, the only ones that every optimizer and JSON take."""
    return value.item() if isinstance(value, np.generic) else value


def check_options(options: Mapping[str, Any], *, prefix: str = "") -> None:
    """Check the range of training options; ``prefix`` is put before their names in messages.

    Raises
    ------
    HyperparameterError
        If one is out of range.

    Examples
    --------
    >>> check_options({"epochs": 3, "warmup": 0.1})
    """
    for name, value in options.items():
        allowed, expected = _ALLOWED[name]
        if not allowed(value):
            raise HyperparameterError(prefix + name, found=repr(value), expected=expected)


def _check(options: Mapping[str, Any], model: nn.Module, known: tuple[str, ...]) -> None:
    for name in options:
        if name not in _ALLOWED:
            near = difflib.get_close_matches(name, known, n=1)
            raise HyperparameterError(f"unknown option {name!r}", do=f"Did you mean {near[0]!r}?" if near else None)
    check_options(options)
    if options["precision"] == "fp16" and all(parameter.device.type == "cpu" for parameter in model.parameters()):
        raise HyperparameterError("precision", found="'fp16' for a model on the CPU", expected="'bf16' or 'no'")
    if options["gradient_checkpointing"] and not getattr(model, "supports_gradient_checkpointing", False):
        raise UnsupportedModelError(
            "gradient_checkpointing", found=f"{type(model).__name__}, which has none", do="Leave the option out."
        )
    check_finite(model)


def check_finite(model: nn.Module) -> None:
    """Check that the parameters of a model are in memory, and none is NaN or infinite.

    Raises
    ------
    NonFiniteError
        If one is NaN or infinite.
    UnsupportedModelError
        If one is on the meta device.

    Examples
    --------
    >>> check_finite(nn.Linear(2, 2))
    """
    refuse_meta(model)
    for name, parameter in model.named_parameters():
        plain = parameter.is_floating_point() and parameter.element_size() > 1 and not parameter.is_meta
        if plain and not is_finite(parameter.detach()):
            raise NonFiniteError(
                f"parameter {name!r}", found="NaN or infinity", do="Restore the model from a sound checkpoint."
            )
