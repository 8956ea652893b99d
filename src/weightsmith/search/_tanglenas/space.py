"""What a search may choose: values of a configuration's fields, or of the sizes of a network's own modules.

Which axes of which tensors follow each choice is found, not known by name: from models built without memory from the
configuration with other values, and from the network's symmetry (:mod:`weightsmith.core.symmetry`), which says where
queries, keys and values, heads, gates and flattened channels are on an axis.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from weightsmith.core.data import Batch
from weightsmith.core.errors import HyperparameterError, LayerNotFoundError, UnsupportedModelError
from weightsmith.core.models import (
    CONVOLUTIONS,
    RESIZABLE,
    Stack,
    build_empty,
    config_changes,
    find_stack,
    get_module,
    is_depthwise,
)
from weightsmith.core.symmetry import AxisBlock, Symmetry, find_symmetry
from weightsmith.search._tanglenas.superposition import Architecture, AxisCut

__all__ = ["Choices", "Heads", "Space", "default_choices", "find_space", "read_choices"]

Choices = Mapping[str, Sequence[int]]
"""Values by the name of the dimension."""

HIDDEN, ATTENTION, KEY_VALUE, DEPTH = "hidden_size", "num_attention_heads", "num_key_value_heads", "num_hidden_layers"
RATIO = "mlp_ratio"
"""Width of the feed-forward layers as a multiple of the hidden size."""
INNER = ("intermediate_size", "ffn_dim", "n_inner", "d_ff")
"""Fields of configurations that hold the width of the feed-forward layers."""
FOLLOWERS = ("word_embed_proj_dim",)
"""Fields that follow the hidden size where they equal it."""
WIDTHS, KERNEL, BLOCKS = ("out_features", "out_channels"), "kernel_size", "depth"
"""What can be chosen of a module outside transformers, after its path and a dot."""


@dataclass(frozen=True)
class Heads:
    """Attention whose head size is the hidden size divided by the number of heads: both are split anew by a choice.

    Attributes
    ----------
    hidden, heads : str
        The dimensions; empty where there is no choice.
    width, count : int
        Hidden size and number of heads of the largest network.
    """

    hidden: str
    heads: str
    width: int
    count: int


@dataclass
class Space:
    """The dimensions of a search, and what they do to a model.

    Attributes
    ----------
    choices : dict of str to tuple of int
        Values by dimension, ascending; the last is the model's own.
    axes : dict of str to tuple of AxisCut or None
        By name of a tensor, per axis: what the choices keep.
    split : set of (str, int)
        Axes of queries, keys, values and of what reads them that are cut inside the attention.
    heads : Heads or None
        How attention is split, where the choices change it.
    kernels : dict of str to str
        By path of a convolution, the dimension of its kernel size.
    stack : Stack or None
        The row of blocks whose number is chosen, by the dimension ``depth``.
    aliases : dict of str to str
        Other names of tied tensors.
    fields : callable
        From an architecture to the fields of its configuration.
    """

    choices: dict[str, tuple[int, ...]]
    axes: dict[str, tuple[AxisCut | None, ...]] = field(default_factory=dict)
    split: set[tuple[str, int]] = field(default_factory=set)
    heads: Heads | None = None
    kernels: dict[str, str] = field(default_factory=dict)
    stack: Stack | None = None
    depth: str = ""
    aliases: dict[str, str] = field(default_factory=dict)
    fields: Callable[[Architecture], dict[str, Any]] = lambda architecture: {}

    @property
    def sizes(self) -> dict[str, int]:
        """The number of choices of every dimension."""
        return {name: len(values) for name, values in self.choices.items()}

    @property
    def largest(self) -> Architecture:
        """The architecture of the model itself."""
        return {name: values[-1] for name, values in self.choices.items()}

    @property
    def architectures(self) -> int:
        """How many there are."""
        count = 1
        for values in self.choices.values():
            count *= len(values)
        return count

    def joint(self, dims: Sequence[str]) -> Iterator[Architecture]:
        """Iterate over the joint choices of some dimensions, the last one fastest."""
        for values in product(*(self.choices[name] for name in dims)):
            yield dict(zip(dims, values, strict=True))

    def positions(self, key: str, axis: int, architecture: Architecture) -> Tensor | None:
        """Return the positions that an architecture keeps of an axis; None for all."""
        cut = self.axes[key][axis] if key in self.axes else None
        if cut is None:
            return None
        place = list(self.joint(cut.dims)).index({name: architecture[name] for name in cut.dims})
        return cut.kept[place].nonzero().flatten()


@dataclass(frozen=True)
class _Width:
    """How many indices stay of so many: a function of some dimensions."""

    dims: tuple[str, ...]
    count: Callable[[Architecture, int], int]


def read_choices(path: Path) -> dict[str, tuple[int, ...]]:
    """Read the dimensions of a search from a YAML file: a mapping from names to lists of whole numbers.

    Raises
    ------
    HyperparameterError
        If the file is missing or is no such mapping.
    """
    try:
        text = Path(path).read_text("utf-8")
        content = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise HyperparameterError(f"space {path}", found=str(error).splitlines()[0]) from error
    if not isinstance(content, dict) or not all(isinstance(values, list) for values in content.values()):
        expected = "a mapping such as 'hidden_size: [128, 192, 256]'"
        raise HyperparameterError(f"space {path}", found=type(content).__name__, expected=expected)
    return {str(name): tuple(values) for name, values in content.items()}


def default_choices(model: nn.Module, batch: Batch) -> dict[str, tuple[int, ...]]:
    """Return the choices of a half and the whole of each width inside the blocks, of the heads and of the depth."""
    if not isinstance(model, PreTrainedModel):
        return {
            name: (size // 2, size)
            for name, size in _module_widths(model, find_symmetry(model, batch, verify=False)).items()
            if size > 1
        }
    config = model.config
    halves: dict[str, tuple[int, ...]] = {}
    for name in INNER:
        value = getattr(config, name, None) or (4 * config.hidden_size if hasattr(config, name) else None)
        if isinstance(value, int) and value % 2 == 0:
            halves[name] = (value // 2, value)
    count = getattr(config, ATTENTION, 1)
    if count % 2 == 0 and count // 2 % (getattr(config, KEY_VALUE, None) or 1) == 0:
        halves[ATTENTION] = (count // 2, count)
    depth = getattr(config, DEPTH, 1)
    if isinstance(depth, int) and depth > 1:
        try:
            stack = find_stack(model)
            halves[DEPTH] = (depth // 2, depth) if len(stack) == depth else ()
        except (LayerNotFoundError, UnsupportedModelError):
            pass
    return {name: values for name, values in halves.items() if values}


def find_space(model: nn.Module, choices: Choices, batch: Batch) -> Space:
    """Find what choices do to a model.

    Parameters
    ----------
    model : nn.Module
        The largest network; a transformer of Hugging Face, or any other model without one inside.
    choices : mapping of str to sequence of int
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
        space = _configured(model, checked, symmetry)
    else:
        inside = [name for name, module in model.named_modules() if isinstance(module, PreTrainedModel)]
        if inside:
            raise UnsupportedModelError(f"{inside[0]!r} is a model within another", do="Search the inner model alone.")
        space = _modular(model, checked, symmetry)
    if not space.choices:
        raise HyperparameterError("space", found="one value per dimension", expected="a dimension with two or more")
    return space


