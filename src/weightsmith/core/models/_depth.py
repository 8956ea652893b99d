"""The fields of a configuration that follow when a model gets another number of blocks.

A depth is written in many ways: as a number, as a list with an entry per block, as a list of the numbers of some
blocks, as the number of the first blocks of a kind. No table of names knows them all. So a model is built, without
memory, from every configuration that is tried, and its blocks are compared with those that the new model will have.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from weightsmith.core.errors import UnsupportedModelError
from weightsmith.core.models._empty import build_empty, config_fields
from weightsmith.core.models._layers import get_module

__all__ = ["PLACES", "config_changes"]

PLACES = ("layer_idx", "layer_id", "layer_index", "layer_number")
"""Attributes that hold a block's place in its row."""

DEPTHS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers")
"""Fields of a configuration that may hold the number of blocks."""

OUTPUTS = "out_features"
"""The blocks, by name, whose outputs a backbone gives; by default the last."""

Change = tuple[Any, dict[str, Any]]


def config_changes(model: nn.Module, path: str, order: Sequence[int]) -> list[Change]:
    """Return the configurations of a model, and of its parts around a row of blocks, with their new fields.

    Parameters
    ----------
    model : nn.Module
        The model; it does not change.
    path : str
        Path of the row.
    order : sequence of int
        For each new block, the place of the old one that it is a copy of.

    Raises
    ------
    UnsupportedModelError
        If no field says how many blocks there are, a model built from the new configuration differs, or a backbone is
        to give the outputs of blocks that it will not have.
    """
    parts = path.split(".")
    around = {place: get_module(model, place) for place in (".".join(parts[:depth]) for depth in range(len(parts)))}
    configs = {id(c): c for part in around.values() if hasattr(c := getattr(part, "config", None), "to_dict")}
    blocks = list(get_module(model, path).children())
    plain = [(config, _plain_changes(config, parts, len(blocks), order)) for config in configs.values()]
    owners = [(place, part) for place, part in around.items() if isinstance(part, PreTrainedModel)]
    if not owners:
        return plain
    place, owner = owners[0]
    inside = path.removeprefix(f"{place}.") if place else path
    old = build_empty(owner, {})
    if isinstance(old, str):
        return plain  # a configuration that does not describe the old model either
    base = dict(next(fields for config, fields in plain if config is owner.config))
    chance = _equal_by_chance(owner, base, len(blocks))
    plain = [(config, {n: v for n, v in fields.items() if n not in chance}) for config, fields in plain]
    base = {n: v for n, v in base.items() if n not in chance}
    others = _other_changes(owner.config, len(blocks), order)
    reasons = []
    for fields in (base, *(base | {name: others[name]} for name in others), base | others):
        new = build_empty(owner, fields)
        reasons.append(new if isinstance(new, str) else _difference(owner, old, new, inside, order))
        if not reasons[-1] and not isinstance(new, str):
            derived = _derived(owner.config, old.config, new.config)
            _check_outputs(owner.config, new.config, derived)
            return [
                (config, own | {n: v for n, v in (fields | derived).items() if n in own or hasattr(config, n)})
                for config, own in plain
            ]
    raise UnsupportedModelError(
        f"no field of {type(owner.config).__name__} describes {len(order)} blocks of these kinds",
        found=reasons[0],
        do="Choose a depth or an assignment that keeps the pattern of the blocks.",
    )


def _plain_changes(config: Any, parts: Sequence[str], old: int, order: Sequence[int]) -> dict[str, Any]:
    """The number of blocks, and lists with an entry for each."""
    if hasattr(config, "text_config"):
        found = type(config).__name__
        raise UnsupportedModelError("a configuration of several models", found=found, do="Grow the text model.")
    side = "decoder" if "decoder" in parts else "encoder"
    names = (f"num_{side}_layers", f"{side}_layers", *DEPTHS)
    field = next((name for name in names if getattr(config, name, None) == old), None)
    if field is None:
        have = {name: getattr(config, name) for name in names if hasattr(config, name)}
        raise UnsupportedModelError(f"no field of the configuration says {old} blocks", found=have)
    lists = {
        name: [value[source] for source in order]
        for name, value in config_fields(config)
        if isinstance(value, list) and len(value) == old and name != "architectures"
    }
    return {field: len(order)} | lists


