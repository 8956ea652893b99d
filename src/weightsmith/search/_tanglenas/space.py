"""What a search may choose: values of a configuration's fields, or of the sizes of a network's own modules.

Which axes of which tensors follow each choice is found, not known by name: from models built without memory from the
configuration with other values, and from the network's symmetry (:mod:`weightsmith.core.symmetry`), which says where
queries, keys and values, heads, gates and flattened channels are on an axis.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from weightsmith.core.data import Batch
from weightsmith.core.errors import HyperparameterError, UnsupportedModelError
from weightsmith.core.io import read_yaml
from weightsmith.core.symmetry import find_symmetry
from weightsmith.search._tanglenas.configured import RATIO, configured_halves, configured_space
from weightsmith.search._tanglenas.dimensions import Choices, Space
from weightsmith.search._tanglenas.modular import modular_space, module_widths

__all__ = ["default_choices", "find_space", "read_choices"]


MODEL = "model"
"""The key that names the largest network."""


def read_choices(path: Path) -> dict[str, tuple[Any, ...]]:
    """Read the dimensions of a search from a YAML file: a mapping from names to lists of numbers.

    The file may also name the model, for the command line.

    Raises
    ------
    HyperparameterError
        If the file is missing or is no such mapping.
    """
    content = read_yaml(path, f"space {path}")
    choices = {name: values for name, values in content.items() if name != MODEL} if isinstance(content, dict) else None
    if choices is None or not all(isinstance(values, list) for values in choices.values()):
        expected = "a mapping such as 'hidden_size: [128, 192, 256]'"
        raise HyperparameterError(f"space {path}", found=type(content).__name__, expected=expected)
    return {str(name): tuple(values) for name, values in choices.items()}


def default_choices(model: nn.Module, batch: Batch) -> dict[str, tuple[int, ...]]:
    """Return the choices of a half and the whole of each width inside the blocks, of the heads and of the depth."""
    if not isinstance(model, PreTrainedModel):
        return {
            name: (size // 2, size)
            for name, size in module_widths(model, find_symmetry(model, batch, verify=False)).items()
            if size > 1
        }
    return configured_halves(model)


def find_space(model: nn.Module, choices: Choices, batch: Batch) -> Space:
    """Find what choices do to a model.

    Parameters
    ----------
    model : nn.Module
        The largest network; a transformer of Hugging Face, or any other model without one inside.
    choices : mapping of str to sequence of float
        Fields of the configuration, or ``"PATH.out_channels"``, ``"PATH.out_features"``, ``"PATH.kernel_size"`` and
        ``"PATH.depth"`` for the modules of other networks.
    batch : Batch
        An example of its inputs.

    Raises
    ------
    HyperparameterError
        If a name or value is not possible; the message lists what is.
    UnsupportedModelError
        If a tensor that depends on a choice cannot be cut.
    """
    if not choices:
        raise HyperparameterError("space", found="no dimension", expected="at least one")
    checked = {name: _checked(name, values) for name, values in choices.items()}
    symmetry = find_symmetry(model, batch, verify=False)
    if isinstance(model, PreTrainedModel):
        space = configured_space(model, checked, symmetry)
    else:
        inside = [name for name, module in model.named_modules() if isinstance(module, PreTrainedModel)]
        if inside:
            raise UnsupportedModelError(f"{inside[0]!r} is a model within another", do="Search the inner model alone.")
        space = modular_space(model, checked, symmetry)
    if not space.choices:
        raise HyperparameterError("space", found="one value per dimension", expected="a dimension with two or more")
    return space


def _checked(name: str, values: Sequence[float]) -> tuple[Any, ...]:
    kinds, expected = (int, "whole numbers") if name != RATIO else (int | float, "numbers")
    allowed = all(isinstance(v, kinds) and not isinstance(v, bool) and 0 < v < math.inf for v in values)
    if not values or not allowed or sorted({*values}) != list(values):
        raise HyperparameterError(f"space: {name}", found=list(values), expected=f"ascending {expected} above 0")
    return tuple(values)