def _checked(name: str, values: Sequence[int]) -> tuple[int, ...]:
    whole = all(isinstance(value, int) and not isinstance(value, bool) and value > 0 for value in values)
    if not values or not whole or sorted({*values}) != list(values):
        raise HyperparameterError(f"space: {name}", found=list(values), expected="ascending whole numbers above 0")
    return tuple(values)


# --- transformers


def _configured(model: PreTrainedModel, choices: dict[str, tuple[int, ...]], symmetry: Symmetry) -> Space:
    config = model.config
    if hasattr(config, "text_config"):
        raise UnsupportedModelError("a model of several models", do="Search the text model alone.")
    named = _Names(config, choices)
    base = build_empty(model, {})
    if isinstance(base, str):
        raise UnsupportedModelError(f"{type(config).__name__} does not describe the model", found=base)
    space = Space({name: values for name, values in choices.items() if len(values) > 1})
    if named.depth:
        space.stack, space.depth = find_stack(model), named.depth
    depths = _depths(model, space)
    space.fields = lambda architecture: named.fields(architecture) | depths.get(architecture.get(named.depth, 0), {})
    for name, values in choices.items():
        if name != named.depth and not _same_shapes(base, build_empty(model, named.fields({name: values[-1]}))):
            known = 4 * config.hidden_size if name in INNER else getattr(config, name, None)
            raise HyperparameterError(
                f"space: {name}: the last value must be the model's own", found=values[-1], expected=known
            )
    _check_pairs(model, space, named)
    widths, flat = _configured_widths(model, base, space, named, symmetry)
    space.split = flat
    resplit = named.heads in space.choices and not _changes(
        model, base, named.fields(space.largest | {named.heads: space.choices[named.heads][0]})
    )
    if flat or resplit:
        hidden, heads = (name if name in space.choices else "" for name in (named.hidden, named.heads))
        space.heads = Heads(hidden, heads, config.hidden_size, config.num_attention_heads)
    for key, axes in symmetry.axes.items():
        space.axes[key] = tuple(
            _axis_cut(space, symmetry, key, axis, blocks, widths, space.heads if (key, axis) in flat else None)
            for axis, blocks in enumerate(axes)
        )
    space.axes = {key: cuts for key, cuts in space.axes.items() if any(cuts)}
    space.aliases = {alias: key for alias, key in symmetry.aliases.items() if key in space.axes}
    return space


