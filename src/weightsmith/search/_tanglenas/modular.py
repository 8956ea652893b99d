"""What choices of the sizes of modules do to a network outside transformers."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from weightsmith.core.errors import HyperparameterError, UnsupportedModelError
from weightsmith.core.models import CONVOLUTIONS, RESIZABLE, find_stack, get_module, is_depthwise
from weightsmith.core.symmetry import Symmetry
from weightsmith.search._tanglenas.dimensions import Space, Width, axis_cut
from weightsmith.search._tanglenas.superposition import Architecture, AxisCut

__all__ = ["modular_space", "module_widths"]

WIDTHS, KERNEL, BLOCKS = ("out_features", "out_channels"), "kernel_size", "depth"
"""What can be chosen of a module outside transformers, after its path and a dot."""


def module_widths(model: nn.Module, symmetry: Symmetry) -> dict[str, int]:
    """Names and sizes of the widths that can be chosen; of modules that share one, the first."""
    found, seen = {}, set()
    for path, module in model.named_modules():
        attribute = next((name for name in WIDTHS if hasattr(module, name)), "")
        if attribute and not _width_obstacle(symmetry, path, module):
            group = _own_group(symmetry, path)
            if group not in seen and not _group_obstacle(model, symmetry, group):
                found[f"{path}.{attribute}".lstrip(".")] = symmetry.groups[group].size
            seen.add(group)
    return found


def _own_group(symmetry: Symmetry, path: str) -> str:
    key = f"{path}.weight".lstrip(".")
    blocks = symmetry.axes[key][0]
    return next(name for name in blocks[0].groups if name)


def _width_obstacle(symmetry: Symmetry, path: str, module: nn.Module) -> str:
    """Why the width of a module cannot be chosen; empty if it can."""
    key = f"{path}.weight".lstrip(".")
    if not isinstance(module, (nn.Linear, *CONVOLUTIONS)):
        return f"{type(module).__name__} has no width that can be chosen"
    if getattr(module, "groups", 1) > 1 and not is_depthwise(module):
        return "its channels belong to groups of the convolution"
    blocks = symmetry.axes[key][0] if key in symmetry.axes else ()
    if len(blocks) != 1 or len([name for name in blocks[0].groups if name]) != 1 or len(blocks[0].groups) != 1:
        return symmetry.left_out.get(key, "its outputs are fixed, such as those of the network")
    return ""


def _group_obstacle(model: nn.Module, symmetry: Symmetry, group: str) -> str:
    tied = {*symmetry.aliases.values()}
    for key, _ in symmetry.members(group):
        path, _, _ = key.rpartition(".")
        module = get_module(model, path)
        if key in tied:
            return f"{key!r} is tied"
        if not isinstance(module, (*RESIZABLE, nn.LayerNorm)):
            return f"{path or 'the model'!r} ({type(module).__name__}) has the same width and cannot be cut"
        if getattr(module, "groups", 1) > 1 and not is_depthwise(module):
            return f"{path!r} is a grouped convolution"
    return ""


def modular_space(model: nn.Module, choices: dict[str, tuple[Any, ...]], symmetry: Symmetry) -> Space:
    """Return the space of choices of the modules of a network outside transformers."""
    dims: dict[str, list[str]] = {}  # by what they set: a group, a kernel, a stack
    for name in choices:
        path, _, attribute = name.rpartition(".")
        if attribute not in (*WIDTHS, KERNEL, BLOCKS):
            raise HyperparameterError(
                f"space: unknown dimension {name!r}",
                expected=f"PATH.kernel_size, PATH.depth or one of {list(module_widths(model, symmetry))}",
            )
        dims.setdefault(_target(model, symmetry, name, path, attribute, choices[name]), []).append(name)
    space = Space({})
    widths: dict[str, Width] = {}
    for target, names in dims.items():
        values = {choices[name] for name in names}
        if len(values) > 1:
            raise HyperparameterError(
                f"space: {' and '.join(names)} are one width", found=sorted(values), expected="the same values"
            )
        dim = " + ".join(names)
        if len(choices[names[0]]) == 1:
            continue
        space.choices[dim] = choices[names[0]]
        kind, _, what = target.partition(":")
        if kind == "group":
            widths[what] = Width((dim,), partial(_value, dim))
        elif kind == "kernel":
            space.kernels[what] = dim
        else:
            space.stack, space.depth = find_stack(model, what), dim
    for key, axes in symmetry.axes.items():
        space.axes[key] = tuple(
            axis_cut(space, symmetry, key, axis, blocks, widths, None) for axis, blocks in enumerate(axes)
        )
    for path, dim in space.kernels.items():
        key = f"{path}.weight".lstrip(".")
        module: Any = get_module(model, path)
        cuts = list(space.axes.get(key, (None,) * module.weight.ndim))
        for axis in range(2, module.weight.ndim):
            cuts[axis] = AxisCut(
                (dim,), torch.stack([_centre(module.kernel_size[axis - 2], v) for v in space.choices[dim]])
            )
        space.axes[key] = tuple(cuts)
    space.axes = {key: cuts for key, cuts in space.axes.items() if any(cuts)}
    space.aliases = {alias: key for alias, key in symmetry.aliases.items() if key in space.axes}
    return space


def _value(name: str, architecture: Architecture, _: int) -> int:
    return architecture[name]


def _centre(size: int, kernel: int) -> Tensor:
    place = torch.arange(size)
    first = (size - kernel) // 2
    return (place >= first) & (place < first + kernel)


def _target(model: nn.Module, symmetry: Symmetry, name: str, path: str, attribute: str, values: tuple[int, ...]) -> str:
    """What a dimension sets; its values are checked against the largest."""
    if attribute == BLOCKS:
        own, target = len(find_stack(model, path)), f"stack:{path}"
    else:
        module: Any = get_module(model, path)
        if not hasattr(module, attribute):
            raise HyperparameterError(f"space: {name!r}: {type(module).__name__} has no {attribute}")
        if attribute == KERNEL:
            own, target = _kernel(module, name, values), f"kernel:{path}"
        else:
            obstacle = _width_obstacle(symmetry, path, module)
            group = "" if obstacle else _own_group(symmetry, path)
            if obstacle := obstacle or _group_obstacle(model, symmetry, group):
                possible = list(module_widths(model, symmetry))
                raise UnsupportedModelError(f"space: {name!r}: {obstacle}", do=f"Choose from {possible}.")
            own, target = getattr(module, attribute), f"group:{group}"
    if values[-1] != own:
        raise HyperparameterError(
            f"space: {name}: the last value must be the model's own", found=values[-1], expected=own
        )
    return target


def _kernel(module: Any, name: str, values: tuple[int, ...]) -> int:
    sizes = {*module.kernel_size}
    if len(sizes) > 1 or not isinstance(module, CONVOLUTIONS):
        raise UnsupportedModelError(f"space: {name}", found=module.kernel_size, expected="a square kernel")
    if even := [value for value in values if value % 2 == 0]:
        raise HyperparameterError(f"space: {name}", found=even, expected="odd sizes, which have a center")
    less = (values[-1] - values[0]) // 2
    if isinstance(module.padding, tuple):
        short = any(p < less * d for p, d in zip(module.padding, module.dilation, strict=True))
    else:
        short = module.padding == "valid" and less > 0
    if short:
        raise UnsupportedModelError(
            f"space: {name}: the largest kernel must be padded, so that smaller ones see the same positions",
            found=f"padding {module.padding}",
            expected=f"at least {less} times the dilation",
        )
    return int(next(iter(sizes)))
