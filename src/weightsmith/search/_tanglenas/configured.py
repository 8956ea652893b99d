"""What choices of a configuration's fields do to a transformer.

Nothing is known by the names of layers: models are built without memory from configurations with other values, and the
axes that change are looked up in the network's symmetry.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from weightsmith.core.errors import HyperparameterError, LayerNotFoundError, UnsupportedModelError
from weightsmith.core.models import build_empty, config_changes, find_stack
from weightsmith.core.symmetry import Symmetry
from weightsmith.search._tanglenas.dimensions import Choices, Heads, Space, Width, axis_cut
from weightsmith.search._tanglenas.superposition import Architecture

__all__ = ["RATIO", "configured_halves", "configured_space"]

HIDDEN, ATTENTION, KEY_VALUE, DEPTH = "hidden_size", "num_attention_heads", "num_key_value_heads", "num_hidden_layers"
RATIO = "mlp_ratio"
"""Width of the feed-forward layers as a multiple of the hidden size."""
INNER = ("intermediate_size", "ffn_dim", "n_inner", "d_ff")
"""Fields of configurations that hold the width of the feed-forward layers."""
FOLLOWERS = ("word_embed_proj_dim",)
"""Fields that follow the hidden size where they equal it."""


def configured_space(model: PreTrainedModel, choices: dict[str, tuple[Any, ...]], symmetry: Symmetry) -> Space:
    """Return the space of choices of a transformer; what is impossible is refused, all of it in one message."""
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
            axis_cut(space, symmetry, key, axis, blocks, widths, space.heads if (key, axis) in flat else None)
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
                found[self.inner] = int(value * architecture.get(self.hidden, self.config.hidden_size))
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
    for one in space.joint([name for name in (named.hidden, RATIO) if name in space.choices]):
        whole = named.fixed | one
        if Fraction(whole.get(RATIO, 1)) * whole.get(named.hidden, model.config.hidden_size) % 1:
            wrong.append(_worded(one))
    for value in space.choices.get(named.heads, ()):
        if named.groups < named.count and value % named.groups:
            wrong.append(f"{named.heads} {value} with {named.groups} heads of keys and values")
    if wrong:
        raise HyperparameterError(
            "space: impossible choices",
            found="; ".join(dict.fromkeys(wrong)),
            expected="a hidden size that the heads divide, heads that are a multiple of those of keys and values, "
            "and a whole feed-forward width",
        )


def _worded(architecture: Architecture) -> str:
    return " with ".join(f"{name} {value}" for name, value in architecture.items())


def _configured_widths(
    model: PreTrainedModel, base: nn.Module, space: Space, named: _Names, symmetry: Symmetry
) -> tuple[dict[str, Width], set[tuple[str, int]]]:
    """How many indices of every group stay, and which axes attention splits anew."""
    widths: dict[str, Width] = {}
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


def _width(named: _Names, name: str, space: Space) -> Width:
    """Indices in proportion to the hidden size, or to the width of the feed-forward layers."""
    dims = tuple(n for n in space.choices if n == name or (name == RATIO and n == named.hidden))
    whole = math.prod(space.choices[n][-1] for n in dims)
    return Width(dims, lambda a, size: int(size * math.prod(a[n] for n in dims) // whole))


def _heads_width(symmetry: Symmetry, group: str, name: str, named: _Names) -> Width | None:
    """The groups of heads that share keys, or the heads within one; None for the channels of a head."""
    size, shared = symmetry.groups[group].size, named.count // max(named.groups, 1)
    outer = not symmetry.groups[group].within
    if name == named.key_value or shared == 1:
        return Width((name,), lambda a, _: a[name]) if outer and size == named.groups else None
    inner = not outer or named.groups == 1
    return Width((name,), lambda a, _: a[name] // named.groups) if inner and size == shared else None


def configured_halves(model: PreTrainedModel) -> dict[str, tuple[int, ...]]:
    """Return the choices of a half and the whole of the feed-forward width, of the heads and of the depth."""
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