class _Names:
    """The dimensions of a space by what they mean in a configuration."""

    def __init__(self, config: PretrainedConfig, choices: Choices) -> None:
        aliases = getattr(config, "attribute_map", {})
        inner = next((name for name in INNER if hasattr(config, name)), "")
        meanings = {aliases.get(name, name): name for name in (HIDDEN, ATTENTION, KEY_VALUE, DEPTH)}
        possible = [name for name in meanings if hasattr(config, name)] + ([inner, RATIO] if inner else [])
        place = {meanings.get(aliases.get(name, name), name): name for name in choices}
        for name in choices:
            if aliases.get(name, name) not in possible:
                raise HyperparameterError(f"space: unknown dimension {name!r}", expected=f"one of {possible}")
        if len(place) < len(choices) or (inner in choices and RATIO in choices):
            raise HyperparameterError("space: two names of one dimension", found=list(choices), expected="one")
        self.config, self.inner = config, inner
        self.fixed = {name: values[0] for name, values in choices.items() if len(values) == 1}
        self.hidden, self.heads = place.get(HIDDEN, ""), place.get(ATTENTION, "")
        self.key_value, self.depth = place.get(KEY_VALUE, ""), place.get(DEPTH, "")
        if self.heads and self.key_value:
            do = "Heads of keys and values take their query heads along."
            raise HyperparameterError("space: heads", found=[self.heads, self.key_value], expected="one of them", do=do)
        self.count = getattr(config, ATTENTION, 0)
        self.groups = getattr(config, KEY_VALUE, None) or self.count
        """Heads of keys and values."""

    def fields(self, architecture: Architecture) -> dict[str, Any]:
        """The fields of the configuration, but for the depth."""
        found: dict[str, Any] = {}
        architecture = self.fixed | architecture
        for name, value in architecture.items():
            if name == RATIO:
                found[self.inner] = value * architecture.get(self.hidden, self.config.hidden_size)
            elif name != self.depth:
                found[name] = value
            if name == self.hidden:
                followers = [f for f in FOLLOWERS if getattr(self.config, f, None) == self.config.hidden_size]
                found |= dict.fromkeys(followers, value)
            if name == self.heads and self.groups == self.count and hasattr(self.config, KEY_VALUE):
                found[KEY_VALUE] = value
            if name == self.key_value:
                found[ATTENTION] = value * (self.count // self.groups)
        return found


def _depths(model: PreTrainedModel, space: Space) -> dict[int, dict[str, Any]]:
    """For each depth the fields of the configuration."""
    if space.stack is None:
        return {}
    values = space.choices.get(space.depth, ())
    if values and values[-1] != len(space.stack):
        raise HyperparameterError(
            f"space: {space.depth}: the last value must be the model's own", found=values[-1], expected=len(space.stack)
        )
    found = {}
    for depth in values:
        changes = config_changes(model, space.stack.path, range(depth))
        found[depth] = next(fields for config, fields in changes if config is model.config)
    return found


def _same_shapes(base: nn.Module, other: nn.Module | str) -> bool:
    return not isinstance(other, str) and not _differences(base, other)


def _differences(base: nn.Module, other: nn.Module) -> list[tuple[str, int]]:
    before, after = ({n: tuple(t.shape) for n, t in model.state_dict().items()} for model in (base, other))
    if before.keys() != after.keys():
        odd = sorted(before.keys() ^ after.keys())[0]
        raise UnsupportedModelError("a choice adds or removes a tensor", found=odd, do="Leave it out of the space.")
    return [
        (key, axis)
        for key, shape in before.items()
        for axis in range(len(shape))
        if len(shape) != len(after[key]) or shape[axis] != after[key][axis]
    ]


def _changes(model: PreTrainedModel, base: nn.Module, fields: Mapping[str, Any]) -> list[tuple[str, int]]:
    other = build_empty(model, fields)
    if isinstance(other, str):
        raise HyperparameterError(f"space: {dict(fields)} is no configuration of the model", found=other)
    return _differences(base, other)


def _check_pairs(model: PreTrainedModel, space: Space, named: _Names) -> None:
    """Refuse values, and pairs of values, that no configuration allows; all of them are listed."""
    wrong: list[str] = []
    for name in space.choices:
        for one in space.joint([name]):
            if name != named.depth and isinstance(build_empty(model, named.fields(one)), str):
                wrong.append(_worded(one))
    pair = [name for name in (named.hidden, named.heads or named.key_value) if name in space.choices]
    for one in space.joint(pair):
        if isinstance(build_empty(model, named.fields(one)), str):
            wrong.append(_worded(one))
    for value in space.choices.get(named.heads, ()):
        if named.groups < named.count and value % named.groups:
            wrong.append(f"{named.heads} {value} with {named.groups} heads of keys and values")
    if wrong:
        raise HyperparameterError(
            "space: impossible choices",
            found="; ".join(dict.fromkeys(wrong)),
            expected="a hidden size that the heads divide, and heads that are a multiple of those of keys and values",
        )


def _worded(architecture: Architecture) -> str:
    return " with ".join(f"{name} {value}" for name, value in architecture.items())


def _configured_widths(
    model: PreTrainedModel, base: nn.Module, space: Space, named: _Names, symmetry: Symmetry
) -> tuple[dict[str, _Width], set[tuple[str, int]]]:
    """How many indices of every group stay, and which axes attention splits anew."""
    widths: dict[str, _Width] = {}
    flat: set[tuple[str, int]] = set()
    for name in sorted(space.choices, key=RATIO.__eq__):  # the ratio last: what follows it follows the hidden size, too
        if name == named.depth:
            continue
        for key, axis in _changes(model, base, named.fields(space.largest | {name: space.choices[name][0]})):
            place = symmetry.aliases.get(key, key)
            blocks = symmetry.axes[place][axis] if place in symmetry.axes else ()
            if not blocks:
                reason = symmetry.left_out.get(place, "is fixed")
                raise UnsupportedModelError(f"{key!r} depends on {name}, and {reason}", do=f"Leave {name} out.")
            for block in blocks:
                groups = [group for group in block.groups if group]
                if name in (named.heads, named.key_value):
                    for group in groups:
                        if width := _heads_width(symmetry, group, name, named):
                            widths[group] = width
                elif len(groups) == 1:
                    widths[groups[0]] = _width(named, name, space)
                else:
                    flat.add((place, axis))
    return widths, flat


def _width(named: _Names, name: str, space: Space) -> _Width:
    """Indices in proportion to the hidden size, or to the width of the feed-forward layers."""
    dims = tuple(n for n in space.choices if n == name or (name == RATIO and n == named.hidden))
    whole = math.prod(space.choices[n][-1] for n in dims)
    return _Width(dims, lambda a, size: size * math.prod(a[n] for n in dims) // whole)


def _heads_width(symmetry: Symmetry, group: str, name: str, named: _Names) -> _Width | None:
    """The groups of heads that share keys, or the heads within one; None for the channels of a head."""
    size, shared = symmetry.groups[group].size, named.count // max(named.groups, 1)
    outer = not symmetry.groups[group].within
    if name == named.key_value or shared == 1:
        return _Width((name,), lambda a, _: a[name]) if outer and size == named.groups else None
    inner = not outer or named.groups == 1
    return _Width((name,), lambda a, _: a[name] // named.groups) if inner and size == shared else None


def _axis_cut(
    space: Space,
    symmetry: Symmetry,
    key: str,
    axis: int,
    blocks: Sequence[AxisBlock],
    widths: Mapping[str, _Width],
    heads: Heads | None,
) -> AxisCut | None:
    """The table of one axis."""
    involved = {n for block in blocks for group in block.groups if group in widths for n in widths[group].dims}
    involved |= {heads.hidden, heads.heads} if heads is not None else set()
    dims = tuple(name for name in space.choices if name in involved)
    if not dims:
        return None
    rows = []
    for one in space.joint(dims):
        kept = torch.ones(symmetry.shapes[key][axis], dtype=torch.bool)
        for block in blocks:
            places = block.places()
            if heads is not None:  # the first features of every head, in each block of queries, keys and values
                count = one.get(heads.heads, heads.count)
                kept[places.flatten().view(count, -1)[:, one[heads.hidden] // count :]] = False
                continue
            for number, group in enumerate(block.groups):
                if group in widths:
                    gone = places.movedim(number, 0)[widths[group].count(one, places.shape[number]) :]
                    kept[gone.flatten()] = False
        rows.append(kept)
    return AxisCut(dims, torch.stack(rows))


# --- other networks


def _module_widths(model: nn.Module, symmetry: Symmetry) -> dict[str, int]:
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


def _modular(model: nn.Module, choices: dict[str, tuple[int, ...]], symmetry: Symmetry) -> Space:
    dims: dict[str, list[str]] = {}  # by what they set: a group, a kernel, a stack
    for name in choices:
        path, _, attribute = name.rpartition(".")
        if attribute not in (*WIDTHS, KERNEL, BLOCKS):
            raise HyperparameterError(
                f"space: unknown dimension {name!r}",
                expected=f"PATH.kernel_size, PATH.depth or one of {list(_module_widths(model, symmetry))}",
            )
        dims.setdefault(_target(model, symmetry, name, path, attribute, choices[name]), []).append(name)
    space = Space({})
    widths: dict[str, _Width] = {}
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
            widths[what] = _Width((dim,), partial(_value, dim))
        elif kind == "kernel":
            space.kernels[what] = dim
        else:
            space.stack, space.depth = find_stack(model, what), dim
    for key, axes in symmetry.axes.items():
        space.axes[key] = tuple(
            _axis_cut(space, symmetry, key, axis, blocks, widths, None) for axis, blocks in enumerate(axes)
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
                possible = list(_module_widths(model, symmetry))
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
    if isinstance(module.padding, tuple):
        less = (values[-1] - values[0]) // 2
        short = [p for p, d in zip(module.padding, module.dilation, strict=True) if p < less * d]
    else:
        short = [module.padding] if module.padding == "valid" and values[0] < values[-1] else []
    if short:
        raise UnsupportedModelError(
            f"space: {name}: the largest kernel must be padded, so that smaller ones see the same positions",
            found=f"padding {module.padding}",
            expected=f"at least {(values[-1] - values[0]) // 2} times the dilation",
        )
    return int(next(iter(sizes)))