def _equal_by_chance(owner: PreTrainedModel, fields: dict[str, Any], old: int) -> set[str]:
    """The lists that have an entry per block by chance: a model of one block more is built with them as they are."""
    lists = {name: getattr(owner.config, name) for name, value in fields.items() if isinstance(value, list)}
    longer = dict.fromkeys(fields, old + 1) | {name: [*value, value[-1]] for name, value in lists.items()}
    return {name for name, value in lists.items() if not isinstance(build_empty(owner, longer | {name: value}), str)}


def _other_changes(config: Any, old: int, order: Sequence[int]) -> dict[str, Any]:
    """New values of fields that may number blocks, count the first of a kind, or give kinds with repetitions."""
    found: dict[str, Any] = {}
    for name, value in config_fields(config):
        whole = isinstance(value, int) and not isinstance(value, bool)
        if whole and 0 < value <= old and ("layer" in name or name.startswith("first_k")) and name not in DEPTHS:
            found[name] = sum(source < value for source in order)
        elif isinstance(value, list) and value and all(isinstance(v, int) and 0 <= v < old for v in value):
            found[name] = [place for place, source in enumerate(order) if source in value]
        elif isinstance(value, list) and value and all(_is_repetition(v) for v in value):
            kinds = [kind for some, times in value for _ in range(times) for kind in some]
            if len(kinds) == old:
                found[name] = [[[kinds[source] for source in order], 1]]
    return found


def _is_repetition(value: Any) -> bool:
    pair = isinstance(value, (list, tuple)) and len(value) == 2
    return pair and isinstance(value[0], (list, tuple)) and isinstance(value[1], int)


def _difference(
    owner: PreTrainedModel, old: PreTrainedModel, new: PreTrainedModel, path: str, order: Sequence[int]
) -> str:
    """In what a model built from the new configuration differs from the one that will be; empty if in nothing."""
    blocks, before, after = (list(get_module(model, path).children()) for model in (owner, old, new))
    if len(after) != len(order):
        return f"{len(after)} blocks"
    for place, source in enumerate(order):
        have, said, wanted = (dict(_traits(block)) for block in (blocks[source], before[source], after[place]))
        for trait in {**have, **wanted}:
            if have.get(trait) != wanted.get(trait) and have.get(trait) == said.get(trait):
                return f"block {place}: {trait} {have.get(trait)} and {wanted.get(trait)}"
    shapes = {name: tensor.shape for name, tensor in owner.state_dict().items() if not name.startswith(f"{path}.")}
    for name, tensor in new.state_dict().items():
        if not name.startswith(f"{path}.") and shapes.get(name) != tensor.shape:
            return f"{name!r} outside the blocks of shape {tuple(tensor.shape)}"
    return ""


def _traits(block: nn.Module) -> Iterator[tuple[str, Any]]:
    """What a configuration decides of a block: classes, shapes, and attributes other than its place."""
    for name, module in block.named_modules():
        if "Drop" in type(module).__name__ or isinstance(module, nn.Identity):
            continue
        yield f"{name} class".lstrip(), type(module).__name__
        for attribute, value in vars(module).items():
            decided = not attribute.startswith("_") and attribute not in (*PLACES, "training")
            if decided and (value is None or isinstance(value, (bool, int, float, str))):
                yield f"{name} {attribute}".lstrip(), value
        for attribute, parameter in module.named_parameters(recurse=False):
            yield f"{name}.{attribute} shape".lstrip("."), tuple(parameter.shape)


def _derived(config: Any, old: Any, new: Any) -> dict[str, Any]:
    """Attributes that a configuration computes from its fields and that follow the depth."""
    names = [*(name for name in vars(new) if not name.startswith("_")), OUTPUTS]
    return {
        name: value
        for name in names
        if isinstance(value := getattr(new, name, None), (int, list))
        and getattr(config, name, None) == getattr(old, name, None) != value
    }


def _check_outputs(config: Any, new: Any, derived: dict[str, Any]) -> None:
    names = derived.get(OUTPUTS, getattr(config, OUTPUTS, None)) or ()
    if gone := [name for name in names if name not in new.stage_names]:
        raise UnsupportedModelError(
            f"{OUTPUTS} of {type(config).__name__}",
            found=gone,
            expected=f"among {new.stage_names} of the new model",
            do=f"Set config.{OUTPUTS} to what stays.",
        )
