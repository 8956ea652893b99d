"""Check a run before it runs: what it reads is there, and its options are in range."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from weightsmith import catalog
from weightsmith.core.errors import CalibrationError, CheckpointError, HyperparameterError, RecipeError
from weightsmith.core.io import TemporaryFolder, check_output, checkpoint_folder, load_config, meta_model
from weightsmith.core.tasks import check_tasks
from weightsmith.embedded import NAMES, PREFIX, find_folder, open_model, open_text
from weightsmith.recipe import Recipe, Step, files_read
from weightsmith.signature import Signature, Source
from weightsmith.workbench import CURRENT, check_device

__all__ = ["check_data", "check_files", "check_network", "check_options", "check_recipe"]


class Reached(Exception):
    """A method has begun to work with its model: its options are in range."""


def check_network(ref: str | os.PathLike[str]) -> None:
    """Refuse a name that stands for no model; its configuration is read, none of its weights.

    Raises
    ------
    CheckpointError
        If there is no such model, or its configuration is damaged.
    UnsupportedModelError
        If it needs code of its own.
    """
    name = str(ref)
    if not name.startswith(PREFIX):
        load_config(ref)
    elif name.removeprefix(PREFIX) not in NAMES:
        raise CheckpointError(f"no embedded model {name.removeprefix(PREFIX)!r}", expected=f"one of {sorted(NAMES)}")


def check_files(ref: str | os.PathLike[str]) -> Path:
    """Refuse a name that stands for no checkpoint; return it as a path. Nothing of its weights is downloaded.

    Raises
    ------
    CheckpointError
        If there is no such file, folder or model.
    """
    if not Path(ref).exists():
        find_folder(ref) if str(ref).startswith(PREFIX) else checkpoint_folder(ref, weights=False)
    return Path(ref)


def check_data(file: str) -> None:
    """Refuse a name that stands for no data: neither a file or folder, nor ``embedded:NAME``, nor like a hub id.

    Raises
    ------
    CalibrationError
        If it does not.

    Examples
    --------
    >>> check_data("embedded:calibration")
    >>> check_data("org/data")
    """
    if file.startswith(PREFIX):
        open_text(file)
    elif not Path(file).exists() and not re.fullmatch(r"[\w.-]+/[\w.-]+", file):
        raise CalibrationError(f"no data at {file}", expected="a file, a folder of images or a hub id")


def check_options(
    signature: Signature,
    values: Mapping[str, Any],
    model: str | os.PathLike[str] | None = None,
) -> None:
    """Let a method refuse its options before anything runs: it is called with the architecture, without any weights.

    Parameters
    ----------
    signature : Signature
        The method.
    values : mapping of str to object
        Its hyper-parameters, the names of other networks and of data, and files.
    model : path-like, optional
        The model, for a method on one.

    Raises
    ------
    HyperparameterError
        If an option is out of range, as far as the method looks before it works.
    """
    with TemporaryFolder() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        arguments = {name: value for name, value in values.items() if name in signature.fields}
        stand_ins: dict[str, Callable[[], Any]] = {
            "batches": lambda: [{"input_ids": torch.zeros(1, 2, dtype=torch.long)}],
            "samples": lambda: [{name: torch.zeros(2, dtype=torch.long) for name in ("input_ids", "labels")}] * 2,
            "path": lambda: Path(folder, "none"),
            "generator": torch.Generator,
        }
        try:
            for role in signature.roles.values():
                if role.kind in ("network", "measured"):
                    given = model if role is signature.model else values.get(role.name)
                    named = [given, *values.get(role.name, ())] if role.many else [given]
                    refs = [model if ref == CURRENT else ref for ref in named]
                    found = [_weightless(ref) for ref in refs if ref is not None]
                    if found:
                        arguments[role.name] = found if role.many else found[0]
                elif role.kind == "paths":
                    arguments[role.name] = [Path(folder, str(n)) for n in range(len(values[role.name]))]
                elif role.required or role.name in values:
                    arguments[role.name] = stand_ins[role.kind]()
            signature.function(**arguments)
        except HyperparameterError:
            raise
        except Exception:  # whatever it needs weights or data for
            return


def check_recipe(recipe: Recipe, *, overwrite: bool = False) -> None:
    """Refuse before anything runs what is not there, cannot be written or is out of range.

    The options of steps after one that makes another architecture are not checked.

    Parameters
    ----------
    recipe : Recipe
        From :func:`load_recipe`.
    overwrite : bool, default: False
        Replace what is at ``recipe.out``.

    Raises
    ------
    CheckpointError
        If ``out`` exists and ``overwrite`` is off, or a model is missing.
    CalibrationError
        If data are missing.
    HyperparameterError
        If an option is out of range, the device is not there, or a file would replace what is read.
    """
    check_output(recipe.out, overwrite=overwrite)
    if recipe.packed and recipe.compressed:
        raise HyperparameterError("packed", found="packed and compressed", expected="one of the two")
    for steps in [*recipe.compare.values()] or [[]]:
        if recipe.packed and not any(step.signature.on_levels for step in [*recipe.steps, *steps]):
            raise HyperparameterError("packed", found="no step that quantizes", do="Add one, or leave packed out.")
    recipe.check_written()
    check_device(recipe.device)
    for parent in recipe.parents:
        check_network(parent)
    check_tasks(recipe.evaluation.tasks)
    for file in [*(source.file for source in recipe.data.values()), recipe.evaluation.file, recipe.evaluation.control]:
        if file is not None:
            check_data(file)
    for steps in [recipe.steps, *recipe.compare.values()]:
        for step in steps:
            _check_files(step)
    for arm in recipe.compare.values() or [[]]:
        for step in [*recipe.steps, *arm]:
            check_options(step.signature, {**recipe.data, **step.values}, *recipe.parents)
            if catalog.commands()[step.command].verb in ("grow", "merge", "predict"):
                break


def _check_files(step: Step) -> None:
    """Refuse names in a step that stand for nothing."""
    for role in step.signature.named:
        given = step.values.get(role.name, CURRENT)
        for ref in given if isinstance(given, list) else [given]:
            if ref != CURRENT:
                check_network(ref)
    for role in step.signature.data:
        source = step.values.get(role.name)
        file = source.file if isinstance(source, Source) else source
        if file is not None:
            check_data(file)
    for path in files_read(step):
        if str(path) != CURRENT:
            try:
                check_files(path)
            except CheckpointError as error:
                raise RecipeError(f"{step.command}: {error}") from error


def _weightless(ref: str | os.PathLike[str]) -> nn.Module:
    """The network without its weights, and without a forward pass."""
    name = str(ref)
    if name == f"{PREFIX}efficientnet-lite0":
        model = open_model(name).model
    else:
        model = meta_model(find_folder(name) if name.startswith(PREFIX) else ref)
    model.register_forward_pre_hook(_stop)
    return model


def _stop(*_: Any) -> None:
    raise Reached
